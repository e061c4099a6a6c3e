"""One reply at a time, with the real SDK against the stand-in: how each ends, and what that does to rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from flask import Flask
from sqlalchemy import Row, text

from chatapi.dev.gemini_standin import Fault, GeminiStandin
from chatapi.extensions import db, in_transaction
from chatapi.replies import generate, jobs
from chatapi.replies.gemini.base import Answer, Prompt
from chatapi.replies.gemini.generativeai import GenerativeAIClient
from chatapi.replies.generate import backoff_seconds, generate_reply, storable
from chatapi.replies.leases import LeaseKeeper
from tests.support import Account, Services, race

TIMEOUT_SECONDS = 1.0


@pytest.fixture(scope="module")
def model(services: Services) -> Iterator[GenerativeAIClient]:
    client = GenerativeAIClient(api_key=None, endpoint=services.gemini.url, timeout_seconds=TIMEOUT_SECONDS)
    yield client
    client.close()


@pytest.fixture
def keeper(app: Flask) -> LeaseKeeper:
    return LeaseKeeper(app, most_seconds=60)


@pytest.fixture
def attempt(app: Flask, model: GenerativeAIClient, keeper: LeaseKeeper) -> Callable[..., None]:
    """Return what makes one attempt at a reply, as the actor does, each in an application context of its own."""

    def attempt(reply_id: str, client: Any = model) -> None:
        with app.app_context():
            generate_reply(UUID(reply_id), client, keeper)

    return attempt


@pytest.fixture
def sql(app: Flask) -> Callable[..., Row[Any] | None]:
    """Return what runs one statement and commits; it returns the row, if there is one."""

    def sql(statement: str, **parameters: Any) -> Row[Any] | None:
        with app.app_context():
            result = db.session.execute(text(statement), parameters)
            row = result.one_or_none() if result.returns_rows else None
            db.session.commit()
            return row

    return sql


@pytest.fixture
def make_due(sql: Callable[..., Any]) -> Callable[[str], None]:
    """Return what ends the wait before the next attempt."""
    return lambda reply_id: sql("UPDATE reply_jobs SET run_at = now() WHERE message_id = :id", id=reply_id)


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
        ("504", "timed_out"), ("hang", "timed_out"), ("drip", "timed_out"), ("cut", "upstream_unavailable"),
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
    assert 30 < row.wait <= 37.5
    assert (row.attempts, row.lease_token, row.rings) == (1, None, True)
    assert len(gemini.requests) == 1


def test_backoff_grows_with_jitter_and_is_bounded() -> None:
    samples = {attempt: [backoff_seconds(attempt, None) for _ in range(200)] for attempt in (1, 2, 3, 10)}

    for attempt, whole in ((1, 1), (2, 2), (3, 4), (10, 60)):
        assert whole / 2 <= min(samples[attempt]) < max(samples[attempt]) <= whole
    assert backoff_seconds(1, 500.0) == 500.0


def test_reply_is_not_attempted_when_an_earlier_one_of_its_room_is_unfinished(
    account: Account, gemini: GeminiStandin, attempt: Callable[..., None]
) -> None:
    room_id = account.open_room()
    first, second = account.prompt(room_id, "one"), account.prompt(room_id, "two")

    attempt(second)
    assert account.read(room_id, second)["status"] == "pending"
    assert gemini.requests == []

    attempt(first)
    attempt(second)
    assert 'model: "' in account.read(room_id, second)["content"]


def test_model_is_asked_once_when_twenty_workers_race_for_a_reply(
    account: Account, gemini: GeminiStandin, attempt: Callable[..., None]
) -> None:
    gemini.add_fault(Fault(latency_ms=300))
    room_id = account.open_room()
    reply_id = account.prompt(room_id, "hello")

    race(20, lambda _: attempt(reply_id))

    assert len(gemini.requests) == 1
    assert account.read(room_id, reply_id)["status"] == "completed"


class Meanwhile:
    """A model that lets something happen while it is waited for."""

    def __init__(self, happens: Callable[[], Any]) -> None:
        self._happens = happens

    def generate(self, prompt: Prompt) -> Answer:
        self._happens()
        return Answer("late", prompt.model, None, None)


def test_late_answer_is_refused_when_another_worker_took_the_lease_over(
    account: Account, gemini: GeminiStandin, attempt: Callable[..., None], sql: Callable[..., Any]
) -> None:
    room_id = account.open_room()
    reply_id = account.prompt(room_id, "hello")

    def freeze_past_the_lease() -> None:
        sql("UPDATE reply_jobs SET lease_expires_at = now() WHERE message_id = :id", id=reply_id)
        attempt(reply_id)

    attempt(reply_id, Meanwhile(freeze_past_the_lease))

    reply = account.read(room_id, reply_id)
    assert reply["status"] == "completed"
    assert 'You said: "hello"' in reply["content"]
    assert account.daily_usage() == 1


@pytest.mark.parametrize("ending", [generate._completed(Answer("late", "m", 1, 1)), generate._failed("timed_out")])
def test_late_ending_is_refused_while_another_worker_holds_the_lease(
    app: Flask, account: Account, sql: Callable[..., Any], ending: jobs.Ending
) -> None:
    room_id = account.open_room()
    reply_id = account.prompt(room_id, "hello")
    with app.app_context():
        stale = in_transaction(lambda: jobs.take_lease(UUID(reply_id)))
        sql("UPDATE reply_jobs SET lease_expires_at = now() WHERE message_id = :id", id=reply_id)
        holder = in_transaction(lambda: jobs.take_lease(UUID(reply_id)))
        assert stale is not None
        assert holder is not None

        generate._end(stale, ending)
        assert not in_transaction(lambda: jobs.schedule_retry(stale, 0))
        assert in_transaction(lambda: jobs.renew_leases([stale])) == 0

    assert account.read(room_id, reply_id)["status"] == "processing"
    assert sql("SELECT lease_token FROM reply_jobs WHERE message_id = :id", id=reply_id).lease_token == holder.token
    assert account.daily_usage() == 1


def test_late_failure_gives_nothing_back_when_another_worker_answered(
    app: Flask, account: Account, gemini: GeminiStandin, attempt: Callable[..., None], sql: Callable[..., Any]
) -> None:
    room_id = account.open_room()
    reply_id = account.prompt(room_id, "hello")
    with app.app_context():
        stale = in_transaction(lambda: jobs.take_lease(UUID(reply_id)))
    assert stale is not None
    sql("UPDATE reply_jobs SET lease_expires_at = now() WHERE message_id = :id", id=reply_id)
    attempt(reply_id)

    with app.app_context():
        generate._end(stale, generate._failed("upstream_unavailable"))
        assert not in_transaction(lambda: jobs.schedule_retry(stale, 0))

    assert account.read(room_id, reply_id)["status"] == "completed"
    assert account.daily_usage() == 1


def test_prompt_is_given_back_once_when_twenty_workers_end_it_at_once(
    app: Flask, account: Account, sql: Callable[..., Any]
) -> None:
    room_id = account.open_room()
    account.prompt(room_id, "other")
    sql("DELETE FROM reply_jobs WHERE room_id = :id", id=room_id)
    reply_id = account.prompt(room_id, "hello")
    with app.app_context():
        lease = in_transaction(lambda: jobs.take_lease(UUID(reply_id)))
    assert lease is not None

    def end(_index: int) -> None:
        with app.app_context():
            generate._end(lease, generate._failed("upstream_unavailable"))

    race(20, end)

    assert account.daily_usage() == 1


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


@pytest.mark.parametrize("target", ["room", "account"])
def test_nothing_is_left_when_room_or_account_is_deleted_while_its_reply_runs(
    account: Account, attempt: Callable[..., None], sql: Callable[..., Any], target: str
) -> None:
    room_id = account.open_room()
    reply_id = account.prompt(room_id, "hello")

    def delete() -> None:
        if target == "room":
            assert account.call("DELETE", f"/chatroom/{room_id}").status_code == 200
        else:
            sql("DELETE FROM users WHERE id = :id", id=account.id)

    attempt(reply_id, Meanwhile(delete))

    assert sql("SELECT FROM messages WHERE room_id = :id LIMIT 1", id=room_id) is None
    assert sql("SELECT FROM reply_jobs WHERE room_id = :id LIMIT 1", id=room_id) is None


def test_reply_fails_and_is_given_back_when_every_attempt_crashed_its_worker(
    account: Account, gemini: GeminiStandin, attempt: Callable[..., None], sql: Callable[..., Any]
) -> None:
    room_id = account.open_room()
    reply_id = account.prompt(room_id, "poison")
    sql("UPDATE reply_jobs SET attempts = 5, lease_token = 1, lease_expires_at = now() WHERE message_id = :id",
        id=reply_id)  # fmt: skip

    attempt(reply_id)

    reply = account.read(room_id, reply_id)
    assert (reply["status"], reply["error"]) == ("failed", "internal_error")
    assert gemini.requests == []
    assert account.daily_usage() == 0


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


def test_no_transaction_is_open_while_the_model_is_waited_for(
    app: Flask, account: Account, attempt: Callable[..., None], sql: Callable[..., Any]
) -> None:
    seen = []

    def look() -> None:
        seen.append((db.session.registry.has(), db.engine.pool.checkedout()))

    room_id = account.open_room()
    attempt(account.prompt(room_id, "hello"), Meanwhile(look))

    assert seen == [(False, 0)]


def test_lease_is_renewed_while_held_and_not_after(app: Flask, account: Account, sql: Callable[..., Any]) -> None:
    reply_id = account.prompt(account.open_room(), "hello")
    with app.app_context():
        lease = in_transaction(lambda: jobs.take_lease(UUID(reply_id)))
        assert lease is not None
        remaining = (
            "SELECT extract(epoch FROM lease_expires_at - now())::float AS s FROM reply_jobs WHERE message_id = :id"
        )
        sql("UPDATE reply_jobs SET lease_expires_at = now() + interval '5 s' WHERE message_id = :id", id=reply_id)

        assert in_transaction(lambda: jobs.renew_leases([lease])) == 1
        assert sql(remaining, id=reply_id).s > 29
        assert in_transaction(lambda: jobs.renew_leases([replace(lease, token=lease.token + 1)])) == 0


def test_text_is_made_fit_for_storing() -> None:
    assert storable("a\x00b\ud800c🙂") == "a\ufffdb\ufffdc🙂"
