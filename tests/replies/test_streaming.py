"""Following and awaiting replies while they are made: the way from the model's words to the client's events."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from flask import Flask

from chatapi.chatrooms.live import LiveReplies
from chatapi.chatrooms.message_routes import _wait_seconds
from chatapi.dev.embedded import free_port
from chatapi.dev.gemini_standin import Fault, GeminiStandin
from chatapi.extensions import db
from tests.support import Account, wait_for

Event = tuple[str, str, dict[str, Any]]


def events_in(body: str) -> list[Event]:
    """Return (id, name, data) of each event, by the rules of the WHATWG for what we send."""
    found = []
    for block in body.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
        if "data" in fields:
            found.append((fields["id"], fields["event"], json.loads(fields["data"])))
    return found


def text_of(events: list[Event]) -> str:
    """Return the deltas since the last reset, joined."""
    text = ""
    for _, name, data in events:
        text = "" if name == "reset" else text + (data["text"] if name == "delta" else "")
    return text


def names(events: list[Event]) -> list[str]:
    return [name for _, name, _ in events]


@pytest.fixture
def stream(account: Account) -> Callable[..., Any]:
    """Return what follows a reply to the end of its stream."""

    def stream(room_id: str, reply_id: str, last_event_id: str | None = None) -> Any:
        headers = {**account.headers, **({"Last-Event-ID": last_event_id} if last_event_id else {})}
        return account.client.get(f"/chatroom/{room_id}/message/{reply_id}/stream", headers=headers)

    return stream


@contextmanager
def meanwhile(work: Callable[[], Any]) -> Iterator[None]:
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def test_reply_is_streamed_while_it_is_made(
    account: Account, gemini: GeminiStandin, attempt: Callable[..., None], stream: Callable[..., Any]
) -> None:
    room_id = account.open_room()
    reply_id = account.prompt(room_id, "hello [[words=60 chunk_ms=25]]")

    began_at = time.monotonic()
    with meanwhile(lambda: attempt(reply_id)):
        answer = stream(room_id, reply_id)

    assert time.monotonic() - began_at < 8  # And not only when the reader looks for itself.
    events = events_in(answer.text)
    reply = account.read(room_id, reply_id)
    assert names(events)[-1] == "done"
    assert len(events) > 3
    assert text_of(events) == reply["content"]
    assert events[-1][2] == {"message": reply}
    assert answer.mimetype == "text/event-stream"
    assert {"no-store", "no-transform"} <= set(answer.headers["Cache-Control"].split(", "))
    assert answer.headers["X-Accel-Buffering"] == "no"


@pytest.mark.usefixtures("gemini")
def test_finished_reply_replays_at_once_from_any_event(
    account: Account, attempt: Callable[..., None], stream: Callable[..., Any]
) -> None:
    room_id = account.open_room()
    reply_id = account.prompt(room_id, "hello [[words=60 chunk_ms=25]]")
    with meanwhile(lambda: attempt(reply_id)):
        live = events_in(stream(room_id, reply_id).text)

    whole = events_in(stream(room_id, reply_id).text)
    assert names(whole) == ["delta", "done"]
    assert text_of(whole) == text_of(live)
    for index, (last_event_id, _, _) in enumerate(live[:-1]):
        rest = events_in(stream(room_id, reply_id, last_event_id).text)
        assert text_of(live[: index + 1] + rest) == text_of(live)
        assert "reset" not in names(rest)
    assert stream(room_id, reply_id, live[-1][0]).status_code == 204
    assert stream(room_id, reply_id, whole[-1][0]).status_code == 204


def test_next_attempt_resets_the_stream_of_those_who_follow(
    account: Account,
    gemini: GeminiStandin,
    attempt: Callable[..., None],
    make_due: Callable[[str], None],
    stream: Callable[..., Any],
) -> None:
    gemini.add_fault(Fault("cut", times=1, chunk_ms=150))
    room_id = account.open_room()
    reply_id = account.prompt(room_id, "a longer prompt, so that there are several pieces of text")

    def two_attempts() -> None:
        attempt(reply_id)
        make_due(reply_id)
        attempt(reply_id)

    with meanwhile(two_attempts):
        events = events_in(stream(room_id, reply_id).text)

    assert names(events)[0] == "delta"
    assert names(events).count("reset") == 1
    assert names(events)[-1] == "done"
    assert text_of(events) == account.read(room_id, reply_id)["content"]


@pytest.mark.usefixtures("gemini")
@pytest.mark.parametrize(("kind", "error"), [("400", "upstream_rejected"), ("safety", "safety_blocked")])
def test_failed_reply_ends_its_stream_with_the_error_and_no_text(
    account: Account, attempt: Callable[..., None], stream: Callable[..., Any], kind: str, error: str
) -> None:
    room_id = account.open_room()
    reply_id = account.prompt(room_id, f"hello [[fault={kind} chunk_ms=300]]")

    with meanwhile(lambda: attempt(reply_id)):
        events = events_in(stream(room_id, reply_id).text)

    assert names(events)[-1] == "error"
    assert text_of(events) == account.read(room_id, reply_id)["content"] == ""
    assert events[-1][2]["error"] == error
    assert events[-1][2]["detail"]
    assert events[-1][2]["message"]["status"] == "failed"


def test_prompt_has_no_stream(account: Account) -> None:
    room_id = account.open_room()
    prompt_id = account.send(room_id, "hello").get_json()["user_message"]["id"]

    answer = account.call("GET", f"/chatroom/{room_id}/message/{prompt_id}/stream")

    assert (answer.status_code, answer.get_json()["error"]) == (409, "not_a_reply")


def test_stream_is_refused_past_the_bound_and_open_again_after(
    make_app: Callable[..., Flask], sign_in: Callable[..., Account]
) -> None:
    app = make_app(MAX_OPEN_STREAMS="1")
    account = sign_in(via=app.test_client())
    room_id = account.open_room()
    reply_id = account.prompt(room_id, "hello")
    path = f"/chatroom/{room_id}/message/{reply_id}/stream"

    opened = account.client.get(path, headers=account.headers, buffered=False)
    refused = account.call("GET", path)
    opened.close()
    again = account.client.get(path, headers=account.headers, buffered=False)
    again.close()

    assert opened.status_code == 200
    assert (refused.status_code, refused.get_json()["error"]) == (503, "too_busy")
    assert int(refused.headers["Retry-After"]) > 0
    assert again.status_code == 200


def test_open_stream_holds_no_database_connection(app: Flask, account: Account) -> None:
    room_id = account.open_room()
    reply_id = account.prompt(room_id, "hello")
    path = f"/chatroom/{room_id}/message/{reply_id}/stream"

    answer = account.client.get(path, headers=account.headers, buffered=False)
    assert next(iter(answer.response)) == b"retry: 1000\n\n"
    with app.app_context():
        held = db.engine.pool.checkedout()  # type: ignore[attr-defined]
    answer.close()

    assert held == 0


@pytest.mark.parametrize("how", ["signed out", "disabled"])
def test_stream_ends_when_the_session_does(
    account: Account,
    stream: Callable[..., Any],
    sql: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    monkeypatch.setattr("chatapi.chatrooms.stream.CHECK_EVERY_SECONDS", 0.1)
    monkeypatch.setattr("chatapi.chatrooms.stream.MOST_WAIT_SECONDS", 0.3)
    sql("INSERT INTO sessions (id, user_id, expires_at) SELECT gen_random_uuid(), user_id, expires_at FROM sessions "
        "WHERE user_id = :id", id=account.id)  # fmt: skip
    room_id = account.open_room()
    reply_id = account.prompt(room_id, "hello")

    def end() -> None:
        time.sleep(0.5)
        if how == "disabled":
            sql("UPDATE users SET disabled_at = now() WHERE id = :id", id=account.id)
        else:
            account.call("POST", "/auth/logout")

    with meanwhile(end):
        answer = stream(room_id, reply_id)

    assert events_in(answer.text) == []
    assert ": ping" in answer.text


def test_streams_end_and_nobody_waits_when_the_process_is_asked_to_stop(
    make_app: Callable[..., Flask], sign_in: Callable[..., Account], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatapi.chatrooms.stream.MOST_WAIT_SECONDS", 0.3)
    app = make_app()
    account = sign_in(via=app.test_client())
    room_id = account.open_room()
    reply_id = account.prompt(room_id, "hello")

    def stop() -> None:
        time.sleep(0.3)
        app.extensions["waiting_room"].is_closing = True

    with meanwhile(stop):
        streamed = account.call("GET", f"/chatroom/{room_id}/message/{reply_id}/stream")
    began_at = time.monotonic()
    late = account.call("GET", f"/chatroom/{room_id}/message/{reply_id}/stream")
    sent = send(account, room_id, "another", "wait=30")

    assert events_in(streamed.text) == []
    assert (late.status_code, late.text) == (200, ": ping\n\n")  # Its reader comes back, to another process.
    assert sent.get_json()["ai_message"]["status"] == "pending"
    assert time.monotonic() - began_at < 5


def send(account: Account, room_id: str, content: str, prefer: str) -> Any:
    headers = {**account.headers, "Prefer": prefer}
    return account.client.post(f"/chatroom/{room_id}/message", json={"content": content}, headers=headers)


@pytest.mark.usefixtures("gemini")
@pytest.mark.parametrize(("content", "status"), [("hello", "completed"), ("hello [[fault=400]]", "failed")])
def test_waiting_brings_prompt_and_reply_in_one_answer(
    app: Flask,
    account: Account,
    attempt: Callable[..., None],
    sql: Callable[..., Any],
    content: str,
    status: str,
) -> None:
    room_id = account.open_room()

    def answer_it() -> None:
        row = wait_for(lambda: sql("SELECT message_id FROM reply_jobs WHERE room_id = :id", id=room_id))
        attempt(str(row.message_id))

    began_at = time.monotonic()
    with meanwhile(answer_it):
        answer = send(account, room_id, content, "wait=30")

    assert time.monotonic() - began_at < 15
    assert answer.status_code == 201
    assert answer.headers["Preference-Applied"] == "wait=30"
    assert answer.get_json()["ai_message"]["status"] == status
    assert answer.get_json()["ai_message"] == account.read(room_id, answer.get_json()["ai_message"]["id"])
    assert app.extensions["waiting_room"]._inside == 0


def test_stream_ends_at_once_when_the_room_is_deleted(account: Account, stream: Callable[..., Any]) -> None:
    room_id = account.open_room()
    reply_id = account.prompt(room_id, "hello")
    began_at = time.monotonic()

    with meanwhile(lambda: time.sleep(0.5) or account.call("DELETE", f"/chatroom/{room_id}")):
        answer = stream(room_id, reply_id)

    assert events_in(answer.text) == []
    assert time.monotonic() - began_at < 5


@pytest.mark.usefixtures("gemini")
def test_waiting_ends_with_the_reply_when_nobody_can_tell(
    make_app: Callable[..., Flask],
    sign_in: Callable[..., Account],
    attempt: Callable[..., None],
    sql: Callable[..., Any],
) -> None:
    app = make_app()
    app.extensions["live_replies"] = LiveReplies(f"redis://127.0.0.1:{free_port()}/0", 10)
    account = sign_in(via=app.test_client())
    room_id = account.open_room()

    def answer_it() -> None:
        row = wait_for(lambda: sql("SELECT message_id FROM reply_jobs WHERE room_id = :id", id=room_id))
        attempt(str(row.message_id))

    began_at = time.monotonic()
    with meanwhile(answer_it):
        answer = send(account, room_id, "hello", "wait=30")

    assert answer.get_json()["ai_message"]["status"] == "completed"
    assert time.monotonic() - began_at < 15


def test_waiting_ends_with_the_pending_reply_when_the_time_is_up(account: Account) -> None:
    began_at = time.monotonic()
    answer = send(account, account.open_room(), "hello", "wait=1")

    assert answer.status_code == 201
    assert answer.get_json()["ai_message"]["status"] == "pending"
    assert "Preference-Applied" not in answer.headers
    assert 0.9 < time.monotonic() - began_at < 5


def test_pending_reply_comes_at_once_when_there_is_no_room_to_wait(
    make_app: Callable[..., Flask], sign_in: Callable[..., Account]
) -> None:
    account = sign_in(via=make_app(MAX_OPEN_STREAMS="0").test_client())
    began_at = time.monotonic()

    answer = send(account, account.open_room(), "hello", "wait=30")

    assert (answer.status_code, answer.get_json()["ai_message"]["status"]) == (201, "pending")
    assert time.monotonic() - began_at < 5


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        ("wait=10", 10), ("WAIT = 10", 10), ('wait="10"', 10), ("respond-async, wait=10", 10), ("wait=10; x=y", 10),
        ("wait=5, wait=10", 5), ("wait=61", 60), ("wait=999999999", 60), ("wait=0", 0), ("", 0), ("wait", 0),
        ("wait=", 0), ("wait=-1", 0), ("wait=1.5", 0), ("wait=ten", 0), ("wait=99999999999999999999", 60),
        ("wait=٣", 0), ("await=10", 0), ("x=wait=10", 0), ('x="a, wait=3"', 0), ('wait="3', 0),
        ("wait=00000000000003", 3), (",;=,", 0),
    ],
)  # fmt: skip
def test_preference_is_read_as_rfc_7240_says_and_nonsense_is_ignored(prefer: str, seconds: int) -> None:
    assert _wait_seconds(prefer) == seconds
