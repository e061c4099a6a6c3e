"""How replies end: once, by whoever holds the job's fencing token, in one transaction; then everybody is told.

A lease carries a fencing token from one sequence, so that no two leases ever, of any job, have the same. Whoever writes
the end of a reply does it in the transaction that deletes the job row *of its token*: of several that believe they hold
the job, one can.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from typing import Any, cast
from uuid import UUID

import structlog
from sqlalchemy import CursorResult, text

from chatapi import metrics, quota
from chatapi.chatrooms.live import live_replies
from chatapi.chatrooms.prompts import ring_reply
from chatapi.extensions import db, in_transaction
from chatapi.request_ids import on_behalf_of

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Lease:
    """The right to answer one reply. `attempt` counts from 1, this one included.

    `age_seconds` since acceptance, as of `taken_at` on this process's monotonic clock. `request_id` is of the request
    that asked for the reply.
    """

    message_id: UUID
    room_id: UUID
    user_id: UUID
    token: int
    attempt: int
    age_seconds: float
    charged_day: date | None
    request_id: str | None = None
    taken_at: float = field(default_factory=time.monotonic, compare=False)

    @property
    def age_now(self) -> float:
        """Seconds since the prompt was accepted."""
        return self.age_seconds + time.monotonic() - self.taken_at


@dataclass(frozen=True)
class Ending:
    """How a reply ends: `completed` or `stopped` with its text, or `failed` with the reason.

    `text_token` is the lease that streamed just this text, None if none did.
    """

    status: str
    content: str = ""
    error: str | None = None
    model: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    text_token: int | None = None
    gives_prompt_back: bool = False


class LeaseLostError(Exception):
    """Somebody else has the job now; nothing of ours may be stored."""


LEASE_COLUMNS = """
    job.message_id, job.room_id, job.user_id, job.lease_token, job.attempts, reply.charged_day, job.request_id,
    extract(epoch FROM clock_timestamp() - job.created_at)::float AS age_seconds
"""
"""What `lease_of` reads, of a job that was just taken and the reply's message."""

# The message is locked before the job, in the order that holds everywhere. No attempt is counted: this is not one; and
# no time is set, as the job goes in the same transaction.
_SEIZE = text(f"""
    WITH reply AS (
        SELECT id, charged_day FROM messages WHERE id = :message_id FOR UPDATE
    ), job AS (
        UPDATE reply_jobs
        SET lease_token = nextval('reply_lease_token')
        WHERE message_id = (SELECT id FROM reply)
        RETURNING *
    )
    SELECT {LEASE_COLUMNS} FROM job, reply
""")  # noqa: S608 - of our own constants

_WRITE_END = text("""
    UPDATE messages SET
        status = :status, content = :content, error = :error, model = :model, text_token = :text_token,
        prompt_tokens = :prompt_tokens, output_tokens = :output_tokens, updated_at = now()
    WHERE id = :message_id
""")

_DELETE = text("DELETE FROM reply_jobs WHERE message_id = :message_id AND lease_token = :token")

_NEXT_IN_ROOM = text("SELECT message_id FROM reply_jobs WHERE room_id = :room_id ORDER BY seq LIMIT 1")


def lease_of(row: Any) -> Lease:
    """Return the lease that a row of `LEASE_COLUMNS` tells of."""
    return Lease(
        row.message_id,
        row.room_id,
        row.user_id,
        row.lease_token,
        row.attempts,
        row.age_seconds,
        row.charged_day,
        row.request_id,
    )


def _seize_lease(message_id: UUID) -> Lease | None:
    row = db.session.execute(_SEIZE, {"message_id": message_id}).one_or_none()
    return None if row is None else lease_of(row)


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
            "text_token": ending.text_token,
            "prompt_tokens": ending.prompt_tokens,
            "output_tokens": ending.output_tokens,
        },
    )
    deleted = db.session.execute(_DELETE, {"message_id": lease.message_id, "token": lease.token})
    return cast("CursorResult[Any]", deleted).rowcount == 1


def seize_and_end(message_id: UUID, ending_of: Callable[[Lease], Ending]) -> tuple[Lease, Ending] | None:
    """Take the job of a reply from whoever holds it, and end it with what `ending_of` says; None when it has ended.

    The caller commits, and then says `announce_end`. Both are one transaction: of many who do this at once the first
    ends the reply, where a lease taken in a transaction of its own would go from one to the next without end.
    """
    # As a prompt may be given back, and usage comes before message and job in the order that holds everywhere.
    quota.lock_charge(message_id)
    lease = _seize_lease(message_id)
    if lease is None:
        return None
    ending = ending_of(lease)
    end_reply(lease, ending)
    return lease, ending


def conclude(lease: Lease, ending: Ending) -> bool:
    """End a reply, commit, tell all who wait for it, and ring for the next of the room; False if the lease was lost."""

    def write() -> None:
        if not end_reply(lease, ending):
            raise LeaseLostError

    with on_behalf_of(lease.request_id):
        try:
            in_transaction(write)
        except LeaseLostError:
            log.warning("late_reply_refused", reply_id=str(lease.message_id))
            return False
        announce_end(lease, ending)
    return True


def announce_end(lease: Lease, ending: Ending) -> None:
    """Tell all who wait for a reply that its end is committed, and ring for the next of the room."""
    with on_behalf_of(lease.request_id):
        log.info(
            "reply_ended",
            reply_id=str(lease.message_id),
            status=ending.status,
            error=ending.error,
            attempts=lease.attempt,
            age_seconds=round(lease.age_now, 2),
            prompt_tokens=ending.prompt_tokens,
            output_tokens=ending.output_tokens,
        )
        live_replies().announce_end(lease.message_id)
    metrics.ended(ending.status, ending.error, lease.age_now, ending.prompt_tokens, ending.output_tokens)
    waiting = db.session.scalar(_NEXT_IN_ROOM, {"room_id": lease.room_id})
    if waiting is not None:
        ring_reply(waiting)
