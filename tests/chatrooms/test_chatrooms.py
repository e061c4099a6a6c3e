"""Chatrooms over HTTP: made, listed, read, changed, deleted, by their owner only."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest
import redis
from flask import Flask

from chatapi.chatrooms.cache import OwnPages
from tests.support import Account, Services, race

UNKNOWN = "01890a5d-ac96-774b-bcce-b302099a8057"


def listed(account: Account, query: str = "") -> dict[str, Any]:
    answer = account.call("GET", f"/chatroom{query}")
    assert answer.status_code == 200, answer.get_json()
    page: dict[str, Any] = answer.get_json()
    return page


def titles(page: dict[str, Any]) -> list[str]:
    return [room["title"] for room in page["chatrooms"]]


def test_chatroom_is_made_with_defaults_when_nothing_is_said(account: Account) -> None:
    answer = account.call("POST", "/chatroom", {})

    room = answer.get_json()["chatroom"]
    assert answer.status_code == 201
    assert answer.headers["Location"] == f"/chatroom/{room['id']}"
    assert room.keys() == {
        "id",
        "title",
        "description",
        "system_instruction",
        "model",
        "created_at",
        "updated_at",
        "message_count",
        "last_message_at",
    }
    assert (room["title"], room["message_count"], room["last_message_at"]) == (None, 0, None)
    assert room["created_at"].endswith("Z")
    assert room["id"][14] == "7"


def test_chatroom_can_be_made_without_any_body(account: Account) -> None:
    assert account.client.post("/chatroom", headers=account.headers).status_code == 201


def test_list_is_cached_and_right_after_every_change(account: Account) -> None:
    first = account.open_room(title="first")
    assert listed(account)["cached"] is False
    assert listed(account)["cached"] is True

    second = account.open_room(title="second")
    page = listed(account)
    assert (page["cached"], titles(page)) == (False, ["second", "first"])

    account.call("PUT", f"/chatroom/{first}", {"title": "renamed"})
    page = listed(account)
    assert (page["cached"], titles(page)) == (False, ["second", "renamed"])

    account.prompt(first, "hello")
    page = listed(account)
    assert (page["cached"], titles(page)) == (False, ["renamed", "second"])
    assert (page["chatrooms"][0]["message_count"], page["chatrooms"][1]["message_count"]) == (2, 0)

    account.call("DELETE", f"/chatroom/{second}")
    page = listed(account)
    assert (page["cached"], titles(page)) == (False, ["renamed"])
    assert listed(account) == {**page, "cached": True}


def test_cached_list_is_nobody_elses(sign_in: Callable[..., Account]) -> None:
    mine, other = sign_in(), sign_in()
    mine.open_room(title="mine")
    listed(mine)
    assert listed(mine)["cached"] is True

    assert titles(listed(other)) == []


def test_list_is_right_after_every_change_when_readers_race_the_writer(app: Flask, account: Account) -> None:
    """Six readers refill the cache as fast as they can; whatever they leave, a change is seen right after it."""
    room_id = account.open_room(title="0")
    seen = []

    def work(index: int) -> None:
        via = Account(account.id, account.mobile_number, account.token, app.test_client())
        for step in range(1, 31):
            if index == 0:
                via.call("PUT", f"/chatroom/{room_id}", {"title": str(step)})
                seen.append((step, titles(listed(via))))
            else:
                listed(via)

    race(7, work)

    assert seen == [(step, [str(step)]) for step in range(1, 31)]


def test_pickle_planted_in_the_cache_is_not_loaded(app: Flask, services: Services, account: Account) -> None:
    account.open_room(title="real")
    listed(account)
    app.extensions["own_pages"] = OwnPages()  # As in a process that has not seen the page yet.
    with redis.Redis.from_url(services.environ["REDIS_URL"]) as planted:
        keys = list(planted.scan_iter(f"chatapi:cache:rooms:{account.id}:*"))
        assert len(keys) == 1
        for key in keys:
            planted.set(key, b"!cos\nsystem\n(S'exit 1'\ntR.")

    page = listed(account)

    assert (page["cached"], titles(page)) == (False, ["real"])


def test_list_pages_through_all_rooms_once_when_followed(account: Account) -> None:
    for number in range(7):
        account.open_room(title=str(number))

    pages, cursor = [], ""
    while cursor is not None:
        page = listed(account, f"?limit=3{cursor and '&cursor=' + cursor}")
        pages.append(titles(page))
        cursor = page["next_cursor"]

    assert pages == [["6", "5", "4"], ["3", "2", "1"], ["0"]]


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=101",
        "limit=x",
        "limit=1_0",
        "limit=１０",
        "limit=-1",
        "limit=1.0",
        "cursor=x",
        "cursor=%00",
        "cursor=AAAA",
        "cursor=é",
        "page=2",
    ],
)
def test_list_is_refused_when_the_query_makes_no_sense(account: Account, query: str) -> None:
    answer = account.call("GET", f"/chatroom?{query}")

    assert (answer.status_code, answer.get_json()["error"]) == (422, "validation_failed")
    assert list(answer.get_json()["errors"]) == [query.split("=", maxsplit=1)[0]]


@pytest.mark.parametrize(
    "time",
    ["2026-01-01T00:00:00+23:59", "2026-01-01T00:00:00.000000+16:00", "2026-01-01T00:00:00.000000", "2026-W01-1",
     "0000-01-01T00:00:00.000000Z", "2026-13-01T00:00:00.000000Z", "2026-01-01T00:00:00.000000Z\n", "infinity", ""],
)  # fmt: skip
def test_list_is_refused_when_the_cursor_was_made_up(account: Account, time: str) -> None:
    cursor = base64.urlsafe_b64encode(f"{time} {UNKNOWN}".encode()).decode().rstrip("=")

    assert account.call("GET", f"/chatroom?cursor={cursor}").status_code == 422


def test_room_is_changed_or_not_found_when_changes_race_its_deletion(app: Flask, account: Account) -> None:
    for _ in range(20):
        room_id = account.open_room(title="short-lived")

        def work(index: int, room_id: str = room_id) -> int:
            via = Account(account.id, account.mobile_number, account.token, app.test_client())
            method, body = ("DELETE", None) if index == 0 else ("PUT", {"title": str(index)})
            return via.call(method, f"/chatroom/{room_id}", body).status_code

        assert set(race(6, work)) <= {200, 404}


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_change_merges_and_null_clears(account: Account, method: str) -> None:
    room_id = account.open_room(title="title", description="about", system_instruction="be brief")

    answer = account.call(method, f"/chatroom/{room_id}", {"description": None, "system_instruction": "be kind"})

    assert answer.status_code == 200
    room = answer.get_json()["chatroom"]
    assert (room["title"], room["description"], room["system_instruction"]) == ("title", None, "be kind")
    assert account.call("GET", f"/chatroom/{room_id}").get_json()["chatroom"].items() >= room.items()


def test_room_is_read_page_by_page_in_order(account: Account) -> None:
    room_id = account.open_room()
    for number in range(5):
        account.prompt(room_id, f"prompt {number}")

    newest = account.call("GET", f"/chatroom/{room_id}?limit=4").get_json()["chatroom"]
    before = account.call("GET", f"/chatroom/{room_id}?limit=4&before={newest['messages'][0]['id']}").get_json()[
        "chatroom"
    ]
    rest = account.call("GET", f"/chatroom/{room_id}?before={before['messages'][0]['id']}").get_json()["chatroom"]

    prompts = [
        [message["content"] for message in page["messages"] if message["message_type"] == "user"]
        for page in (rest, before, newest)
    ]
    assert prompts == [["prompt 0"], ["prompt 1", "prompt 2"], ["prompt 3", "prompt 4"]]
    assert [page["has_more"] for page in (rest, before, newest)] == [False, True, True]
    assert newest["message_count"] == 10


def test_deleted_room_is_gone_with_its_messages(account: Account) -> None:
    room_id = account.open_room()
    reply_id = account.prompt(room_id, "hello")

    assert account.call("DELETE", f"/chatroom/{room_id}").get_json() == {"message": "Chatroom deleted"}

    for method, path in (("GET", ""), ("GET", f"/message/{reply_id}"), ("DELETE", ""), ("PUT", "")):
        answer = account.call(method, f"/chatroom/{room_id}{path}", {} if method == "PUT" else None)
        assert answer.status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/chatroom/{room}", None),
        ("PUT", "/chatroom/{room}", {"title": "mine now"}),
        ("PATCH", "/chatroom/{room}", {"title": "mine now"}),
        ("DELETE", "/chatroom/{room}", None),
        ("POST", "/chatroom/{room}/message", {"content": "hello"}),
        ("GET", "/chatroom/{room}/message/{message}", None),
    ],
)
def test_somebody_elses_room_is_answered_as_one_that_never_was(
    sign_in: Callable[..., Account], method: str, path: str, body: Any
) -> None:
    owner, other = sign_in(), sign_in()
    room_id = owner.open_room(title="theirs")
    reply_id = owner.prompt(room_id, "hello")

    answers = [
        other.call(method, path.format(room=room, message=message), body)
        for room, message in (
            (room_id, reply_id),
            (UNKNOWN, UNKNOWN),
            ("not-an-id", "not-an-id"),
            (room_id + "0", "%00"),
        )
    ]

    assert [answer.status_code for answer in answers] == [404] * 4
    assert len({answer.get_data() for answer in answers}) == 1
    assert owner.call("GET", f"/chatroom/{room_id}").get_json()["chatroom"]["title"] == "theirs"
    assert other.daily_usage() == 0
    assert owner.client.open(path.format(room=room_id, message=reply_id), method=method, json=body).status_code == 401


def test_message_is_not_found_in_another_room_of_the_same_user(account: Account) -> None:
    room_id, other_room = account.open_room(), account.open_room()
    reply_id = account.prompt(room_id, "hello")

    assert account.call("GET", f"/chatroom/{other_room}/message/{reply_id}").status_code == 404
    assert account.call("GET", f"/chatroom/{other_room}?before={reply_id}").status_code == 404
