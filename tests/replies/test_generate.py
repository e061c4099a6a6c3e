"""How a reply ends, with the real SDK against the stand-in, and what that does to rows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psycopg2
import pytest
from flask import Flask

from chatapi import metrics
from chatapi.broker import NAMESPACE
from chatapi.catalogue import Catalogue
from chatapi.dev.gemini_standin import Fault, GeminiStandin
from chatapi.replies.generate import backoff_seconds
from chatapi.replies.storable import storable
from chatapi.replies.titles import TITLES_QUEUE
from chatapi.replies.token_counter import token_counter
from tests.support import Account, Services


def test_reply_is_completed_with_text_model_and_usage(
    account: Account, gemini: GeminiStandin, attempt: Callable[..., None], sql: Callable[..., Any]
) -> None:
    room_id = account.open_room(system_instruction="Answer in rhyme")
    reply_id = account.prompt(room_id, "hello")

    attempt(reply_id)

    reply = account.read(room_id, reply_id)
    assert reply["status"] == "completed"
    assert 'You said: "hello"' in reply["content"]
    assert "Answer in rhyme" in reply["content"]
    assert reply["model"] == "gemini-3.5-flash"
    assert reply["usage"]["output_tokens"] > 0
    assert "error" not in reply
    assert sql("SELECT FROM reply_jobs WHERE message_id = :id", id=reply_id) is None
    assert account.daily_usage() == 1


def test_model_is_asked_with_the_rooms_whole_turns_only(
    account: Account, gemini: GeminiStandin, attempt: Callable[..., None], sql: Callable[..., Any]
) -> None:
    other_room = account.open_room(system_instruction="other")
    attempt(account.prompt(other_room, "in another room"))
    room_id = account.open_room(system_instruction="be brief")
    first, failing, last = (account.prompt(room_id, content) for content in ("one", "two [[fault=400]]", "three"))
    attempt(first)
    attempt(failing)
    assert account.read(room_id, failing)["status"] == "failed"
    gemini.forget_requests()

    attempt(last)

    (request,) = gemini.requests
    contents = [(turn["role"], turn["parts"][0]["text"]) for turn in request.body["contents"]]
    assert contents == [("user", "one"), ("model", account.read(room_id, first)["content"]), ("user", "three")]
    assert request.body["systemInstruction"]["parts"][0]["text"] == "be brief"


@pytest.mark.parametrize(
    ("fault", "error", "used"),
    [
        (Fault("400"), "upstream_rejected", 0),
        (Fault("401"), "upstream_rejected", 0),
        (Fault("403"), "upstream_rejected", 0),
        (Fault("404"), "upstream_rejected", 0),
        (Fault("too_long"), "context_too_long", 0),
        (Fault("blocked"), "safety_blocked", 1),
        (Fault("safety"), "safety_blocked", 1),
    ],
)
def test_reply_fails_at_once_when_trying_again_is_no_use(
    account: Account, gemini: GeminiStandin, attempt: Callable[..., None], fault: Fault, error: str, used: int
) -> None:
    gemini.add_fault(fault)
    room_id = account.open_room()
    reply_id = account.prompt(room_id, "hello")

    attempt(reply_id)

    reply = account.read(room_id, reply_id)
    assert (reply["status"], reply["error"], reply["content"]) == ("failed", error, "")
    assert account.daily_usage() == used
    assert len(gemini.requests) == 1


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("429", "upstream_unavailable"), ("500", "upstream_unavailable"), ("503", "upstream_unavailable"),
        ("504", "timed_out"), ("cut", "upstream_unavailable"),
        pytest.param("hang", "timed_out", marks=pytest.mark.slow),
        pytest.param("drip", "timed_out", marks=pytest.mark.slow),
        ("empty", "upstream_unavailable"), ("empty_text", "upstream_unavailable"), ("bad_json", "upstream_unavailable"),
        ("no_finish", "upstream_unavailable"),
    ],
)  # fmt: skip
def test_reply_is_tried_again_and_fails_at_last_when_trouble_may_pass(
    account: Account,
    gemini: GeminiStandin,
    attempt: Callable[..., None],
    make_due: Callable[[str], None],
    kind: str,
    error: str,
) -> None:
    gemini.add_fault(Fault(kind))
    room_id = account.open_room()
    reply_id = account.prompt(room_id, "hello")
    for _ in range(4):
        attempt(reply_id)
        assert account.read(room_id, reply_id)["status"] == "processing"
        assert account.daily_usage() == 1
        make_due(reply_id)

    attempt(reply_id)

    reply = account.read(room_id, reply_id)
    assert (reply["status"], reply["error"]) == ("failed", error)
    assert len(gemini.requests) == 5
    assert account.daily_usage() == 0
    attempt(reply_id)
    assert account.daily_usage() == 0


def test_reply_completes_when_trouble_passes(
    account: Account, gemini: GeminiStandin, attempt: Callable[..., None], make_due: Callable[[str], None]
) -> None:
    gemini.add_fault(Fault("503", times=2))
    room_id = account.open_room()
    reply_id = account.prompt(room_id, "hello")
    for _ in range(3):
        make_due(reply_id)
        attempt(reply_id)

    assert account.read(room_id, reply_id)["status"] == "completed"
    assert account.daily_usage() == 1


def test_answer_cut_at_its_length_is_a_completed_reply(
    account: Account, gemini: GeminiStandin, attempt: Callable[..., None]
) -> None:
    gemini.add_fault(Fault("max_tokens"))
    room_id = account.open_room()
    reply_id = account.prompt(room_id, "hello")

    attempt(reply_id)

    assert account.read(room_id, reply_id)["status"] == "completed"


def test_retry_waits_as_long_as_the_upstream_asks(
    account: Account, gemini: GeminiStandin, attempt: Callable[..., None], sql: Callable[..., Any]
) -> None:
    gemini.add_fault(Fault("429", times=1, retry_after_ms=37_500))
    room_id = account.open_room()
    reply_id = account.prompt(room_id, "hello")

    attempt(reply_id)
    attempt(reply_id)

    row = sql(
        "SELECT extract(epoch FROM run_at - now())::float AS wait, attempts, lease_token, "
        "ring_at BETWEEN run_at AND run_at + interval '1 s' AS rings "
        "FROM reply_jobs WHERE message_id = :id",
        id=reply_id,
    )
    assert 30 < row.wait <= 37.5 * 1.25
    assert (row.attempts, row.lease_token, row.rings) == (1, None, True)
    assert len(gemini.requests) == 1


def test_backoff_grows_with_jitter_and_is_bounded() -> None:
    samples = {attempt: [backoff_seconds(attempt, None) for _ in range(200)] for attempt in (1, 2, 3, 10)}

    for attempt, whole in ((1, 1), (2, 2), (3, 4), (10, 60)):
        assert whole / 2 <= min(samples[attempt]) < max(samples[attempt]) <= whole


def test_retry_is_never_sooner_than_the_upstream_asks_and_not_all_at_once() -> None:
    samples = [backoff_seconds(1, 500.0) for _ in range(200)]

    assert 500 <= min(samples) < max(samples) <= 625
    assert len(set(samples)) > 100


def test_prompt_is_given_back_to_the_day_it_was_taken_from(
    account: Account, gemini: GeminiStandin, attempt: Callable[..., None], sql: Callable[..., Any]
) -> None:
    room_id = account.open_room()
    reply_id = account.prompt(room_id, "just before midnight [[fault=400]]")
    sql("UPDATE messages SET charged_day = charged_day - 1 WHERE id = :id", id=reply_id)
    sql("UPDATE daily_usage SET day = day - 1 WHERE number_hash = (SELECT number_hash FROM users WHERE id = :id)",
        id=account.id)  # fmt: skip
    account.prompt(room_id, "just after")

    attempt(reply_id)

    row = sql(
        "SELECT array_agg(used ORDER BY day) AS used FROM daily_usage "
        "WHERE number_hash = (SELECT number_hash FROM users WHERE id = :id)",
        id=account.id,
    )
    assert row.used == [0, 1]


def test_reply_fails_and_is_given_back_when_it_grew_too_old(
    account: Account, gemini: GeminiStandin, attempt: Callable[..., None], sql: Callable[..., Any]
) -> None:
    room_id = account.open_room()
    reply_id = account.prompt(room_id, "hello")
    sql("UPDATE reply_jobs SET created_at = now() - interval '3601 s' WHERE message_id = :id", id=reply_id)

    attempt(reply_id)

    reply = account.read(room_id, reply_id)
    assert (reply["status"], reply["error"]) == ("failed", "timed_out")
    assert gemini.requests == []
    assert account.daily_usage() == 0


def test_retry_that_would_come_too_late_is_not_waited_for(
    account: Account, gemini: GeminiStandin, attempt: Callable[..., None]
) -> None:
    gemini.add_fault(Fault("429", retry_after_ms=3_601_000))
    room_id = account.open_room()
    reply_id = account.prompt(room_id, "hello")

    attempt(reply_id)

    assert account.read(room_id, reply_id)["error"] == "timed_out"
    assert account.daily_usage() == 0


def test_text_is_made_fit_for_storing() -> None:
    assert storable("a\x00b\ud800c🙂") == "a\ufffdb\ufffdc🙂"


@pytest.mark.parametrize(("times", "status", "error"), [(2, "completed", None), (None, "failed", "context_too_long")])
def test_model_that_finds_the_history_too_long_is_asked_with_less_of_it(
    app: Flask,
    account: Account,
    gemini: GeminiStandin,
    attempt: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    times: int | None,
    status: str,
    error: str | None,
) -> None:
    default = replace(app.extensions["catalogue"].default, context_tokens=2400)
    monkeypatch.setitem(app.extensions, "catalogue", Catalogue((default,), default))
    room_id = account.open_room()
    for number in range(4):
        attempt(account.prompt(room_id, f"prompt {number} " + "x" * 1000))
    gemini.forget_requests()
    gemini.add_fault(Fault("too_long", times=times))

    reply_id = account.prompt(room_id, "last")
    attempt(reply_id)

    turns = [len(request.body["contents"]) for request in gemini.requests]
    assert turns == sorted(turns, reverse=True)
    assert turns[0] > turns[-1]
    assert 3 <= len(turns) <= 5
    reply = account.read(room_id, reply_id)
    assert (reply["status"], reply.get("error")) == (status, error)


def test_count_of_tokens_learns_from_what_the_model_reports(
    app: Flask,
    account: Account,
    attempt: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entry = replace(app.extensions["catalogue"].default, model="model-of-this-test")
    monkeypatch.setitem(app.extensions, "catalogue", Catalogue((entry,), entry))
    content = "漢字" * 500
    before = token_counter.count(entry.model, content)

    attempt(account.prompt(account.open_room(), content))

    assert token_counter.count(entry.model, content) < before


@pytest.mark.usefixtures("gemini")
def test_attempts_are_counted_and_timed(
    account: Account, attempt: Callable[..., None], make_due: Callable[[str], None]
) -> None:
    def figures() -> dict[str, float]:
        samples = [each for found in metrics.collectors() for metric in found.collect() for each in metric.samples]
        return {f"{each.name}{sorted(each.labels.items())}": each.value for each in samples}

    before = figures()
    reply_id = account.prompt(account.open_room(), "hello [[fault=503 times=1]]")
    attempt(reply_id)
    make_due(reply_id)
    attempt(reply_id)
    after = figures()

    grown = {name for name, value in after.items() if value > before.get(name, 0)}
    assert "chatapi_replies_accepted_total[]" in grown
    assert "chatapi_replies_completed_total[]" in grown
    assert "chatapi_reply_retries_total[('reason', 'upstream_unavailable')]" in grown
    assert "chatapi_reply_first_text_seconds_count[]" in grown
    assert "chatapi_reply_duration_seconds_count[]" in grown
    assert "chatapi_reply_tokens_total[('kind', 'output')]" in grown


@pytest.mark.usefixtures("gemini")
@pytest.mark.parametrize(("title", "rings"), [(None, 1), ("mine", 0)])
def test_completed_reply_rings_for_the_title_of_a_room_that_has_none(
    app: Flask, account: Account, attempt: Callable[..., None], title: str | None, rings: int
) -> None:
    queue, client = f"{NAMESPACE}:{TITLES_QUEUE}", app.extensions["broker"].client
    room_id = account.open_room(title=title)
    reply_id = account.prompt(room_id, "hello")
    client.delete(queue, f"{queue}.msgs")

    attempt(reply_id)

    assert client.llen(queue) == rings


@pytest.mark.slow
def test_end_is_written_when_postgresql_takes_it_again(
    services: Services, account: Account, gemini: GeminiStandin, attempt: Callable[..., None]
) -> None:
    room_id = account.open_room()
    reply_id = account.prompt(room_id, "hello")
    gemini.add_fault(Fault(latency_ms=500))
    connection = psycopg2.connect(services.postgres.url)

    def lock_beyond_the_lock_timeout() -> None:
        time.sleep(0.3)
        with connection.cursor() as cursor:
            cursor.execute("SELECT FROM messages WHERE id = %s FOR UPDATE", (reply_id,))
        time.sleep(7)
        connection.rollback()

    thread = threading.Thread(target=lock_beyond_the_lock_timeout)
    thread.start()
    attempt(reply_id)
    thread.join()
    connection.close()

    assert account.read(room_id, reply_id)["status"] == "completed"
    assert len(gemini.requests) == 1
