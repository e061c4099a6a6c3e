"""Bounds on accepted work: of one user's replies in flight, and of the whole backlog."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import text

from chatapi.extensions import db
from tests.chatrooms.support import beside, ids, message_count, regenerate, send, stop
from tests.support import Account, race

MAKE_PRO = "UPDATE users SET pro_until = now() + interval '1 hour' WHERE id = :id"
BACKLOG = 5


@pytest.fixture(scope="module")
def bounded_app(make_app: Callable[..., Flask]) -> Flask:
    return make_app(MAX_IN_FLIGHT_PER_USER="3", BASIC_DAILY_PROMPTS="1000")


@pytest.fixture(params=["basic", "pro"])
def bounded(
    request: pytest.FixtureRequest, bounded_app: Flask, sign_in: Callable[..., Account], sql: Callable[..., Any]
) -> Account:
    """Somebody who may have three replies in flight."""
    account = sign_in(via=bounded_app.test_client())
    if request.param == "pro":
        sql(MAKE_PRO, id=account.id)
    return account


@pytest.fixture
def busy_app(make_app: Callable[..., Flask], sql: Callable[..., Any]) -> Flask:
    """An application that accepts `BACKLOG` unfinished replies, whoever's they are."""
    sql("DELETE FROM reply_jobs")  # Other tests leave some behind.
    return make_app(MAX_BACKLOG=str(BACKLOG))


def test_one_more_is_refused_when_as_many_as_allowed_are_unfinished(bounded: Account, sql: Callable[..., Any]) -> None:
    room_id = bounded.open_room()
    for _ in range(3):
        bounded.prompt(room_id, "hello")
    before = bounded.daily_usage()

    answer = send(bounded, bounded.open_room(), "one more", Idempotency_Key="one")

    assert (answer.status_code, answer.get_json()["error"]) == (429, "too_many_in_flight")
    assert int(answer.headers["Retry-After"]) > 0
    assert bounded.daily_usage() == before
    assert sql("SELECT count(*) AS n FROM messages WHERE user_id = :id", id=bounded.id).n == 6
    assert sql("SELECT count(*) AS n FROM idempotency_keys WHERE user_id = :id", id=bounded.id).n == 0


def test_next_is_accepted_when_one_has_ended(bounded: Account, attempt: Callable[..., None]) -> None:
    room_id = bounded.open_room()
    first, second, _ = (bounded.prompt(room_id, "hello") for _ in range(3))

    attempt(first)
    assert send(bounded, room_id, "one more").status_code == 201
    assert send(bounded, room_id, "one more").status_code == 429
    stop(bounded, room_id, second)
    assert send(bounded, room_id, "one more").status_code == 201


def test_bound_is_exact_when_forty_are_sent_at_once_into_four_rooms(
    bounded_app: Flask, bounded: Account, sql: Callable[..., Any]
) -> None:
    rooms = [bounded.open_room() for _ in range(4)]

    answers = race(40, lambda index: send(beside(bounded_app, bounded), rooms[index % 4], "hello"))

    assert sorted(answer.status_code for answer in answers) == [201] * 3 + [429] * 37
    assert {a.get_json()["error"] for a in answers if a.status_code == 429} == {"too_many_in_flight"}
    assert sql("SELECT count(*) AS n FROM reply_jobs WHERE user_id = :id", id=bounded.id).n == 3
    assert sum(message_count(bounded, room_id) for room_id in rooms) == 6


def test_bound_holds_for_replies_made_again(bounded: Account, attempt: Callable[..., None]) -> None:
    room_id = bounded.open_room()
    finished = bounded.prompt(room_id, "hello")
    attempt(finished)
    for _ in range(3):
        bounded.prompt(room_id, "hello")

    answer = regenerate(bounded, room_id, finished)

    assert (answer.status_code, answer.get_json()["error"]) == (429, "too_many_in_flight")
    assert int(answer.headers["Retry-After"]) > 0
    assert message_count(bounded, room_id) == 8


def test_bound_of_one_user_is_not_anothers(
    bounded_app: Flask, bounded: Account, sign_in: Callable[..., Account]
) -> None:
    room_id = bounded.open_room()
    for _ in range(3):
        bounded.prompt(room_id, "hello")
    other = sign_in(via=bounded_app.test_client())

    assert send(other, other.open_room(), "hello").status_code == 201


def test_replay_is_answered_at_the_bound(bounded: Account) -> None:
    room_id = bounded.open_room()
    first = send(bounded, room_id, "hello", Idempotency_Key="one")
    for _ in range(2):
        bounded.prompt(room_id, "hello")

    assert ids(send(bounded, room_id, "hello", Idempotency_Key="one")) == ids(first)


def test_anybody_is_refused_when_the_backlog_is_full(
    busy_app: Flask,
    sign_in: Callable[..., Account],
    attempt: Callable[..., None],
    sql: Callable[..., Any],
) -> None:
    one, other = sign_in(via=busy_app.test_client()), sign_in(via=busy_app.test_client())
    room_id = one.open_room()
    replies = [one.prompt(room_id, "hello") for _ in range(BACKLOG)]
    sql(MAKE_PRO, id=other.id)

    answers = [send(other, other.open_room(), "hello", Idempotency_Key="one"), regenerate(one, room_id, replies[0])]

    assert (answers[0].status_code, answers[0].get_json()["error"]) == (503, "too_busy")
    assert int(answers[0].headers["Retry-After"]) > 0
    assert answers[1].status_code == 409
    assert sql("SELECT count(*) AS n FROM messages WHERE user_id = :id", id=other.id).n == 0
    assert sql("SELECT count(*) AS n FROM idempotency_keys WHERE user_id = :id", id=other.id).n == 0
    attempt(replies[0])
    assert send(other, other.open_room(), "hello", Idempotency_Key="one").status_code == 201
    sql(MAKE_PRO, id=one.id)
    assert regenerate(one, room_id, replies[0]).get_json()["error"] == "too_busy"


def test_prompt_refused_for_the_backlog_is_not_counted(busy_app: Flask, sign_in: Callable[..., Account]) -> None:
    full, account = sign_in(via=busy_app.test_client()), sign_in(via=busy_app.test_client())
    room_id = full.open_room()
    for _ in range(BACKLOG):
        full.prompt(room_id, "hello")

    assert send(account, account.open_room(), "hello").get_json()["error"] == "too_busy"

    assert account.daily_usage() == 0
    with busy_app.app_context():
        days = db.session.execute(
            text("SELECT FROM daily_usage JOIN users USING (number_hash) WHERE users.id = :id"), {"id": account.id}
        )
        assert days.all() == []


def test_backlog_stays_bounded_when_many_users_send_at_once(busy_app: Flask, sign_in: Callable[..., Account]) -> None:
    accounts = [sign_in(via=busy_app.test_client()) for _ in range(12)]
    rooms = [account.open_room() for account in accounts]

    answers = race(12, lambda index: send(accounts[index], rooms[index], "hello").status_code)

    # Users do not wait for each other: a race may take it over the bound by as many as there are at once.
    assert set(answers) <= {201, 503}
    assert answers.count(201) >= BACKLOG
    assert {send(account, room, "more").status_code for account, room in zip(accounts, rooms, strict=True)} == {503}


def test_refusal_leaves_the_cached_list_as_it_is(
    bounded_app: Flask, sign_in: Callable[..., Account], account: Account
) -> None:
    bounded, strangers_room = sign_in(via=bounded_app.test_client()), account.open_room()
    room_id = bounded.open_room()
    for _ in range(3):
        bounded.prompt(room_id, "hello")
    bounded.call("GET", "/chatroom")

    answers = [send(bounded, room_id, "one more"), send(bounded, strangers_room, "not mine")]

    assert [answer.status_code for answer in answers] == [429, 404]
    assert bounded.call("GET", "/chatroom").get_json()["cached"]
