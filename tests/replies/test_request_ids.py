"""A prompt's request in the log of whoever works on its reply, and in the calls to the model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pytest
import structlog
from flask import Flask

from chatapi.broker import NAMESPACE
from chatapi.chatrooms.endings import Ending, conclude
from chatapi.dev.gemini_standin import Fault, GeminiStandin
from chatapi.extensions import in_transaction
from chatapi.replies import interventions, jobs, titles
from chatapi.replies.gemini.generativeai import GenerativeAIClient
from chatapi.replies.leases import LeaseKeeper
from chatapi.replies.sweeper import end_overdue
from tests.subscriptions.support import logged
from tests.support import Account, wait_for

Ask = Callable[..., str]


@pytest.fixture(autouse=True)
def _nobodys_thread() -> Iterator[None]:
    """Leave to later tests a thread that works for nobody."""
    yield
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def ask(account: Account) -> Ask:
    """Return what sends a prompt under an id of its own, and returns its reply's; the thread forgets the request."""

    def ask(room_id: str, request_id: str, content: str = "hello", **headers: str) -> str:
        answer = account.client.post(
            f"/chatroom/{room_id}/message",
            json={"content": content},
            headers={**account.headers, "X-Request-ID": request_id, **headers},
        )
        assert answer.status_code == 201, answer.get_json()
        structlog.contextvars.clear_contextvars()
        reply_id: str = answer.get_json()["ai_message"]["id"]
        return reply_id

    return ask


def request_of(sql: Callable[..., Any], reply_id: str) -> Any:
    return sql("SELECT request_id FROM reply_jobs WHERE message_id = :id", id=reply_id).request_id


def the_line(caplog: pytest.LogCaptureFixture, event: str, reply_id: str) -> dict[str, Any]:
    (line,) = [line for line in logged(caplog, event) if line.get("reply_id") == reply_id]
    return line


def test_request_is_kept_with_the_job_and_stays_when_its_key_is_used_again(
    account: Account, ask: Ask, sql: Callable[..., Any]
) -> None:
    room_id = account.open_room()
    key = {"Idempotency-Key": "once"}

    reply_id = ask(room_id, "the-first", **key)
    assert ask(room_id, "the-second", **key) == reply_id

    assert request_of(sql, reply_id) == "the-first"


def test_attempts_are_logged_and_asked_of_the_model_under_the_request(
    account: Account,
    gemini: GeminiStandin,
    ask: Ask,
    attempt: Callable[..., None],
    make_due: Callable[[str], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    gemini.add_fault(Fault("503", times=1))
    reply_id = ask(account.open_room(title="known"), "followed")

    attempt(reply_id)
    structlog.contextvars.clear_contextvars()
    make_due(reply_id)
    attempt(reply_id)

    lines = [line for event in ("reply_attempt_began", "reply_attempt_failed") for line in logged(caplog, event)]
    assert [line["request_id"] for line in lines if line["reply_id"] == reply_id] == ["followed"] * 3
    assert the_line(caplog, "reply_ended", reply_id)["request_id"] == "followed"
    assert [each.headers["x-request-id"] for each in gemini.requests] == ["followed"] * 2


def test_job_of_an_earlier_release_is_answered_when_it_names_no_request(
    account: Account, gemini: GeminiStandin, ask: Ask, attempt: Callable[..., None], sql: Callable[..., Any]
) -> None:
    room_id = account.open_room(title="known")
    reply_id = ask(room_id, "forgotten")
    sql("UPDATE reply_jobs SET request_id = NULL WHERE message_id = :id", id=reply_id)

    attempt(reply_id)

    assert account.read(room_id, reply_id)["status"] == "completed"
    assert ["x-request-id" in each.headers for each in gemini.requests] == [False]


def test_lease_that_is_lost_is_logged_under_the_request_though_another_thread_says_so(
    app: Flask,
    account: Account,
    ask: Ask,
    keeper: LeaseKeeper,
    sql: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    reply_id = ask(account.open_room(), "loses-its-worker")
    with app.app_context():
        lease = in_transaction(lambda: jobs.take_lease(UUID(reply_id)))
    assert lease is not None

    with keeper.hold(lease):
        sql("UPDATE reply_jobs SET lease_token = 0 WHERE message_id = :id", id=reply_id)
        wait_for(lambda: logged(caplog, "lease_lost"), seconds=5)
    with app.app_context():
        assert not conclude(lease, Ending("completed", content="late"))

    assert the_line(caplog, "lease_lost", reply_id)["request_id"] == "loses-its-worker"
    assert the_line(caplog, "late_reply_refused", reply_id)["request_id"] == "loses-its-worker"
    sql("DELETE FROM reply_jobs WHERE message_id = :id", id=reply_id)


def test_replies_that_the_sweeper_ends_are_logged_each_under_its_own_request(
    app: Flask, account: Account, ask: Ask, sql: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    replies = {ask(account.open_room(), name): name for name in ("the-one", "the-other")}
    for reply_id in replies:
        sql("UPDATE reply_jobs SET created_at = now() - interval '1 day' WHERE message_id = :id", id=reply_id)

    with app.app_context():
        assert end_overdue() >= 2

    assert {reply_id: the_line(caplog, "reply_ended", reply_id)["request_id"] for reply_id in replies} == replies
    assert structlog.contextvars.get_contextvars() == {}


def test_what_an_operator_does_to_a_reply_is_logged_under_its_request(
    app: Flask, account: Account, ask: Ask, sql: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    reply_id = ask(account.open_room(), "needs-an-operator")
    waits = "UPDATE reply_jobs SET attempts = 1, run_at = now() + interval '1 hour' WHERE message_id = :id"
    sql(waits, id=reply_id)

    with app.app_context():
        interventions.retry_reply(UUID(reply_id))
        interventions.fail_reply(UUID(reply_id), "timed_out")

    actions = [line["action"] for line in logged(caplog, "audit") if line.get("request_id") == "needs-an-operator"]
    assert actions == ["reply_retried", "reply_failed"]
    assert the_line(caplog, "reply_ended", reply_id)["request_id"] == "needs-an-operator"


def test_title_is_asked_for_under_the_request_of_the_reply_before_it(
    app: Flask,
    account: Account,
    gemini: GeminiStandin,
    model: GenerativeAIClient,
    ask: Ask,
    attempt: Callable[..., None],
) -> None:
    room_id = account.open_room()
    with app.app_context():
        queue = app.extensions["broker"].client
        queue.delete(f"{NAMESPACE}:{titles.TITLES_QUEUE}", f"{NAMESPACE}:{titles.TITLES_QUEUE}.msgs")
    attempt(ask(room_id, "wants-a-title"))

    (message,) = [json.loads(raw) for raw in queue.hvals(f"{NAMESPACE}:{titles.TITLES_QUEUE}.msgs")]
    gemini.forget_requests()
    with app.app_context():
        titles.title_room(UUID(message["args"][0]), model)

    assert message["args"] == [room_id]
    assert message["options"]["request_id"] == "wants-a-title"
    assert [each.headers["x-request-id"] for each in gemini.requests] == ["wants-a-title"]


def test_titles_in_line_are_each_asked_for_under_their_own_request(
    app: Flask,
    account: Account,
    gemini: GeminiStandin,
    model: GenerativeAIClient,
    ask: Ask,
    attempt: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rooms = [account.open_room() for _ in range(2)]
    for room_id in rooms:
        attempt(ask(room_id, "its-reply"))
    gemini.forget_requests()

    with app.app_context(), monkeypatch.context() as patch:
        patch.setattr(titles, "_at_work", titles.MOST_AT_ONCE)
        structlog.contextvars.bind_contextvars(request_id="waits-in-line")
        titles.title_room(UUID(rooms[0]), model)
        patch.setattr(titles, "_at_work", 0)
        structlog.contextvars.bind_contextvars(request_id="comes-later")
        titles.title_room(UUID(rooms[1]), model)

    assert [each.headers["x-request-id"] for each in gemini.requests] == ["waits-in-line", "comes-later"]
