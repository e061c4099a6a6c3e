"""Accepting a prompt, or a second reply to one: one transaction, after which it cannot be lost, then the doorbell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from http import HTTPStatus
from typing import Any
from uuid import UUID

import structlog
from flask import current_app
from sqlalchemy import func, select, text, update

from chatapi import metrics, quota
from chatapi.auth.models import User
from chatapi.broker import ring
from chatapi.chatrooms import service
from chatapi.chatrooms.idempotency import KeyedRequest, claim_key
from chatapi.chatrooms.models import FINAL, Chatroom, Message
from chatapi.errors import ChatAPIError, ConflictError, NotFoundError, ServiceUnavailableError, UnauthorizedError
from chatapi.extensions import db
from chatapi.ids import parse_id, uuid7
from chatapi.request_ids import current_request_id

GENERATE_REPLY = "generate_reply"
REPLIES_QUEUE = "replies"

RING_GRACE_SECONDS = 5
"""How long the sweeper leaves a fresh job alone: the ring after commit is normally enough."""

IN_FLIGHT_RETRY_AFTER_SECONDS = 5
BUSY_RETRY_AFTER_SECONDS = 10

log = structlog.get_logger(__name__)

# Prompt, pending reply, job row and the room's counters in one round trip. The bounds are looked at here, after the
# user's row was locked: in a statement begun earlier, those who waited for the lock would see old counts. The backlog
# is counted no further than its bound, so that it costs nothing while there is little of it.
_ACCEPT = """
    WITH load AS (
        SELECT (SELECT count(*) FROM reply_jobs WHERE user_id = :user_id) AS in_flight,
               (SELECT count(*) FROM (SELECT FROM reply_jobs LIMIT :max_backlog) AS counted) AS backlog
    ), room AS (
        UPDATE chatrooms
        SET seq = seq + {count}, message_count = message_count + {count}, updated_at = now(), last_message_at = now(),
            activity_at = greatest(activity_at, now())
        FROM load
        WHERE id = :room_id AND user_id = :user_id
          AND load.in_flight < :max_in_flight AND load.backlog < :max_backlog
        RETURNING id, user_id, seq
    ), {prompt} reply AS (
        INSERT INTO messages (id, room_id, user_id, seq, message_type, content, status, reply_to, charged_day)
        SELECT :reply_id, id, user_id, seq, 'ai', '', 'pending', :prompt_id, :charged_day FROM room
    ), job AS (
        INSERT INTO reply_jobs (message_id, room_id, user_id, seq, ring_at, request_id)
        SELECT :reply_id, id, user_id, seq, now() + make_interval(secs => :ring_grace), :request_id FROM room
    )
    SELECT load.in_flight, load.backlog, room.seq, now() AS accepted_at FROM load LEFT JOIN room ON true
"""
_PROMPT = """prompt AS (
        INSERT INTO messages (id, room_id, user_id, seq, message_type, content, status)
        SELECT :prompt_id, id, user_id, seq - 1, 'user', :content, 'completed' FROM room
    ),"""
_ACCEPT_PROMPT = text(_ACCEPT.format(count=2, prompt=_PROMPT))
_ACCEPT_AGAIN = text(_ACCEPT.format(count=1, prompt=""))


class TooManyInFlightError(ChatAPIError):
    """The user has too many unfinished replies."""

    status = HTTPStatus.TOO_MANY_REQUESTS
    slug = "too_many_in_flight"
    message = "Too many of your prompts are unanswered; wait for some of the replies"


class TooBusyError(ServiceUnavailableError):
    """There is no room for more work at the moment."""

    slug = "too_busy"
    message = "Too much is going on right now, try again shortly"


class NotAReplyError(ConflictError):
    """A user's message cannot be stopped, streamed or made again."""

    slug = "not_a_reply"
    message = "This is a prompt, not a reply"


class NotFinishedError(ConflictError):
    """A prompt has one unfinished reply at the most."""

    slug = "not_finished"
    message = "This prompt has a reply that is not finished; stop it or wait for it"


@dataclass(frozen=True)
class AcceptedPrompt:
    """A prompt that is stored, and its reply, pending; as they are now if it was accepted earlier (`is_replay`)."""

    user_message: Message
    ai_message: Message
    is_replay: bool = False


def post_message(user_id: UUID, chatroom_id: str, content: str, keyed: KeyedRequest | None = None) -> AcceptedPrompt:
    """Accept a prompt. Rows are locked in the order that holds everywhere: user, usage, room, messages, job.

    Raises `NotFoundError` when the room is not the user's, `DailyLimitReachedError` when a Basic user has no prompt
    left, `TooManyInFlightError`, `TooBusyError`, and what `claim_key` raises; in each case nothing is stored or counted
    once the caller rolls back.
    """
    room_id = parse_id(chatroom_id, "Chatroom")

    def accept(reply_id: UUID) -> AcceptedPrompt:
        charged_day = _charge(user_id, _lock_user(user_id, room_id))
        prompt_id = uuid7()
        accepted_at = _insert(_ACCEPT_PROMPT, user_id, room_id, prompt_id, reply_id, charged_day, content=content)
        times = {"created_at": accepted_at, "updated_at": accepted_at}
        prompt = Message(id=prompt_id, message_type="user", content=content, status="completed", **times)
        return AcceptedPrompt(prompt, _pending(reply_id, prompt_id, times))

    return _once(user_id, keyed, accept)


def regenerate(user_id: UUID, chatroom_id: str, message_id: str, keyed: KeyedRequest | None = None) -> AcceptedPrompt:
    """Accept another reply to the prompt that the reply `message_id` answers; it counts as one prompt.

    Raises as `post_message` does, `NotAReplyError` for a prompt, and `NotFinishedError` while a reply to the prompt is
    under way.
    """
    room_id = parse_id(chatroom_id, "Chatroom")

    def accept(reply_id: UUID) -> AcceptedPrompt:
        user = _lock_user(user_id, room_id)
        prompt = _prompt_of(service.find_owned_message(user_id, chatroom_id, message_id))
        charged_day = _charge(user_id, user)
        accepted_at = _insert(_ACCEPT_AGAIN, user_id, room_id, prompt.id, reply_id, charged_day)
        times = {"created_at": accepted_at, "updated_at": accepted_at}
        return AcceptedPrompt(prompt, _pending(reply_id, prompt.id, times))

    return _once(user_id, keyed, accept)


def announce(accepted: AcceptedPrompt) -> None:
    """Log and count a prompt whose acceptance is committed, and wake a worker up for it."""
    if accepted.is_replay:
        return
    log.info("reply_accepted", reply_id=str(accepted.ai_message.id))
    metrics.accepted()
    ring_reply(accepted.ai_message.id)


def ring_reply(reply_id: UUID) -> None:
    """Wake a worker up for a reply whose job is committed."""
    ring(GENERATE_REPLY, REPLIES_QUEUE, reply_id)


def _once(user_id: UUID, keyed: KeyedRequest | None, accept: Callable[[UUID], AcceptedPrompt]) -> AcceptedPrompt:
    """Accept, or return what was accepted under the request's key earlier."""
    reply_id = uuid7()
    earlier = claim_key(user_id, keyed, reply_id) if keyed is not None else None
    return accept(reply_id) if earlier is None else _replay(earlier)


def _replay(reply_id: UUID) -> AcceptedPrompt:
    reply = db.session.get(Message, reply_id)
    prompt = reply and db.session.get(Message, reply.reply_to)
    if reply is None or prompt is None:
        raise NotFoundError("Chatroom not found")  # Deleted since, with all that was in it.
    return AcceptedPrompt(prompt, reply, is_replay=True)


def _prompt_of(reply: Message) -> Message:
    if reply.message_type != "ai":
        raise NotAReplyError
    siblings = db.session.scalars(select(Message.status).where(Message.reply_to == reply.reply_to)).all()
    if not FINAL.issuperset(siblings):
        raise NotFinishedError
    return db.session.get_one(Message, reply.reply_to)


def _lock_user(user_id: UUID, room_id: UUID) -> Any:
    """Lock the user's row, which comes first in the order, and outdate the cached room list."""
    user = db.session.execute(
        update(User)
        .where(User.id == user_id)
        .values(rooms_version=User.rooms_version + 1)
        .returning(
            User.number_hash,
            func.coalesce(User.pro_until > func.now(), False).label("is_pro"),
            select(Chatroom.id).where(Chatroom.id == room_id, Chatroom.user_id == user_id).exists().label("has_room"),
        )
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if user is None:
        raise UnauthorizedError
    if not user.has_room:
        raise NotFoundError("Chatroom not found")
    return user


def _charge(user_id: UUID, user: Any) -> date | None:
    """Count the prompt; return the day charged, None on Pro."""
    return None if user.is_pro else quota.consume(user_id, user.number_hash)


def _insert(
    statement: Any,
    user_id: UUID,
    room_id: UUID,
    prompt_id: UUID,
    reply_id: UUID,
    charged_day: date | None,
    **more: Any,
) -> Any:
    """Store what is accepted and return when that was."""
    config = current_app.config
    bounds = {"max_in_flight": config["MAX_IN_FLIGHT_PER_USER"], "max_backlog": config["MAX_BACKLOG"]}
    ids = {"user_id": user_id, "room_id": room_id, "prompt_id": prompt_id, "reply_id": reply_id}
    job = {"ring_grace": RING_GRACE_SECONDS, "request_id": current_request_id()}
    row = db.session.execute(statement, {**ids, **bounds, **job, "charged_day": charged_day, **more}).one()
    if row.in_flight >= bounds["max_in_flight"]:
        raise TooManyInFlightError(retry_after=IN_FLIGHT_RETRY_AFTER_SECONDS)
    if row.backlog >= bounds["max_backlog"]:
        raise TooBusyError(retry_after=BUSY_RETRY_AFTER_SECONDS)
    if row.seq is None:
        raise NotFoundError("Chatroom not found")
    return row.accepted_at


def _pending(reply_id: UUID, prompt_id: UUID, times: dict[str, Any]) -> Message:
    return Message(id=reply_id, message_type="ai", content="", status="pending", reply_to=prompt_id, **times)
