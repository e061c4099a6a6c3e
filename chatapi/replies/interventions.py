"""What operators may do to replies that are not finished: have them tried at once, or end them."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import text

from chatapi.auth import audit
from chatapi.auth.models import AuditEvent
from chatapi.chatrooms.endings import Ending, Lease, announce_end, seize_and_end
from chatapi.chatrooms.prompts import ring_reply
from chatapi.extensions import db, in_transaction
from chatapi.request_ids import on_behalf_of

REASONS = ("upstream_unavailable", "timed_out", "internal_error")

RETRY_BATCH = 500

_FIND = text("""
    SELECT message.status, job.lease_expires_at > clock_timestamp() AS is_running, job.request_id, account.number_hash
    FROM messages AS message
    JOIN chatrooms AS room ON room.id = message.room_id JOIN users AS account ON account.id = room.user_id
    LEFT JOIN reply_jobs AS job ON job.message_id = message.id
    WHERE message.id = :reply_id AND message.message_type = 'ai'
""")

_MAKE_DUE = text("""
    UPDATE reply_jobs SET run_at = clock_timestamp(), ring_at = clock_timestamp(), rings = 0
    WHERE message_id IN (
        SELECT message_id FROM reply_jobs
        WHERE (CAST(:reply_id AS uuid) IS NULL OR message_id = :reply_id) AND stop_requested_at IS NULL
          AND attempts > 0 AND run_at > clock_timestamp()
          AND (lease_expires_at IS NULL OR lease_expires_at <= clock_timestamp())
        ORDER BY run_at LIMIT :limit FOR UPDATE SKIP LOCKED
    )
    RETURNING message_id
""")


class RefusedError(Exception):
    """What an operator asked for cannot be done; the message says why in a sentence."""


def retry_reply(reply_id: UUID) -> str:
    """Let a reply's next attempt be due now, and ring for it; return what came of it in words.

    Raises `RefusedError` when there is no such reply, or when it has ended.
    """

    def work() -> tuple[str, AuditEvent | None, str | None]:
        found = _find(reply_id)
        if found.is_running:
            return "is in work already", None, None
        if not db.session.scalars(_MAKE_DUE, {"reply_id": reply_id, "limit": 1}).all():
            return "is not waiting for a retry: it is due, and comes as soon as a worker takes it", None, None
        event = audit.record("reply_retried", found.number_hash, reply_id=str(reply_id))
        return "is due now", event, found.request_id

    came_of_it, event, request_id = in_transaction(work)
    if event is not None:
        with on_behalf_of(request_id):
            audit.announce(event)
    ring_reply(reply_id)
    return came_of_it


def retry_all() -> int:
    """Let all attempts that are waited for be due now, and ring for them; return how many it was."""
    total = 0
    while reply_ids := in_transaction(
        lambda: db.session.scalars(_MAKE_DUE, {"reply_id": None, "limit": RETRY_BATCH}).all()
    ):
        for reply_id in reply_ids:
            ring_reply(reply_id)
        total += len(reply_ids)
    return total


def fail_reply(reply_id: UUID, reason: str) -> None:
    """End an unfinished reply as failed, whoever is at work on it, and give its prompt back.

    The worker loses its lease by it, so that what it still brings is refused. Raises `RefusedError` when there is no
    such reply, or when it has ended.
    """

    def work() -> tuple[tuple[Lease, Ending], AuditEvent]:
        found = _find(reply_id)
        ended = seize_and_end(reply_id, lambda _: Ending(status="failed", error=reason, gives_prompt_back=True))
        if ended is None:
            raise RefusedError(f"The reply {reply_id} has ended, and stays as it is.")
        return ended, audit.record("reply_failed", found.number_hash, reply_id=str(reply_id), reason=reason)

    ended, event = in_transaction(work)
    announce_end(*ended)
    with on_behalf_of(ended[0].request_id):
        audit.announce(event)


def _find(reply_id: UUID) -> Any:
    found = db.session.execute(_FIND, {"reply_id": reply_id}).one_or_none()
    if found is None:
        raise RefusedError(f"There is no reply {reply_id}.")
    if found.status in ("completed", "failed", "stopped"):
        raise RefusedError(f"The reply {reply_id} has ended ({found.status}); its owner can have it made anew.")
    return found
