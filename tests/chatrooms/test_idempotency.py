"""Idempotency-Key: one request sent again and again is accepted once, and everything else is told apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
import redis
from flask import Flask
from sqlalchemy import text

from chatapi.extensions import db
from chatapi.replies.sweeper import clean
from tests.chatrooms.support import beside, ids, message_count, regenerate, send
from tests.support import Account, Services, race, wait_for

KEYS = "SELECT count(*) AS n FROM idempotency_keys WHERE user_id = :id"
AGE = "UPDATE idempotency_keys SET created_at = now() - make_interval(secs => :seconds) WHERE user_id = :id"
DAY_SECONDS = 24 * 3600

WAITING = "SELECT count(*) AS n FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE :query"


def test_first_answer_is_given_again_when_the_request_is_repeated(account: Account, sql: Callable[..., Any]) -> None:
    room_id = account.open_room()
    first = send(account, room_id, "hello", Idempotency_Key="one")

    second = send(account, room_id, "hello", Idempotency_Key="one")

    assert ids(second) == ids(first)
    assert second.get_json() == first.get_json()
    assert second.headers["Location"] == first.headers["Location"]
    assert "Idempotent-Replayed" not in first.headers
    assert second.headers["Idempotent-Replayed"] == "true"
    assert message_count(account, room_id) == 2
    assert sql("SELECT count(*) AS n FROM reply_jobs WHERE room_id = :id", id=room_id).n == 1
    assert account.daily_usage() == 1


def test_replay_rings_for_nobody(services: Services, account: Account) -> None:
    room_id = account.open_room()
    send(account, room_id, "hello", Idempotency_Key="one")
    with redis.Redis.from_url(services.environ["REDIS_URL"]) as queue:
        before = queue.llen("{dramatiq}:replies")

        assert send(account, room_id, "hello", Idempotency_Key="one").status_code == 201

        assert queue.llen("{dramatiq}:replies") == before


def test_replay_shows_the_reply_as_it_is_now(account: Account, attempt: Callable[..., None]) -> None:
    room_id = account.open_room()
    _, reply_id = ids(send(account, room_id, "hello", Idempotency_Key="one"))
    attempt(reply_id)

    again = send(account, room_id, "hello", Idempotency_Key="one")

    assert again.status_code == 201
    assert again.get_json()["ai_message"] == account.read(room_id, reply_id)
    assert again.get_json()["ai_message"]["status"] == "completed"
    assert account.daily_usage() == 1


@pytest.mark.parametrize("fault", ["", " [[fault=400]]"])
def test_replay_that_waits_has_the_finished_reply_at_once(
    account: Account, attempt: Callable[..., None], fault: str
) -> None:
    room_id = account.open_room()
    first = send(account, room_id, "hello" + fault, Idempotency_Key="one")
    attempt(ids(first)[1])

    again = send(account, room_id, "hello" + fault, Idempotency_Key="one", Prefer="wait=60")

    assert ids(again) == ids(first)
    assert again.get_json()["ai_message"]["status"] == ("failed" if fault else "completed")
    assert again.headers["Preference-Applied"] == "wait=60"


def test_replay_needs_no_quota(account: Account) -> None:
    room_id = account.open_room()
    first = send(account, room_id, "hello", Idempotency_Key="one")
    for _ in range(4):
        account.prompt(room_id, "more")
    assert send(account, room_id, "over").status_code == 429

    assert ids(send(account, room_id, "hello", Idempotency_Key="one")) == ids(first)
    assert account.daily_usage() == 5


def test_key_is_refused_for_another_request(account: Account, attempt: Callable[..., None]) -> None:
    room_id, other_room = account.open_room(), account.open_room()
    prompt_id, reply_id = ids(send(account, room_id, "hello", Idempotency_Key="one"))
    attempt(reply_id)

    answers = [
        send(account, room_id, "Hello", Idempotency_Key="one"),
        send(account, other_room, "hello", Idempotency_Key="one"),
        regenerate(account, room_id, reply_id, Idempotency_Key="one"),
        regenerate(account, room_id, prompt_id, Idempotency_Key="one"),
    ]

    assert [(answer.status_code, answer.get_json()["error"]) for answer in answers] == [
        (422, "idempotency_mismatch")
    ] * 4
    assert message_count(account, room_id) == 2
    assert message_count(account, other_room) == 0
    assert account.daily_usage() == 1


def test_key_of_a_regeneration_is_refused_for_that_of_another_reply(
    account: Account, attempt: Callable[..., None]
) -> None:
    room_id = account.open_room()
    one, two = account.prompt(room_id, "one"), account.prompt(room_id, "two")
    attempt(one)
    attempt(two)
    assert regenerate(account, room_id, one, Idempotency_Key="again").status_code == 201

    answer = regenerate(account, room_id, two, Idempotency_Key="again")

    assert (answer.status_code, answer.get_json()["error"]) == (422, "idempotency_mismatch")


def test_keys_are_told_apart_by_case_and_length(account: Account) -> None:
    room_id = account.open_room()

    answers = [send(account, room_id, "hello", Idempotency_Key=key) for key in ("key", "KEY", "key.", "k")]

    assert len({ids(answer) for answer in answers}) == 4


def test_same_key_of_two_users_has_nothing_to_do_with_each_other(sign_in: Callable[..., Account]) -> None:
    one, other = sign_in(), sign_in()
    first = send(one, one.open_room(), "hello", Idempotency_Key="one")

    second = send(other, other.open_room(), "bonjour", Idempotency_Key="one")

    assert set(ids(first)).isdisjoint(ids(second))
    assert "Idempotent-Replayed" not in second.headers


@pytest.mark.parametrize("seen", ["none", "some"])
def test_one_is_accepted_when_eighty_are_sent_at_once(
    app: Flask, account: Account, sql: Callable[..., Any], seen: str
) -> None:
    room_id = account.open_room()
    if seen == "some":  # A key that is over is taken over by one of them, too.
        send(account, room_id, "hello", Idempotency_Key="one")
        sql(AGE, id=account.id, seconds=DAY_SECONDS)
    before = account.daily_usage()

    answers = race(80, lambda _: send(beside(app, account), room_id, "hello", Idempotency_Key="one"))

    accepted = [answer for answer in answers if answer.status_code == 201]
    refused = [answer for answer in answers if answer.status_code != 201]
    assert len({ids(answer) for answer in accepted}) == 1
    assert len([answer for answer in accepted if "Idempotent-Replayed" not in answer.headers]) == 1
    for answer in refused:
        assert (answer.status_code, answer.get_json()["error"]) == (409, "idempotency_in_progress")
        assert int(answer.headers["Retry-After"]) >= 1
    assert account.daily_usage() == before + 1
    assert message_count(account, room_id) == 2 * (before + 1)
    assert ids(send(account, room_id, "hello", Idempotency_Key="one")) == ids(accepted[0])


def test_request_is_refused_while_the_first_is_still_being_accepted(
    app: Flask, account: Account, sql: Callable[..., Any]
) -> None:
    room_id = account.open_room()
    with app.app_context(), db.engine.connect() as other:
        # Whoever holds the user's row keeps the first request waiting in the middle of its transaction.
        other.execute(text("SELECT FROM users WHERE id = :id FOR NO KEY UPDATE"), {"id": account.id})

        def work(index: int) -> Any:
            if index == 1:
                wait_for(lambda: sql(WAITING, query="%accept_prompt%").n, every=0.02)
            answer = send(beside(app, account), room_id, "hello", Idempotency_Key="one")
            if index == 1:
                other.rollback()
            return answer

        first, second = race(2, work)

    assert first.status_code == 201
    assert (second.status_code, second.get_json()["error"]) == (409, "idempotency_in_progress")
    assert second.headers["Retry-After"] == "1"


def test_refusal_for_quota_is_not_remembered(account: Account, sql: Callable[..., Any]) -> None:
    room_id = account.open_room()
    for _ in range(5):
        account.prompt(room_id, "hi")
    refused = send(account, room_id, "hello", Idempotency_Key="one")
    assert refused.get_json()["error"] == "daily_limit_reached"
    assert sql(KEYS, id=account.id).n == 0
    sql("UPDATE users SET pro_until = now() + interval '1 hour' WHERE id = :id", id=account.id)

    answer = send(account, room_id, "hello", Idempotency_Key="one")

    assert answer.status_code == 201
    assert "Idempotent-Replayed" not in answer.headers


def test_other_refusals_are_not_remembered(account: Account, sql: Callable[..., Any]) -> None:
    room_id = account.open_room()
    prompt_id, reply_id = ids(send(account, room_id, "hello"))

    refusals = [
        send(account, str(UUID(int=7)), "hello", Idempotency_Key="one"),
        send(account, "nonsense", "hello", Idempotency_Key="one"),
        send(account, room_id, "", Idempotency_Key="one"),
        regenerate(account, room_id, prompt_id, Idempotency_Key="one"),
        regenerate(account, room_id, reply_id, Idempotency_Key="one"),
    ]

    assert [answer.status_code for answer in refusals] == [404, 404, 422, 409, 409]
    assert sql(KEYS, id=account.id).n == 0
    assert send(account, room_id, "hello", Idempotency_Key="one").status_code == 201


@pytest.mark.parametrize("key", ["", "x" * 256, "schl\u00fcssel", "a\x01b", "a\tb", "a\x7f", "\u00a0"])
def test_key_is_refused_when_it_is_no_printable_ascii_of_up_to_255(account: Account, key: str) -> None:
    room_id = account.open_room()

    answer = send(account, room_id, "hello", Idempotency_Key=key)

    assert (answer.status_code, list(answer.get_json()["errors"])) == (422, ["Idempotency-Key"])
    assert message_count(account, room_id) == 0
    assert account.daily_usage() == 0


@pytest.mark.parametrize("key", ["x" * 255, "a", "\"quoted, and; 'more' {}~\"", "x y"])
def test_key_is_taken_as_it_is(account: Account, key: str) -> None:
    room_id = account.open_room()

    first = send(account, room_id, "hello", Idempotency_Key=key)

    assert ids(send(account, room_id, "hello", Idempotency_Key=key)) == ids(first)


def test_key_lives_for_a_day(account: Account, sql: Callable[..., Any]) -> None:
    room_id = account.open_room()
    first = ids(send(account, room_id, "hello", Idempotency_Key="one"))
    sql(AGE, id=account.id, seconds=DAY_SECONDS - 60)
    assert ids(send(account, room_id, "hello", Idempotency_Key="one")) == first
    sql(AGE, id=account.id, seconds=DAY_SECONDS)

    anew = send(account, room_id, "something else", Idempotency_Key="one")

    assert set(ids(anew)).isdisjoint(first)
    assert "Idempotent-Replayed" not in anew.headers
    assert ids(send(account, room_id, "something else", Idempotency_Key="one")) == ids(anew)
    assert send(account, room_id, "hello", Idempotency_Key="one").get_json()["error"] == "idempotency_mismatch"


def test_keys_that_are_over_are_deleted_and_no_others(app: Flask, account: Account, sql: Callable[..., Any]) -> None:
    room_id = account.open_room()
    send(account, room_id, "old", Idempotency_Key="old")
    sql(AGE, id=account.id, seconds=DAY_SECONDS)
    send(account, room_id, "new", Idempotency_Key="new")

    with app.app_context():
        clean()

    assert sql("SELECT key FROM idempotency_keys WHERE user_id = :id", id=account.id).key == "new"
    assert message_count(account, room_id) == 4


def test_replay_finds_nothing_when_the_room_was_deleted(account: Account) -> None:
    room_id = account.open_room()
    send(account, room_id, "hello", Idempotency_Key="one")
    account.call("DELETE", f"/chatroom/{room_id}")

    answer = send(account, room_id, "hello", Idempotency_Key="one")

    assert (answer.status_code, answer.get_json()["error"]) == (404, "not_found")


@pytest.mark.parametrize(
    "body", [b'{"content":"caf\\u00e9"}', '\n {\t"content" :  "café" }\r\n'.encode(), '{"content":"  café "}'.encode()]
)
def test_request_is_the_same_however_its_json_is_written(account: Account, body: bytes) -> None:
    room_id = account.open_room()
    first = send(account, room_id, "café", Idempotency_Key="one")

    again = account.client.post(
        f"/chatroom/{room_id}/message",
        data=body,
        content_type="application/json; charset=utf-8",
        headers={**account.headers, "Idempotency-Key": "one"},
    )

    assert ids(again) == ids(first)


def test_regeneration_is_accepted_once_under_its_key(
    app: Flask, account: Account, attempt: Callable[..., None]
) -> None:
    room_id = account.open_room()
    reply_id = account.prompt(room_id, "hello")
    attempt(reply_id)

    first, *others = race(20, lambda _: regenerate(beside(app, account), room_id, reply_id, Idempotency_Key="one"))

    assert {answer.status_code for answer in (first, *others)} <= {201, 409}
    again = regenerate(account, room_id, reply_id, Idempotency_Key="one")
    assert {ids(answer) for answer in (first, *others) if answer.status_code == 201} == {ids(again)}
    assert {a.get_json()["error"] for a in (first, *others) if a.status_code == 409} <= {"idempotency_in_progress"}
    assert again.headers["Idempotent-Replayed"] == "true"
    assert message_count(account, room_id) == 3
    assert account.daily_usage() == 2
    attempt(*ids(again))
    done = regenerate(account, room_id, reply_id, Idempotency_Key="one")
    assert done.get_json()["ai_message"]["status"] == "completed"


def test_requests_without_a_key_are_accepted_each(account: Account) -> None:
    room_id = account.open_room()

    assert ids(send(account, room_id, "hello")) != ids(send(account, room_id, "hello"))


def test_erased_account_leaves_no_keys(account: Account, sql: Callable[..., Any]) -> None:
    send(account, account.open_room(), "hello", Idempotency_Key="one")
    assert sql(KEYS, id=account.id).n == 1

    account.call("DELETE", "/user/me")

    assert sql(KEYS, id=account.id).n == 0


def test_account_that_is_erased_meanwhile_is_told_so(app: Flask, account: Account, sql: Callable[..., Any]) -> None:
    room_id = account.open_room()
    with app.app_context(), db.engine.connect() as other:
        other.execute(text("DELETE FROM users WHERE id = :id"), {"id": account.id})

        def work(index: int) -> Any:
            if index == 0:
                return send(beside(app, account), room_id, "hello", Idempotency_Key="one")
            wait_for(lambda: sql(WAITING, query="%idempotency_keys%").n, every=0.02)
            return other.commit()

        answer, _ = race(2, work)

    assert answer.status_code == 401
