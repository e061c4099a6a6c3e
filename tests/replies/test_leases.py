"""Who may answer, and what becomes of those who come too late: leases, fencing tokens, the order in a room."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from flask import Flask

from chatapi.chatrooms.endings import Ending
from chatapi.dev.gemini_standin import Fault, GeminiStandin
from chatapi.extensions import db, in_transaction
from chatapi.replies import generate, jobs
from chatapi.replies.gemini.base import Answer, Prompt
from chatapi.replies.leases import HeldLease
from chatapi.upstream.calls import UpstreamCall
from tests.support import Account, race


class Meanwhile:
    """A model that lets something happen while it is waited for."""

    def __init__(self, happens: Callable[[], Any]) -> None:
        self._happens = happens

    def stream(self, prompt: Prompt, _call: UpstreamCall, on_text: Callable[[str], None]) -> Answer:
        self._happens()
        on_text("late")
        return Answer("late", prompt.model, None, None)


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


@pytest.mark.parametrize("ending", [Ending("completed", content="late", text_token=1), generate.failed("timed_out")])
def test_late_ending_is_refused_while_another_worker_holds_the_lease(
    app: Flask, account: Account, sql: Callable[..., Any], ending: Ending
) -> None:
    room_id = account.open_room()
    reply_id = account.prompt(room_id, "hello")
    with app.app_context():
        stale = in_transaction(lambda: jobs.take_lease(UUID(reply_id)))
        sql("UPDATE reply_jobs SET lease_expires_at = now() WHERE message_id = :id", id=reply_id)
        holder = in_transaction(lambda: jobs.take_lease(UUID(reply_id)))
        assert stale is not None
        assert holder is not None

        generate._end(HeldLease(stale), ending)
        assert not in_transaction(lambda: jobs.schedule_retry(stale, 0, "late"))
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
        generate._end(HeldLease(stale), generate.failed("upstream_unavailable"))
        assert not in_transaction(lambda: jobs.schedule_retry(stale, 0, "late"))

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
            generate._end(HeldLease(lease), generate.failed("upstream_unavailable"))

    race(20, end)

    assert account.daily_usage() == 1


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
