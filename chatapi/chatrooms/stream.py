"""Following a reply, and waiting for one: both hold a thread and, while they wait, nothing of the database."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from chatapi import metrics
from chatapi.admission import is_client_gone, waiting_room
from chatapi.auth.models import Session, User
from chatapi.breaker import CircuitOpenError
from chatapi.chatrooms import service
from chatapi.chatrooms.follower import Follower
from chatapi.chatrooms.live import BEGINNING, MOST_WAIT_SECONDS, QUICK_WAIT_SECONDS, LiveReplies, Written, live_replies
from chatapi.chatrooms.models import Message, is_owned
from chatapi.chatrooms.prompts import NotAReplyError, TooBusyError
from chatapi.extensions import REDIS_BUDGET_SECONDS, db

CHECK_EVERY_SECONDS = 10.0
"""How often PostgreSQL is asked even though nothing points to an end: the announcement may be lost with Redis, the
caller's session may have ended."""
CHECK_AGAIN_SECONDS = 1.0
"""When PostgreSQL is asked again that did not answer: a stream outlives its restart."""
SHORTEST_WAIT_SECONDS = 0.05
PATIENCE_WITHOUT_REDIS_SECONDS = 1.0
RECONNECT_MILLISECONDS = 1000
RETRY_AFTER_SECONDS = 5

PING = ": ping\n\n"

DETAILS = {
    "upstream_unavailable": "The model could not be reached",
    "upstream_rejected": "The model refused the request",
    "timed_out": "The model did not answer in time",
    "safety_blocked": "The model blocked this for safety",
    "context_too_long": "The prompt does not fit the model",
    "internal_error": "Something went wrong on our side",
}
"""What a failed reply's `error` means, for people."""


def stream_reply(
    reply: Message, session_id: UUID, last_event_id: str | None, show: Callable[[Message], dict[str, Any]]
) -> tuple[Iterator[str], Callable[[], None]]:
    """Return the events of a reply, and what must be called when the stream is over.

    Raises `NotAReplyError` for a prompt, and `TooBusyError` when too many wait already.
    """
    if reply.message_type != "ai":
        raise NotAReplyError
    follower = Follower(last_event_id)
    if reply.is_final:
        return _ending(follower, reply, show), lambda: None
    room = waiting_room()
    if not room.enter():
        if room.is_closing:  # Its end at once has readers come back, to a process that stays.
            return iter((PING,)), lambda: None
        raise TooBusyError(retry_after=RETRY_AFTER_SECONDS)
    metrics.stream_opened()

    def leave() -> None:
        room.leave()
        metrics.stream_closed()

    return _follow(follower, reply.id, session_id, show), leave


def wait_for_reply(reply_id: UUID, seconds: int) -> Message | None:
    """Wait for the end of a reply; return it if it came in time, else None, also when there is no room to wait."""
    room = waiting_room()
    db.session.remove()
    with room.visit() as is_inside:
        if not is_inside:
            return None
        finished = _await_end(live_replies(), reply_id, time.monotonic() + seconds)
    # Once more after a wait without word, as it may have been lost with Redis.
    return finished or (None if room.is_closing else _look(reply_id))


def _await_end(live: LiveReplies, reply_id: UUID, deadline: float) -> Message | None:
    while not waiting_room().is_closing and not is_client_gone():
        left = deadline - time.monotonic()
        if left < REDIS_BUDGET_SECONDS:  # Should it hang, the answer would be late.
            time.sleep(max(0.0, left))
            break
        try:
            if live.wait_for_end(reply_id, min(left, QUICK_WAIT_SECONDS)):
                return _look(reply_id)
        except CircuitOpenError:
            # Nobody will tell, so this is the one time when PostgreSQL is asked again and again.
            if reply := _look(reply_id):
                return reply
            time.sleep(min(max(0.0, deadline - time.monotonic()), PATIENCE_WITHOUT_REDIS_SECONDS))
    return None


def _look(reply_id: UUID) -> Message | None:
    """Return the reply if it has ended; None also while PostgreSQL is away: the prompt is accepted in any case."""
    try:
        reply = service.read_message(reply_id)
    except SQLAlchemyError:
        return None
    finally:
        db.session.remove()
    return reply if reply is not None and reply.is_final else None


def _follow(
    follower: Follower, reply_id: UUID, session_id: UUID, show: Callable[[Message], dict[str, Any]]
) -> Iterator[str]:
    live, room = live_replies(), waiting_room()
    db.session.remove()
    position, check_at = BEGINNING, time.monotonic() + CHECK_EVERY_SECONDS
    yield f"retry: {RECONNECT_MILLISECONDS}\n\n"
    while not room.is_closing and not is_client_gone():
        written = _read(live, reply_id, position, check_at)
        for entry in written:
            position = entry.position
            follower.take(entry)
        if events := "".join(event.encode() for event in follower.events()):
            yield events
        elif not written:
            yield PING
        if time.monotonic() < check_at and not any(entry.is_end for entry in written):
            continue
        try:
            reply = _reload(reply_id, session_id)
        except SQLAlchemyError:
            check_at = time.monotonic() + CHECK_AGAIN_SECONDS
            continue
        check_at = time.monotonic() + CHECK_EVERY_SECONDS
        if reply is None:
            return
        if reply.is_final:
            yield from _ending(follower, reply, show)
            return


def _read(live: LiveReplies, reply_id: UUID, position: str, check_at: float) -> list[Written]:
    """Return what was written after `position`, after waiting for it if need be, but not much beyond `check_at`."""
    patience = min(MOST_WAIT_SECONDS, max(SHORTEST_WAIT_SECONDS, check_at - time.monotonic()))
    try:
        return live.read(reply_id, position, patience)
    except CircuitOpenError:
        time.sleep(PATIENCE_WITHOUT_REDIS_SECONDS)
        return []


def _ending(follower: Follower, reply: Message, show: Callable[[Message], dict[str, Any]]) -> Iterator[str]:
    for event in follower.finish(show(reply), reply.text_token, DETAILS.get(reply.error or "")):
        yield event.encode()


def _reload(reply_id: UUID, session_id: UUID) -> Message | None:
    """Read a reply anew; None if it is gone, or the session that asked for it has ended."""
    try:
        query = (
            select(Message)
            .join(Session, Session.id == session_id)
            .join(User, User.id == Session.user_id)
            .where(Message.id == reply_id, is_owned(Message.room_id), User.disabled_at.is_(None))
        )
        return db.session.scalars(query).one_or_none()
    finally:
        db.session.remove()
