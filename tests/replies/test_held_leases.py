"""What a process holds while it waits for the model: stops and losses end the call within seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from uuid import UUID

import pytest
from flask import Flask
from sqlalchemy import event, text

from chatapi.chatrooms.endings import Ending, Lease, conclude, seize_and_end
from chatapi.extensions import db, in_transaction
from chatapi.replies import jobs
from chatapi.replies.leases import HeldLease, LeaseKeeper
from tests.support import Account, wait_for

SOON_SECONDS = 2.0

LOSSES = {
    "taken over": "UPDATE reply_jobs SET lease_token = nextval('reply_lease_token') WHERE message_id = :id",
    "given up": "UPDATE reply_jobs SET lease_token = NULL, lease_expires_at = NULL WHERE message_id = :id",
    "ended": "DELETE FROM reply_jobs WHERE message_id = :id",
    "room deleted": "DELETE FROM chatrooms WHERE id = (SELECT room_id FROM messages WHERE id = :id)",
}
STOP = "UPDATE reply_jobs SET stop_requested_at = now() WHERE message_id = :id"
REMAINING = "SELECT extract(epoch FROM lease_expires_at - now())::float AS s FROM reply_jobs WHERE message_id = :id"

LOCK_USAGE = """
    SELECT FROM daily_usage AS usage JOIN users USING (number_hash) JOIN reply_jobs AS job ON job.user_id = users.id
    WHERE job.message_id = :id FOR UPDATE OF usage
"""
WAITING = (
    "SELECT count(*) AS waiting FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
)


@pytest.fixture
def lease(app: Flask, account: Account) -> Lease:
    """A lease just taken."""
    return take(app, account.prompt(account.open_room(), "hello"))


def take(app: Flask, reply_id: str) -> Lease:
    with app.app_context():
        lease = in_transaction(lambda: jobs.take_lease(UUID(reply_id)))
    assert lease is not None
    return lease


def test_call_is_cancelled_when_the_reply_is_to_be_stopped(
    keeper: LeaseKeeper, lease: Lease, sql: Callable[..., Any]
) -> None:
    with keeper.hold(lease) as held:
        call = held.call(60)
        sql(STOP, id=lease.message_id)

        wait_for(lambda: call.is_cancelled, SOON_SECONDS, every=0.02)
        assert held.is_to_stop
        assert held.call(60).is_cancelled


@pytest.mark.parametrize("loss", LOSSES)
def test_call_is_cancelled_when_the_lease_is_lost(
    keeper: LeaseKeeper, lease: Lease, sql: Callable[..., Any], loss: str
) -> None:
    with keeper.hold(lease) as held:
        call = held.call(60)
        sql(LOSSES[loss], id=lease.message_id)

        wait_for(lambda: call.is_cancelled, SOON_SECONDS, every=0.02)
        assert not held.is_to_stop
        assert held.call(60).is_cancelled


def test_lease_that_goes_with_the_end_is_not_taken_for_lost(
    keeper: LeaseKeeper, lease: Lease, sql: Callable[..., Any]
) -> None:
    with keeper.hold(lease) as held:
        call = held.call(60)
        held.is_ending = True
        sql(LOSSES["ended"], id=lease.message_id)
        time.sleep(1.2)

        assert not call.is_cancelled


def test_call_goes_on_while_nothing_is_the_matter(
    app: Flask, keeper: LeaseKeeper, lease: Lease, sign_in: Callable[..., Account], sql: Callable[..., Any]
) -> None:
    other_account = sign_in()
    other = take(app, other_account.prompt(other_account.open_room(), "hello"))
    with keeper.hold(lease) as held, keeper.hold(other) as stopped:
        calls = held.call(60), stopped.call(60)
        sql(STOP, id=other.message_id)
        wait_for(lambda: calls[1].is_cancelled, SOON_SECONDS, every=0.02)
        time.sleep(0.7)

        assert not calls[0].is_cancelled
        assert not held.call(60).is_cancelled


def test_stop_that_comes_before_the_call_cancels_it(keeper: LeaseKeeper, lease: Lease, sql: Callable[..., Any]) -> None:
    sql(STOP, id=lease.message_id)

    with keeper.hold(lease) as held:
        wait_for(lambda: held.is_to_stop, SOON_SECONDS, every=0.02)
        assert held.call(60).is_cancelled


def test_call_made_after_a_cancellation_is_cancelled_at_once(lease: Lease) -> None:
    held = HeldLease(lease)
    assert not held.call(60).is_cancelled

    held.cancel(is_to_stop=False)

    assert held.call(60).is_cancelled
    assert held.call(60).is_cancelled


def test_only_the_call_under_way_is_cancelled(lease: Lease) -> None:
    held = HeldLease(lease)
    over, under_way = held.call(60), held.call(60)

    held.cancel(is_to_stop=True)

    assert (over.is_cancelled, under_way.is_cancelled) == (False, True)


def test_reply_that_was_seized_and_ended_cannot_be_ended_by_its_holder(app: Flask, lease: Lease) -> None:
    seized: list[Lease] = []

    def stopped(taken: Lease) -> Ending:
        seized.append(taken)
        return Ending("stopped", content="so far")

    with app.app_context():
        assert in_transaction(lambda: seize_and_end(lease.message_id, stopped)) is not None
        assert [(taken.attempt, taken.token > lease.token) for taken in seized] == [(1, True)]

        assert not conclude(lease, Ending("completed", content="late", text_token=lease.token))
        assert in_transaction(lambda: seize_and_end(lease.message_id, stopped)) is None


def test_reply_has_one_end_when_a_second_seizes_it_before_the_first_has_ended_it(app: Flask, lease: Lease) -> None:
    with ThreadPoolExecutor(1) as pool:
        second: list[Future[Any]] = []

        def stopped(taken: Lease) -> Ending:
            if not second:
                second.append(pool.submit(seize))
                time.sleep(0.2)
                assert not second[0].done()
            return Ending("stopped", content="so far")

        def seize() -> Any:
            with app.app_context():
                return in_transaction(lambda: seize_and_end(lease.message_id, stopped))

        assert seize() is not None
        assert second[0].result() is None


def test_usage_is_locked_before_the_reply_when_it_is_seized(app: Flask, lease: Lease, sql: Callable[..., Any]) -> None:
    """Whoever ends it with its lease has locked them in that order; the other way round is a deadlock."""

    def seize() -> Any:
        with app.app_context():
            return in_transaction(lambda: seize_and_end(lease.message_id, lambda _: Ending("stopped")))

    with ThreadPoolExecutor(1) as pool, app.app_context(), db.engine.begin() as other:
        used = other.execute(text(LOCK_USAGE), {"id": lease.message_id}).all()
        assert len(used) == 1
        seizing = pool.submit(seize)
        wait_for(lambda: sql(WAITING).waiting == 1, SOON_SECONDS, every=0.02)

        other.execute(text("SELECT FROM messages WHERE id = :id FOR UPDATE NOWAIT"), {"id": lease.message_id})
        other.rollback()
        assert seizing.result() is not None


def test_all_leases_are_renewed_by_one_statement_and_not_after(
    app: Flask,
    keeper: LeaseKeeper,
    pro_account: Account,
    monkeypatch: pytest.MonkeyPatch,
    sql: Callable[..., Any],
) -> None:
    monkeypatch.setattr("chatapi.replies.leases.RENEW_EVERY_SECONDS", 0.0)
    leases = [take(app, pro_account.prompt(pro_account.open_room(), "hello")) for _ in range(3)]
    statements: list[str] = []
    with app.app_context():
        engine = db.engine

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        statements.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        with keeper.hold(leases[0]), keeper.hold(leases[1]), keeper.hold(leases[2]):
            time.sleep(0.1)
            for each in leases:
                sql("UPDATE reply_jobs SET lease_expires_at = now() + interval '9 s' WHERE message_id = :id",
                    id=each.message_id)  # fmt: skip
            statements.clear()
            wait_for(lambda: all(sql(REMAINING, id=each.message_id).s > 25 for each in leases), SOON_SECONDS)
            renewals = [statement for statement in statements if "RETURNING lease_token" in statement]
    finally:
        event.remove(engine, "before_cursor_execute", note)
    assert 1 <= len(renewals) <= 3

    sql("UPDATE reply_jobs SET lease_expires_at = now() + interval '9 s' WHERE message_id = :id",
        id=leases[0].message_id)  # fmt: skip
    time.sleep(1.2)
    assert sql(REMAINING, id=leases[0].message_id).s < 9


@pytest.mark.slow
def test_lease_is_not_renewed_for_longer_than_an_attempt_may_take(
    app: Flask, lease: Lease, monkeypatch: pytest.MonkeyPatch, sql: Callable[..., Any]
) -> None:
    monkeypatch.setattr("chatapi.replies.leases.RENEW_EVERY_SECONDS", 0.0)
    set_back = "UPDATE reply_jobs SET lease_expires_at = now() + interval '9 s' WHERE message_id = :id"
    with LeaseKeeper(app, most_seconds=1).hold(lease):
        sql(set_back, id=lease.message_id)
        wait_for(lambda: sql(REMAINING, id=lease.message_id).s > 25, SOON_SECONDS)
        time.sleep(1.2)
        sql(set_back, id=lease.message_id)
        time.sleep(1.2)

        assert sql(REMAINING, id=lease.message_id).s < 9


def test_reply_that_is_to_be_stopped_is_not_taken(app: Flask, account: Account, sql: Callable[..., Any]) -> None:
    reply_id = account.prompt(account.open_room(), "hello")
    sql(STOP, id=reply_id)

    with app.app_context():
        assert in_transaction(lambda: jobs.take_lease(UUID(reply_id))) is None

    assert sql("SELECT attempts FROM reply_jobs WHERE message_id = :id", id=reply_id).attempts == 0
