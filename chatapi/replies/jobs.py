"""Reply jobs in PostgreSQL: leased, renewed, retried, ended. Redis knows nothing that is not here.

A lease carries a fencing token from one sequence, so that no two leases ever, of any job, have the same. Whoever
writes the end of a reply does it in the transaction that deletes the job row *of its token*: of several workers
that believe they hold the job, one can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, cast
from uuid import UUID

from sqlalchemy import CursorResult, Result, text

from chatapi import quota
from chatapi.extensions import db

LEASE_SECONDS = 30
RENEW_EVERY_SECONDS = 10

FIRST_RING_SECONDS = 5
MAX_RING_SECONDS = 60
"""The sweeper rings a due job again after 5, 10, 20 … 60 s: a worker that is down must not find thousands of rings."""


@dataclass(frozen=True)
class Lease:
    """The right to answer one reply. `attempt` counts from 1, this one included; `age_seconds` since acceptance."""

    message_id: UUID
    room_id: UUID
    user_id: UUID
    token: int
    attempt: int
    age_seconds: float
    charged_day: date | None


@dataclass(frozen=True)
class Ending:
    """How a reply ends: `completed` with its text, or `failed` with the reason."""

    status: str
    content: str = ""
    error: str | None = None
    model: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    gives_prompt_back: bool = False


# The message is locked before the job, in the order that holds everywhere. The attempt is counted here, before the
# work: a prompt that kills its worker is thereby bounded. No reply runs before an earlier one of its room is done.
_TAKE = text("""
    WITH reply AS (
        SELECT id, charged_day FROM messages WHERE id = :message_id FOR UPDATE
    ), job AS (
        UPDATE reply_jobs AS job
        SET attempts = attempts + 1, rings = 0, lease_token = nextval('reply_lease_token'),
            lease_expires_at = clock_timestamp() + make_interval(secs => :lease_seconds),
            ring_at = clock_timestamp() + make_interval(secs => :lease_seconds)
        WHERE message_id = (SELECT id FROM reply)
          AND run_at <= clock_timestamp()
          AND (lease_expires_at IS NULL OR lease_expires_at <= clock_timestamp())
          AND NOT EXISTS (
            SELECT FROM reply_jobs AS earlier WHERE earlier.room_id = job.room_id AND earlier.seq < job.seq
          )
        RETURNING *
    ), shown AS (
        UPDATE messages SET status = 'processing', updated_at = now() WHERE id = (SELECT message_id FROM job)
    )
    SELECT job.message_id, job.room_id, job.user_id, job.lease_token, job.attempts, reply.charged_day,
           extract(epoch FROM clock_timestamp() - job.created_at)::float AS age_seconds
    FROM job, reply
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
        lease_token = NULL, lease_expires_at = NULL, rings = 0,
        run_at = clock_timestamp() + make_interval(secs => :delay),
        ring_at = clock_timestamp() + make_interval(secs => :delay)
    WHERE message_id = :message_id AND lease_token = :token
""")

_WRITE_END = text("""
    UPDATE messages SET
        status = :status, content = :content, error = :error, model = :model,
        prompt_tokens = :prompt_tokens, output_tokens = :output_tokens, updated_at = now()
    WHERE id = :message_id
""")

_DELETE = text("DELETE FROM reply_jobs WHERE message_id = :message_id AND lease_token = :token")

_NEXT_IN_ROOM = text("""
    SELECT message_id FROM reply_jobs WHERE room_id = :room_id ORDER BY seq LIMIT 1
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


def take_lease(message_id: UUID) -> Lease | None:
    """Take the job of a reply, if it is due and nobody holds it, and count an attempt.

    None means that there is nothing to do: done, deleted, held by another, too early, or not its turn in the room.
    """
    row = db.session.execute(_TAKE, {"message_id": message_id, "lease_seconds": LEASE_SECONDS}).one_or_none()
    if row is None:
        return None
    return Lease(
        row.message_id,
        row.room_id,
        row.user_id,
        row.lease_token,
        row.attempts,
        row.age_seconds,
        row.charged_day,
    )


def renew_leases(leases: Sequence[Lease]) -> int:
    """Extend all these leases in one statement; return how many of them still hold."""
    parameters = {
        "message_ids": [lease.message_id for lease in leases],
        "tokens": [lease.token for lease in leases],
        "lease_seconds": LEASE_SECONDS,
    }
    return len(db.session.scalars(_RENEW, parameters).all())


def schedule_retry(lease: Lease, delay_seconds: float) -> bool:
    """Give the job back, to be taken again after `delay_seconds`; return False if the lease was lost."""
    given_back = db.session.execute(
        _RETRY, {"message_id": lease.message_id, "token": lease.token, "delay": delay_seconds}
    )
    return _row_count(given_back) == 1


def end_reply(lease: Lease, ending: Ending) -> bool:
    """Write the end of a reply, give the prompt back if one is due, and delete the job.

    Returns False if the lease was lost: then the caller must roll back, as none of it may stand. Locks usage,
    message, job, in the order that holds everywhere.
    """
    if ending.gives_prompt_back and lease.charged_day is not None:
        quota.refund(lease.user_id, lease.charged_day)
    db.session.execute(
        _WRITE_END,
        {
            "message_id": lease.message_id,
            "status": ending.status,
            "content": ending.content,
            "error": ending.error,
            "model": ending.model,
            "prompt_tokens": ending.prompt_tokens,
            "output_tokens": ending.output_tokens,
        },
    )
    deleted = db.session.execute(_DELETE, {"message_id": lease.message_id, "token": lease.token})
    return _row_count(deleted) == 1


def next_in_room(room_id: UUID) -> UUID | None:
    """Return the reply whose turn it is in a room, if any waits."""
    message_id: UUID | None = db.session.scalar(_NEXT_IN_ROOM, {"room_id": room_id})
    return message_id


def take_due_jobs(limit: int) -> list[UUID]:
    """Return up to `limit` replies that should be rung now, each to at most one of all sweepers."""
    parameters = {"limit": limit, "first": FIRST_RING_SECONDS, "most": MAX_RING_SECONDS}
    return list(db.session.scalars(_TAKE_DUE, parameters))


def _row_count(result: Result[Any]) -> int:
    return cast("CursorResult[Any]", result).rowcount
