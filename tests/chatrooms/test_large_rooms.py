"""Rooms of more messages than a request deletes: gone for everybody at once, and cleared by the sweeper."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock
from uuid import UUID

import psycopg2
import pytest
from flask import Flask
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError, OperationalError

from chatapi import extensions, metrics
from chatapi.breaker import CircuitOpenError
from chatapi.chatrooms import export, search, service, stops, stream
from chatapi.chatrooms.live import LiveReplies
from chatapi.extensions import db, in_transaction
from chatapi.replies import sweeper, titles
from chatapi.replies.sweeper import clear_rooms, run_sweeper
from tests.chatrooms.support import beside, ids, send
from tests.support import Account, Services, race, wait_for

LEFT = """
    SELECT (SELECT count(*) FROM messages WHERE room_id = :id) AS messages,
           (SELECT count(*) FROM reply_jobs WHERE room_id = :id) AS jobs,
           (SELECT count(*) FROM chatrooms WHERE id = :id) AS rooms
"""


@pytest.fixture(autouse=True)
def _large_at_two_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "DELETED_AT_ONCE", 2)


@pytest.fixture
def left(sql: Callable[..., Any]) -> Callable[[str], tuple[int, ...]]:
    """Return what counts the messages, jobs and rooms that PostgreSQL still has of a room."""
    return lambda room_id: tuple(sql(LEFT, id=room_id))


@pytest.fixture
def sweep_up(app: Flask) -> Callable[[], None]:
    def sweep_up() -> None:
        with app.app_context():
            clear_rooms()

    return sweep_up


def delete(account: Account, room_id: str) -> None:
    assert account.call("DELETE", f"/chatroom/{room_id}").get_json() == {"message": "Chatroom deleted"}


def add_messages(app: Flask, room_id: str, count: int, content: str = "hello") -> None:
    """Add finished messages to a room, and count them, as the service does."""
    with app.app_context():
        db.session.execute(
            text(
                "WITH room AS (UPDATE chatrooms SET seq = seq + :count, message_count = message_count + :count"
                " WHERE id = :room RETURNING id, user_id, seq - :count AS base)"
                " INSERT INTO messages (id, room_id, user_id, seq, message_type, content, status)"
                " SELECT gen_random_uuid(), id, user_id, base + n, 'user', :content, 'completed'"
                " FROM room, generate_series(1, :count) AS n"
            ),
            {"room": room_id, "count": count, "content": content},
        )
        db.session.commit()


def test_room_is_gone_for_its_owner_before_the_sweeper_comes(
    account: Account, attempt: Callable[..., None], left: Callable[[str], tuple[int, ...]]
) -> None:
    room_id = account.open_room(title="Okapi", description="numbats", system_instruction="Be kind")
    _, answered = ids(send(account, room_id, "quokka", Idempotency_Key="one"))
    attempt(answered)
    account.prompt(room_id, "pending")
    other = account.open_room(title="Other")

    delete(account, room_id)

    assert left(room_id) == (3, 0, 1)
    body = {"title": "mine"}
    for method, path, sent in (
        ("GET", "", None), ("PATCH", "", body), ("PUT", "", body), ("DELETE", "", None), ("GET", "/export", None),
        ("POST", "/message", {"content": "x"}), ("GET", f"/message/{answered}", None),
        ("GET", f"/message/{answered}/stream", None), ("POST", f"/message/{answered}/stop", None),
        ("POST", f"/message/{answered}/regenerate", None),
    ):  # fmt: skip
        assert account.call(method, f"/chatroom/{room_id}{path}", sent).status_code == 404, (method, path)
    assert send(account, room_id, "quokka", Idempotency_Key="one").status_code == 404
    assert [room["id"] for room in account.call("GET", "/chatroom").get_json()["chatrooms"]] == [other]
    for q in ("okapi", "numbats", "quokka", "pending"):
        assert account.call("GET", f"/chatroom?q={q}").get_json()["chatrooms"] == []
    stats = account.call("GET", "/user/me").get_json()["user"]["stats"]
    assert stats == {"chatroom_count": 1, "message_count": 0}
    exported = account.call("GET", "/user/me/export").get_data(as_text=True)
    assert not [word for word in ("Okapi", "numbats", "quokka", "Be kind") if word in exported]


def test_title_and_instructions_do_not_wait_for_the_sweeper(
    app: Flask, account: Account, sql: Callable[..., Any]
) -> None:
    room_id = account.open_room(title="Okapi", description="numbats", system_instruction="Be kind")
    add_messages(app, room_id, 3)

    delete(account, room_id)

    room = sql("SELECT title, description, system_instruction, user_id FROM chatrooms WHERE id = :id", id=room_id)
    assert tuple(room) == (None, None, None, None)


def test_sweeper_clears_what_is_left_batch_by_batch_and_nothing_else(
    app: Flask,
    account: Account,
    left: Callable[[str], tuple[int, ...]],
    sweep_up: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rooms = [account.open_room() for _ in range(3)]
    for room_id in rooms:
        add_messages(app, room_id, 7)
    for room_id in rooms[:2]:
        delete(account, room_id)
    monkeypatch.setattr(extensions, "DELETE_BATCH", 3)

    with app.app_context():
        assert in_transaction(service.prune_rooms) == 3
    sweep_up()

    assert [left(room_id) for room_id in rooms] == [(0, 0, 0), (0, 0, 0), (7, 0, 1)]


def test_sweeper_does_it_by_itself(
    app: Flask, account: Account, left: Callable[[str], tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "started", lambda _: None)  # It is no process of its own here.
    room_id = account.open_room()
    add_messages(app, room_id, 3)
    delete(account, room_id)
    stop = threading.Event()

    def run() -> None:
        with app.app_context():
            run_sweeper(stop)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run)
        try:
            wait_for(lambda: left(room_id) == (0, 0, 0), seconds=15)
        finally:
            stop.set()
        running.result()


@pytest.mark.parametrize(
    ("held", "rest"),
    [
        ("SELECT FROM messages WHERE room_id = %s LIMIT 1 FOR UPDATE", (1, 0, 1)),
        # Another sweeper, or the account's end: both go on to the messages, in an order of their own.
        ("SELECT FROM chatrooms WHERE id = %s FOR UPDATE", (3, 0, 1)),
    ],
)
def test_sweeper_passes_over_what_somebody_holds(
    app: Flask,
    services: Services,
    account: Account,
    left: Callable[[str], tuple[int, ...]],
    sweep_up: Callable[[], None],
    held: str,
    rest: tuple[int, ...],
) -> None:
    room_id = account.open_room()
    add_messages(app, room_id, 3)
    delete(account, room_id)

    with closing(psycopg2.connect(services.postgres.url)) as holder:
        holder.cursor().execute(held, [room_id])
        sweep_up()
        assert left(room_id) == rest
    sweep_up()

    assert left(room_id) == (0, 0, 0)


def test_sweeper_goes_on_when_clearing_fails(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    stop = threading.Event()

    def fail() -> None:
        done.append("cleared")
        raise OperationalError("DELETE", None, Exception("canceling statement due to statement timeout"))

    def sweep_thrice() -> int:
        done.append("swept")
        if done.count("swept") == 3:
            stop.set()
        return 0

    monkeypatch.setattr(metrics, "started", lambda _: None)
    monkeypatch.setattr(sweeper, "SWEEP_EVERY_SECONDS", 0.01)
    monkeypatch.setattr(sweeper, "sweep", sweep_thrice)
    monkeypatch.setattr(sweeper, "clean", lambda: done.append("cleaned"))
    monkeypatch.setattr(sweeper, "clear_rooms", fail)
    with app.app_context():
        sweeper.run_sweeper(stop)

    assert done == ["swept", "cleaned", "cleared", "swept", "swept"]


@pytest.mark.parametrize(("count", "messages"), [(2, 0), (3, 3)])
def test_request_deletes_as_many_messages_as_it_may(
    app: Flask, account: Account, left: Callable[[str], tuple[int, ...]], count: int, messages: int
) -> None:
    room_id = account.open_room()
    add_messages(app, room_id, count)

    delete(account, room_id)

    assert left(room_id)[0] == messages


def test_erasing_the_account_leaves_nothing_of_a_room_that_was_deleted_before(
    app: Flask, account: Account, left: Callable[[str], tuple[int, ...]]
) -> None:
    room_id = account.open_room()
    add_messages(app, room_id, 3)
    delete(account, room_id)

    assert account.call("DELETE", "/user/me").status_code == 204

    assert left(room_id) == (0, 0, 0)


@pytest.mark.parametrize("path", ["/chatroom/{room}/export", "/user/me/export"])
def test_export_shows_no_more_of_a_room_that_is_deleted_in_the_middle(
    unchecked: tuple[Flask, Account], path: str
) -> None:
    app, account = unchecked
    room_id = account.open_room()
    add_messages(app, room_id, 3 * export.MESSAGES_AT_ONCE, "x" * 1000)

    with account.client.get(path.format(room=room_id), headers=account.headers, buffered=False) as answer:
        pieces = [next(answer.iter_encoded())]
        delete(Account(account.id, account.mobile_number, account.token, app.test_client()), room_id)
        document = json.loads(b"".join([*pieces, *answer.iter_encoded()]))

    messages = document["messages"] if "messages" in document else document["chatrooms"][0]["messages"]
    assert len(messages) == export.MESSAGES_AT_ONCE  # The page that had been read by then.


def test_search_does_not_weigh_what_is_left(app: Flask, account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "MOST_MESSAGES", 2)
    kept, deleted = account.open_room(), account.open_room()
    add_messages(app, kept, 1, "okapi")
    add_messages(app, deleted, 5, "okapi, and newer")

    delete(account, deleted)

    assert [room["id"] for room in account.call("GET", "/chatroom?q=okapi").get_json()["chatrooms"]] == [kept]


def test_search_leaves_out_what_is_deleted_while_it_looks(
    app: Flask, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    room_id = account.open_room(title="numbats")
    add_messages(app, room_id, 3, "okapi")
    find = search._find

    def find_and_delete(*about: Any) -> Any:
        found = find(*about)
        race(1, lambda _: delete(beside(app, account), room_id))
        return found

    monkeypatch.setattr(search, "_find", find_and_delete)

    assert account.call("GET", "/chatroom?q=okapi").get_json()["chatrooms"] == []


def test_stream_ends_without_the_reply_of_a_room_that_is_deleted_unannounced(
    unchecked: tuple[Flask, Account], attempt: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    app, account = unchecked
    room_id = account.open_room()
    reply_id = account.prompt(room_id, "hello")
    add_messages(app, room_id, 1)
    monkeypatch.setattr(stream, "CHECK_EVERY_SECONDS", 1.0)
    monkeypatch.setattr(LiveReplies, "read", Mock(side_effect=CircuitOpenError))

    path = f"/chatroom/{room_id}/message/{reply_id}/stream"
    with account.client.get(path, headers=account.headers, buffered=False) as answer:
        pieces = answer.iter_encoded()
        next(pieces)
        attempt(reply_id)
        delete(beside(app, account), room_id)
        rest = b"".join(pieces)

    assert b"event:" not in rest


def test_stop_under_way_finds_nothing_when_the_room_is_deleted(
    app: Flask, account: Account, attempt: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    room_id = account.open_room()
    reply_id = account.prompt(room_id, "hello")
    add_messages(app, room_id, 1)

    def end_and_delete(_: UUID) -> bool:
        race(1, lambda _: (attempt(reply_id), delete(beside(app, account), room_id)))
        return False

    monkeypatch.setattr(stops, "_request_stop", end_and_delete)

    assert account.call("POST", f"/chatroom/{room_id}/message/{reply_id}/stop").status_code == 404


def test_whoever_waits_for_a_reply_does_not_get_it_from_a_deleted_room(
    app: Flask, account: Account, attempt: Callable[..., None]
) -> None:
    room_id = account.open_room()
    reply_id = account.prompt(room_id, "hello")
    attempt(reply_id)
    add_messages(app, room_id, 1)

    with app.app_context():
        assert stream._look(UUID(reply_id)) is not None
    delete(account, room_id)
    with app.app_context():
        assert stream._look(UUID(reply_id)) is None


def test_model_is_not_asked_for_a_title_of_what_is_left(
    app: Flask, account: Account, attempt: Callable[..., None], sql: Callable[..., Any]
) -> None:
    room_id = account.open_room()
    attempt(account.prompt(room_id, "hello"))
    add_messages(app, room_id, 1)
    asked: list[object] = []
    model = SimpleNamespace(generate=lambda *about: asked.append(about))

    with app.app_context():
        assert titles.wants_title(UUID(room_id))
        delete(account, room_id)
        assert not titles.wants_title(UUID(room_id))
        titles.title_room(UUID(room_id), model)  # type: ignore[arg-type]

    assert asked == []
    assert sql("SELECT title FROM chatrooms WHERE id = :id", id=room_id).title is None


@pytest.mark.parametrize(("owners", "is_taken"), [(0, False), (1, True), (2, False)])
def test_room_has_an_owner_or_had_one(account: Account, sql: Callable[..., Any], owners: int, is_taken: bool) -> None:
    statement = "INSERT INTO chatrooms (id, user_id, former_user_id) VALUES (gen_random_uuid(), :user, :former)"

    with nullcontext() if is_taken else pytest.raises(IntegrityError):
        sql(statement, user=account.id if owners > 0 else None, former=account.id if owners > 1 else None)
