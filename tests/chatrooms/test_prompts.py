"""Accepting prompts: what is stored and counted, and that exactly as many pass as are left."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
import redis
from flask import Flask
from sqlalchemy import text

from chatapi.extensions import db
from tests.support import Account, Services, race


def test_prompt_is_stored_with_its_pending_reply_when_accepted(account: Account) -> None:
    room_id = account.open_room()

    answer = account.send(room_id, "  Hallo, schöne Welt! مرحبا  ")

    body = answer.get_json()
    prompt, reply = body["user_message"], body["ai_message"]
    assert answer.status_code == 201
    assert answer.headers["Location"] == f"/chatroom/{room_id}/message/{reply['id']}"
    assert (prompt["content"], prompt["message_type"], prompt["status"]) == (
        "Hallo, schöne Welt! مرحبا",
        "user",
        "completed",
    )
    assert (reply["content"], reply["message_type"], reply["status"]) == ("", "ai", "pending")
    assert (prompt["reply_to"], reply["reply_to"]) == (None, prompt["id"])
    assert account.read(room_id, prompt["id"]) == prompt
    assert account.read(room_id, reply["id"]) == reply
    assert account.daily_usage() == 1


def test_exactly_five_prompts_are_accepted_when_fifty_are_sent_at_once(app: Flask, account: Account) -> None:
    room_id = account.open_room()

    def send(_index: int) -> int:
        return (
            Account(account.id, account.mobile_number, account.token, app.test_client()).send(room_id, "hi").status_code
        )

    answers = race(50, send)

    assert sorted(answers) == [201] * 5 + [429] * 45
    with app.app_context():
        rows = db.session.execute(
            text(
                "SELECT count(*) FILTER (WHERE message_type = 'user'), count(*) FILTER (WHERE message_type = 'ai'), "
                "array_agg(seq ORDER BY seq), (SELECT count(*) FROM reply_jobs WHERE room_id = :room), "
                "(SELECT message_count FROM chatrooms WHERE id = :room) FROM messages WHERE room_id = :room"
            ),
            {"room": room_id},
        ).one()
    assert tuple(rows) == (5, 5, list(range(1, 11)), 5, 10)
    assert account.daily_usage() == 5


def test_prompt_over_the_limit_is_refused_with_what_a_client_needs_to_know(account: Account) -> None:
    room_id = account.open_room()
    for _ in range(5):
        account.prompt(room_id, "hi")

    answer = account.send(room_id, "one more")

    body = answer.get_json()
    assert answer.status_code == 429
    assert body.items() >= {"error": "daily_limit_reached", "daily_usage_count": 5, "limit": 5, "tier": "basic"}.items()
    resets_at = datetime.fromisoformat(body["resets_at"])
    assert (resets_at.hour, resets_at.minute, resets_at.tzinfo) == (0, 0, UTC)
    seconds_left = (resets_at - datetime.now(UTC)).total_seconds()
    assert abs(int(answer.headers["Retry-After"]) - seconds_left) < 5
    assert account.call("GET", f"/chatroom/{room_id}").get_json()["chatroom"]["message_count"] == 10


def test_refused_prompt_leaves_the_cached_list_as_it_is(account: Account) -> None:
    room_id = account.open_room()
    for _ in range(5):
        account.prompt(room_id, "hello")
    account.call("GET", "/chatroom")

    assert account.send(room_id, "one more").status_code == 429

    assert account.call("GET", "/chatroom").get_json()["cached"]


@pytest.mark.parametrize("limit", [0, 2])
def test_limit_is_what_the_operator_says(
    make_app: Callable[..., Flask], sign_in: Callable[..., Account], limit: int
) -> None:
    app = make_app(BASIC_DAILY_PROMPTS=str(limit))
    account = sign_in(via=app.test_client())
    room_id = account.open_room()

    answers = [account.send(room_id, "hi").status_code for _ in range(3)]

    assert answers == [201] * limit + [429] * (3 - limit)


def test_pro_user_is_neither_limited_nor_counted(pro_account: Account) -> None:
    room_id = pro_account.open_room()

    assert [pro_account.send(room_id, "hi").status_code for _ in range(7)] == [201] * 7
    assert pro_account.daily_usage() == 0
    assert pro_account.call("GET", "/user/me").get_json()["user"]["subscription_tier"] == "pro"


def test_yesterdays_prompts_do_not_count_today(app: Flask, account: Account) -> None:
    room_id = account.open_room()
    for _ in range(5):
        account.prompt(room_id, "hi")
    with app.app_context():
        db.session.execute(
            text(
                "UPDATE daily_usage SET day = day - 1 WHERE number_hash = "
                "(SELECT number_hash FROM users WHERE id = :id)"
            ),
            {"id": account.id},
        )
        db.session.commit()

    assert account.send(room_id, "good morning").status_code == 201
    assert account.daily_usage() == 1


@pytest.mark.parametrize("content", ["", "   \n ", "x" * 5001, "a\x00b", "\ud800", None, 5, ["hi"], {"text": "hi"}])
def test_prompt_is_refused_and_not_counted_when_its_content_is_no_good(account: Account, content: object) -> None:
    room_id = account.open_room()

    answer = account.call("POST", f"/chatroom/{room_id}/message", {"content": content})

    assert (answer.status_code, list(answer.get_json()["errors"])) == (422, ["content"])
    assert account.daily_usage() == 0
    assert account.call("GET", f"/chatroom/{room_id}").get_json()["chatroom"]["messages"] == []


def test_longest_prompt_is_accepted_whatever_its_script(account: Account) -> None:
    room_id = account.open_room()

    assert account.send(room_id, "  " + "x" * 5000 + "  ").status_code == 201
    assert account.send(room_id, "\u202e" + "🙂" * 4999).status_code == 201


def test_prompts_racing_in_one_room_have_numbers_without_gap(app: Flask, pro_account: Account) -> None:
    room_id = pro_account.open_room()

    def send(index: int) -> None:
        via = Account(pro_account.id, pro_account.mobile_number, pro_account.token, app.test_client())
        for number in range(5):
            via.prompt(room_id, f"{index}.{number}")

    race(8, send)

    with app.app_context():
        rows = db.session.execute(
            text(
                "SELECT reply.seq, prompt.seq AS prompt_seq FROM messages AS reply JOIN messages AS prompt "
                "ON prompt.id = reply.reply_to WHERE reply.room_id = :room ORDER BY reply.seq"
            ),
            {"room": room_id},
        ).all()
    assert [row.seq for row in rows] == list(range(2, 82, 2))
    assert all(row.prompt_seq == row.seq - 1 for row in rows)


def test_accepted_prompt_rings_the_workers_queue_once(services: Services, account: Account) -> None:
    room_id = account.open_room()
    with redis.Redis.from_url(services.environ["REDIS_URL"]) as queue:
        before = queue.llen("{dramatiq}:replies")
        reply_id = account.prompt(room_id, "hi")
        messages = queue.hvals("{dramatiq}:replies.msgs")

        assert queue.llen("{dramatiq}:replies") == before + 1
    assert len([message for message in messages if reply_id.encode() in message]) == 1
    assert not [message for message in messages if b'"hi"' in message]
