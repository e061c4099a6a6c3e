"""Reply jobs in PostgreSQL: leased, renewed, retried. Redis knows nothing that is not here.

How they end is in `chatapi.chatrooms.endings`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast
from uuid import UUID

from sqlalchemy import CursorResult, text

from chatapi.chatrooms.endings import LEASE_COLUMNS, Lease, lease_of
from chatapi.extensions import db

LEASE_SECONDS = 30
RENEW_EVERY_SECONDS = 10

FIRST_RING_SECONDS = 5
MAX_RING_SECONDS = 60
"""The sweeper rings a due job again after 5, 10, 20 … 60 s: a worker that is down must not find thousands of rings."""

# The message is locked before the job, in the order that holds everywhere. The attempt is counted here, before the
# work: a prompt that kills its worker is thereby bounded. No reply runs before an earlier one of its room is done, and
# none that is to be stopped.
_TAKE = text(f"""
    WITH reply AS (
        SELECT id, charged_day FROM messages WHERE id = :message_id FOR UPDATE
    ), job AS (
        UPDATE reply_jobs AS job
        SET attempts = attempts + 1, rings = 0, lease_token = nextval('reply_lease_token'),
            lease_expires_at = clock_timestamp() + make_interval(secs => :lease_seconds),
            ring_at = clock_timestamp() + make_interval(secs => :lease_seconds)
        WHERE message_id = (SELECT id FROM reply)
          AND run_at <= clock_timestamp()
          AND stop_requested_at IS NULL
          AND (lease_expires_at IS NULL OR lease_expires_at <= clock_timestamp())
          AND NOT EXISTS (
            SELECT FROM reply_jobs AS earlier WHERE earlier.room_id = job.room_id AND earlier.seq < job.seq
          )
        RETURNING *
    ), shown AS (
        UPDATE messages SET status = 'processing', updated_at = now() WHERE id = (SELECT message_id FROM job)
    )
    SELECT {LEASE_COLUMNS} FROM job, reply
""")  # noqa: S608 - of our own constants

_LOOK_AFTER = text("""
    SELECT lease_token, stop_requested_at IS NOT NULL AS is_to_stop FROM reply_jobs
    WHERE message_id = ANY(:message_ids)
""")

_RENEW = text("""
    UPDATE reply_jobs SET
        lease_expires_at = clock_timestamp() + make_interval(secs => :lease_seconds),
        ring_at = clock_timestamp() + make_interval(secs => :lease_seconds)
    WHERE message_id = ANY(:message_ids) AND lease_token = ANY(:tokens)
    RETURNING lease_token
""")

_RETRY = text("""
    UPDATE reply_jobs SET
        lease_token = NULL, lease_expires_at = NULL, rings = 0, last_error = :reason,
        run_at = clock_timestamp() + make_interval(secs => :delay),
        ring_at = clock_timestamp() + make_interval(secs => :delay)
    WHERE message_id = :message_id AND lease_token = :token
""")

# `ring_at` is when to look at a job next, whatever for: a ring that may have been lost, a retry that is due, a lease
# whose holder may have died. So one index serves, and rows that another sweeper holds are its business.
_TAKE_DUE = text("""
    UPDATE reply_jobs AS job SET
        rings = least(job.rings + 1, 100),
        ring_at = clock_timestamp() + make_interval(secs => least(:most, :first * 2 ^ least(job.rings, 10)))
    WHERE job.message_id IN (
        SELECT due.message_id FROM reply_jobs AS due
        WHERE due.ring_at <= clock_timestamp()
          AND NOT EXISTS (
            SELECT FROM reply_jobs AS earlier WHERE earlier.room_id = due.room_id AND earlier.seq < due.seq
          )
        ORDER BY due.ring_at LIMIT :limit FOR UPDATE SKIP LOCKED
    )
    RETURNING job.message_id
""")

# What nobody works on and nobody shall: too old, or to be stopped by somebody who died over it.
_SEIZE_OVERDUE = text(f"""
    WITH job AS (
        UPDATE reply_jobs
        SET lease_token = nextval('reply_lease_token'),
            lease_expires_at = clock_timestamp() + make_interval(secs => :lease_seconds)
        WHERE message_id IN (
            SELECT message_id FROM reply_jobs
            WHERE (created_at <= now() - make_interval(secs => :max_age)
                   OR stop_requested_at <= now() - make_interval(secs => :stop_grace))
              AND (lease_expires_at IS NULL OR lease_expires_at <= clock_timestamp())
            LIMIT :limit FOR UPDATE SKIP LOCKED
        )
        RETURNING *
    )
    SELECT {LEASE_COLUMNS}, job.stop_requested_at IS NOT NULL AS is_to_stop
    FROM job JOIN messages AS reply ON reply.id = job.message_id
""")  # noqa: S608 - of our own constants


def take_lease(message_id: UUID) -> Lease | None:
    """Take the job of a reply, if it is due and nobody holds it, and count an attempt.

    None means that there is nothing to do: done, deleted, held by another, too early, to be stopped, or not its turn in
    the room.
    """
    row = db.session.execute(_TAKE, {"message_id": message_id, "lease_seconds": LEASE_SECONDS}).one_or_none()
    return None if row is None else lease_of(row)


def renew_leases(leases: Sequence[Lease]) -> int:
    """Extend all these leases in one statement; return how many of them still hold."""
    parameters = {
        "message_ids": [lease.message_id for lease in leases],
        "tokens": [lease.token for lease in leases],
        "lease_seconds": LEASE_SECONDS,
    }
    return len(db.session.scalars(_RENEW, parameters).all())


def look_after(leases: Sequence[Lease]) -> dict[int, bool]:
    """Return which of these leases still hold, by token, and whether their reply is to be stopped."""
    rows = db.session.execute(_LOOK_AFTER, {"message_ids": [lease.message_id for lease in leases]})
    return {row.lease_token: row.is_to_stop for row in rows}


def schedule_retry(lease: Lease, delay_seconds: float, reason: str) -> bool:
    """Give the job back, to be taken again after `delay_seconds`; return False if the lease was lost.

    `reason` is for operators: a constant text, nothing that a user wrote.
    """
    given_back = db.session.execute(
        _RETRY, {"message_id": lease.message_id, "token": lease.token, "delay": delay_seconds, "reason": reason}
    )
    return cast("CursorResult[Any]", given_back).rowcount == 1


def take_due_jobs(limit: int) -> list[UUID]:
    """Return up to `limit` replies that should be rung now, each to at most one of all sweepers."""
    parameters = {"limit": limit, "first": FIRST_RING_SECONDS, "most": MAX_RING_SECONDS}
    return list(db.session.scalars(_TAKE_DUE, parameters))


def seize_overdue(limit: int, max_age_seconds: float, stop_grace_seconds: float) -> list[tuple[Lease, bool]]:
    """Take up to `limit` jobs that nobody holds and that are too old or to be stopped, in order to end them.

    With each comes whether it is to be stopped.
    """
    parameters = {
        "limit": limit,
        "max_age": max_age_seconds,
        "stop_grace": stop_grace_seconds,
        "lease_seconds": LEASE_SECONDS,
    }
    return [(lease_of(row), row.is_to_stop) for row in db.session.execute(_SEIZE_OVERDUE, parameters)]
