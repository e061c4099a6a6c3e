"""Stopping a reply, from whatever process the wish comes to.

The wish is written to PostgreSQL, where the worker that holds the reply looks twice a second; so it reaches it whether
or not Redis is there. A worker that does not react in time loses the reply to us.
"""

from __future__ import annotations

import time
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import Row, text

from chatapi.admission import waiting_room
from chatapi.breaker import CircuitOpenError
from chatapi.chatrooms import service
from chatapi.chatrooms.endings import Ending, Lease, announce_end, seize_and_end
from chatapi.chatrooms.live import BEGINNING, QUICK_WAIT_SECONDS, live_replies
from chatapi.chatrooms.models import Message
from chatapi.chatrooms.prompts import NotAReplyError
from chatapi.errors import NotFoundError
from chatapi.extensions import db, in_transaction
from chatapi.request_ids import on_behalf_of

WORKER_SECONDS = 2.0
"""How long the worker has to end a reply that is to be stopped."""
LOOK_AGAIN_SECONDS = 0.2

Streamed = tuple[int | None, str]
"""The token of an attempt, None if any of what it streamed is missing, and its text."""

log = structlog.get_logger(__name__)

# Message before job, in the order that holds everywhere.
_REQUEST = text("""
    WITH reply AS (SELECT id FROM messages WHERE id = :message_id FOR UPDATE)
    UPDATE reply_jobs SET stop_requested_at = coalesce(stop_requested_at, clock_timestamp())
    WHERE message_id = (SELECT id FROM reply)
    RETURNING coalesce(lease_expires_at > clock_timestamp(), false) AS is_held, request_id
""")


def stop_reply(user_id: UUID, chatroom_id: str, message_id: str) -> Message:
    """End a reply, and return it with its final status: `stopped` with the text so far, or as it had ended already.

    Raises `NotFoundError`, and `NotAReplyError` for a prompt. It ends the reply within a few seconds, also when the
    worker hangs, or there is none.
    """
    reply = service.find_owned_message(user_id, chatroom_id, message_id)
    if reply.message_type != "ai":
        raise NotAReplyError
    if not reply.is_final:
        is_held = in_transaction(lambda: _request_stop(reply.id))
        if is_held:
            _await_worker(reply.id)
        reply = _final(reply.id) or _end_ourselves(reply.id)
    return reply


def _request_stop(message_id: UUID) -> bool:
    """Write the wish down; return whether a worker holds the reply just now."""
    row: Row[Any] | None = db.session.execute(_REQUEST, {"message_id": message_id}).one_or_none()
    if row is not None:
        with on_behalf_of(row.request_id):
            log.info("reply_stop_requested", reply_id=str(message_id), is_held=row.is_held)
    return row is not None and row.is_held


def _await_worker(message_id: UUID) -> None:
    """Wait until the worker has ended the reply, or its time is up."""
    deadline = time.monotonic() + WORKER_SECONDS
    db.session.remove()
    with waiting_room().visit():
        while (left := deadline - time.monotonic()) > 0:
            try:
                if live_replies().wait_for_end(message_id, min(left, QUICK_WAIT_SECONDS)):
                    return
            except CircuitOpenError:
                time.sleep(min(left, LOOK_AGAIN_SECONDS))
                if _final(message_id) is not None:
                    return


def _end_ourselves(message_id: UUID) -> Message:
    """Take the reply from whoever may hold it, and end it with what was streamed of it."""
    reply = None
    while reply is None:
        _stop_now(message_id, streamed_text(message_id))
        reply = _final(message_id)
    return reply


def _stop_now(message_id: UUID, streamed: Streamed) -> None:
    ended = in_transaction(lambda: seize_and_end(message_id, lambda lease: stopped(lease, streamed)))
    if ended is not None:
        announce_end(*ended)


def stopped(lease: Lease, streamed: Streamed) -> Ending:
    """Return the end of a reply that is stopped by another than its worker: what was streamed of it is its text."""
    token, content = streamed
    return Ending("stopped", content=content, text_token=token, gives_prompt_back=lease.attempt == 0)


def streamed_text(message_id: UUID) -> Streamed:
    """Return what the newest attempt has streamed so far, and its token; None if any of it is missing."""
    token, content, is_whole = 0, "", True
    try:
        written = live_replies().read(message_id, BEGINNING)
    except CircuitOpenError:
        return None, ""
    for entry in written:
        if entry.is_end or entry.token < token:
            continue
        if entry.token > token:
            token, content, is_whole = entry.token, "", True
        if entry.offset <= len(content):
            content += entry.text[len(content) - entry.offset :]
        else:
            is_whole = False
    return (token or None) if is_whole else None, content


def _final(message_id: UUID) -> Message | None:
    """Return the reply if it has ended, None if not; raises `NotFoundError` if it was deleted."""
    db.session.remove()
    reply = service.read_message(message_id)
    if reply is None:
        raise NotFoundError("Message not found")
    return reply if reply.is_final else None
