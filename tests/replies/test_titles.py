"""Rooms without a title get one from the model, whatever else happens meanwhile."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from flask import Flask

from chatapi.broker import NAMESPACE
from chatapi.dev.gemini_standin import Fault, GeminiStandin
from chatapi.extensions import db
from chatapi.ids import uuid7
from chatapi.replies import titles
from chatapi.replies.gemini.base import Answer, GeminiError, GeminiRejected, GeminiRetryable, Prompt
from chatapi.replies.gemini.generativeai import GenerativeAIClient
from chatapi.upstream.calls import UpstreamCall
from tests.support import Account, race, wait_for


class ScriptedClient:
    """A model that answers with `answer`, or raises it, once `meanwhile` has happened; it notes what it was asked."""

    def __init__(self, answer: str | GeminiError = "A title", meanwhile: Callable[[], object] = lambda: None) -> None:
        self.answer = answer
        self.meanwhile = meanwhile
        self.asked: list[tuple[Prompt, UpstreamCall]] = []

    def generate(self, prompt: Prompt, call: UpstreamCall) -> Answer:
        self.asked.append((prompt, call))
        self.meanwhile()
        if isinstance(self.answer, GeminiError):
            raise self.answer
        return Answer(self.answer, prompt.model, 1, 1)

    def stream(self, prompt: Prompt, call: UpstreamCall, on_text: Callable[[str], None]) -> Answer:
        raise NotImplementedError

    def close(self) -> None:
        pass


@pytest.fixture
def title(app: Flask) -> Callable[..., None]:
    """Return what gives a room a title, as the actor does."""

    def title(room_id: str, client: Any, via: Flask = app) -> None:
        with via.app_context():
            titles.title_room(UUID(room_id), client)

    return title


@pytest.fixture
def exchange(account: Account, sql: Callable[..., Any]) -> Callable[..., str]:
    """Return what has a prompt answered; it returns the id of the room."""

    def exchange(
        prompt: str = "where to go?", answer: str = "To Rome.", status: str = "completed", room_id: str | None = None
    ) -> str:
        room_id = room_id or account.open_room()
        reply_id = account.prompt(room_id, prompt)
        sql("UPDATE messages SET status = :status, content = :content WHERE id = :id",
            status=status, content=answer, id=reply_id)  # fmt: skip
        sql("DELETE FROM reply_jobs WHERE message_id = :id", id=reply_id)
        return room_id

    return exchange


def room_of(account: Account, room_id: str) -> dict[str, Any]:
    room: dict[str, Any] = account.call("GET", f"/chatroom/{room_id}").get_json()["chatroom"]
    return room


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[Any]:
    return [record.msg for record in caplog.records if record.levelno >= logging.WARNING]


def test_room_is_titled_by_the_model_over_the_wire(
    account: Account,
    gemini: GeminiStandin,
    model: GenerativeAIClient,
    title: Callable[..., None],
    exchange: Callable[..., str],
) -> None:
    room_id = exchange("where shall we go this summer, my friend?")
    gemini.forget_requests()

    title(room_id, model)

    (request,) = gemini.requests
    assert request.method == "generateContent"
    assert request.body["systemInstruction"]["parts"][0]["text"].startswith("Write a title")
    assert room_of(account, room_id)["title"] == "where shall we go this summer,"


def test_title_shows_in_the_list_at_once_and_moves_no_room(
    account: Account, title: Callable[..., None], exchange: Callable[..., str]
) -> None:
    room_id, newer = exchange(), account.open_room(title="newer")
    assert account.call("GET", "/chatroom").get_json()["cached"] is False
    assert account.call("GET", "/chatroom").get_json()["cached"] is True
    before = room_of(account, room_id)

    title(room_id, ScriptedClient("A trip to Rome"))

    page = account.call("GET", "/chatroom").get_json()
    assert page["cached"] is False
    assert [(room["id"], room["title"]) for room in page["chatrooms"]] == [
        (newer, "newer"),
        (room_id, "A trip to Rome"),
    ]
    after = room_of(account, room_id)
    assert after["updated_at"] > before["updated_at"]
    assert (after["message_count"], after["last_message_at"]) == (before["message_count"], before["last_message_at"])


def test_title_is_not_counted(account: Account, title: Callable[..., None], exchange: Callable[..., str]) -> None:
    room_id = exchange()

    title(room_id, ScriptedClient())

    assert account.daily_usage() == 1


def test_title_is_asked_for_the_first_exchange_shortened(
    app: Flask, account: Account, title: Callable[..., None], exchange: Callable[..., str]
) -> None:
    room_id = exchange("failed prompt", "", "failed")
    exchange("first " + "x" * 4000, "answer " + "y" * 4000, room_id=room_id)
    exchange("second", "another", room_id=room_id)
    client = ScriptedClient()

    title(room_id, client)

    ((prompt, call),) = client.asked
    (turn,) = prompt.turns
    assert turn.text == f"first {'x' * 994}\n\n---\n\nanswer {'y' * 993}"
    assert prompt.model == app.config["GEMINI_MODEL"]
    assert prompt.max_output_tokens == titles.MOST_OUTPUT_TOKENS
    assert 14 < call.seconds <= 15


@pytest.mark.parametrize("case", ["titled", "pending", "failed", "empty", "unknown"])
def test_model_is_not_asked_when_there_is_nothing_to_title(
    account: Account, title: Callable[..., None], exchange: Callable[..., str], case: str
) -> None:
    client = ScriptedClient()
    room_id = {
        "titled": lambda: exchange(room_id=account.open_room(title="mine")),
        "pending": lambda: exchange(answer="", status="pending"),
        "failed": lambda: exchange(answer="", status="failed"),
        "empty": account.open_room,
        "unknown": lambda: str(uuid7()),
    }[case]()

    title(room_id, client)

    assert client.asked == []


def test_room_is_titled_once_when_it_is_done_many_times(
    account: Account, title: Callable[..., None], exchange: Callable[..., str]
) -> None:
    room_id = exchange()
    first, second = ScriptedClient("First"), ScriptedClient("Second")

    title(room_id, first)
    title(room_id, second)

    assert room_of(account, room_id)["title"] == "First"
    assert second.asked == []


def test_owners_title_stays_when_it_is_given_while_the_model_is_asked(
    account: Account, title: Callable[..., None], exchange: Callable[..., str]
) -> None:
    room_id = exchange()
    rename = lambda: account.call("PATCH", f"/chatroom/{room_id}", {"title": "mine"})  # noqa: E731

    title(room_id, ScriptedClient("The model's", meanwhile=rename))

    assert room_of(account, room_id)["title"] == "mine"


@pytest.mark.parametrize("what", ["room", "account"])
def test_nothing_breaks_when_the_room_goes_while_the_model_is_asked(
    account: Account,
    title: Callable[..., None],
    exchange: Callable[..., str],
    caplog: pytest.LogCaptureFixture,
    what: str,
) -> None:
    room_id = exchange()
    path = f"/chatroom/{room_id}" if what == "room" else "/user/me"
    client = ScriptedClient(meanwhile=lambda: account.call("DELETE", path))

    title(room_id, client)

    assert len(client.asked) == 1
    assert warnings_in(caplog) == []


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (GeminiRetryable("Gemini answered 503", status=503), "GeminiRetryable"),
        (GeminiRejected("Gemini blocked the prompt", reason="safety_blocked", status=200), "GeminiRejected"),
        ("\u202e\n---", "not_a_title"),
    ],
)
def test_room_stays_untitled_after_one_attempt_when_the_model_fails(
    account: Account,
    title: Callable[..., None],
    exchange: Callable[..., str],
    caplog: pytest.LogCaptureFixture,
    answer: Any,
    reason: str,
) -> None:
    room_id = exchange("a secret prompt")
    client = ScriptedClient(answer)

    title(room_id, client)

    assert len(client.asked) == 1
    assert room_of(account, room_id)["title"] is None
    (said,) = warnings_in(caplog)
    assert (said["event"], said["reason"]) == ("title_failed", reason)
    assert "secret" not in caplog.text
    title(room_id, ScriptedClient("The next time"))
    assert room_of(account, room_id)["title"] == "The next time"


def test_upstream_is_asked_once_when_it_is_in_trouble(
    account: Account,
    gemini: GeminiStandin,
    model: GenerativeAIClient,
    title: Callable[..., None],
    exchange: Callable[..., str],
) -> None:
    room_id = exchange()
    gemini.forget_requests()
    gemini.add_fault(Fault("503"))

    title(room_id, model)

    assert len(gemini.requests) == 1
    assert room_of(account, room_id)["title"] is None


def test_fallback_titles_when_the_default_model_is_gone(
    make_app: Callable[..., Flask],
    account: Account,
    gemini: GeminiStandin,
    model: GenerativeAIClient,
    title: Callable[..., None],
    exchange: Callable[..., str],
) -> None:
    app = make_app(GEMINI_MODELS=json.dumps([{"alias": "a", "model": "gone-title", "fallback": ["there"]}]))
    room_id = exchange("going home")
    gemini.forget_requests()

    title(room_id, model, via=app)

    assert [request.model for request in gemini.requests] == ["gone-title", "there"]
    assert room_of(account, room_id)["title"] == "going home"


def test_no_connection_is_held_while_the_model_is_asked(
    app: Flask, title: Callable[..., None], exchange: Callable[..., str]
) -> None:
    room_id = exchange()
    held: list[int] = []
    note = lambda: held.append(db.engine.pool.checkedout())  # type: ignore[attr-defined]  # noqa: E731

    title(room_id, ScriptedClient(meanwhile=note))

    assert held == [0]


def test_few_titles_are_made_at_once_and_all_of_them_in_the_end(
    account: Account, sql: Callable[..., Any], title: Callable[..., None], exchange: Callable[..., str]
) -> None:
    sql("UPDATE users SET pro_until = now() + interval '1 hour' WHERE id = :id", id=account.id)
    rooms = [exchange() for _ in range(10)]
    is_over, done = threading.Event(), []
    client = ScriptedClient(meanwhile=lambda: is_over.wait(30))

    def work(index: int) -> None:
        if index == 10:
            wait_for(lambda: len(done) == 10 - titles.MOST_AT_ONCE and len(client.asked) == titles.MOST_AT_ONCE)
            is_over.set()
        else:
            title(rooms[index], client)
            done.append(index)

    race(11, work)

    assert len(client.asked) == 10
    assert all(room_of(account, room_id)["title"] for room_id in rooms)


def test_line_goes_on_when_a_client_breaks(
    account: Account, title: Callable[..., None], exchange: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    room_id = exchange()
    broken = ScriptedClient(meanwhile=lambda: 1 / 0)
    for _ in range(titles.MOST_AT_ONCE + 1):
        title(room_id, broken)
    assert len(warnings_in(caplog)) == titles.MOST_AT_ONCE + 1

    title(room_id, ScriptedClient())

    assert room_of(account, room_id)["title"]


def test_title_is_wanted_by_rooms_that_are_there_and_have_none(in_app: None, account: Account) -> None:
    assert titles.wants_title(UUID(account.open_room())) is True
    assert titles.wants_title(UUID(account.open_room(title="mine"))) is False
    assert titles.wants_title(uuid7()) is False
    assert db.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


def test_ring_puts_the_room_on_the_queue_of_titles(app: Flask) -> None:
    room_id = uuid7()
    client = app.extensions["broker"].client
    queue = f"{NAMESPACE}:{titles.TITLES_QUEUE}"
    client.delete(queue, f"{queue}.msgs")

    with app.app_context():
        titles.ring_title(room_id)

    (message_id,) = client.lrange(queue, 0, -1)
    message = json.loads(client.hget(f"{queue}.msgs", message_id))
    assert (message["actor_name"], message["args"]) == (titles.TITLE_ROOM, [str(room_id)])
    client.delete(queue, f"{queue}.msgs")
