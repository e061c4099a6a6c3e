"""Accepting a prompt: one transaction, after which it cannot be lost, and then the doorbell."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from uuid import UUID

from sqlalchemy import func, select, text, update

from chatapi import quota
from chatapi.auth.models import User
from chatapi.broker import ring
from chatapi.chatrooms.models import Chatroom, Message
from chatapi.errors import NotFoundError, UnauthorizedError
from chatapi.extensions import db
from chatapi.ids import parse_id, uuid7

GENERATE_REPLY = "generate_reply"
REPLIES_QUEUE = "replies"

RING_GRACE_SECONDS = 5
"""How long the sweeper leaves a fresh job alone: the ring after commit is normally enough."""

# Prompt, pending reply, job row and the room's counters in one round trip. It yields no row, and changes nothing,
# when the room is not there or not the user's.
_ACCEPT = text("""
    WITH room AS (
        UPDATE chatrooms
        SET seq = seq + 2, message_count = message_count + 2, updated_at = now(), last_message_at = now(),
            activity_at = greatest(activity_at, now())
        WHERE id = :room_id AND user_id = :user_id
        RETURNING id, user_id, seq
    ), prompt AS (
        INSERT INTO messages (id, room_id, user_id, seq, message_type, content, status)
        SELECT :prompt_id, id, user_id, seq - 1, 'user', :content, 'completed' FROM room
    ), reply AS (
        INSERT INTO messages (id, room_id, user_id, seq, message_type, content, status, reply_to, charged_day)
        SELECT :reply_id, id, user_id, seq, 'ai', '', 'pending', :prompt_id, :charged_day FROM room
    ), job AS (
        INSERT INTO reply_jobs (message_id, room_id, user_id, seq, ring_at)
        SELECT :reply_id, id, user_id, seq, now() + make_interval(secs => :ring_grace) FROM room
    )
    SELECT seq, now() AS accepted_at FROM room
""")


@dataclass(frozen=True)
class AcceptedPrompt:
    """A prompt that is stored, and its reply, pending."""

    user_message: Message
    ai_message: Message


def post_message(user_id: UUID, chatroom_id: str, content: str) -> AcceptedPrompt:
    """Accept a prompt. Rows are locked in the order that holds everywhere: user, usage, room, messages, job.

    Raises `NotFoundError` when the room is not the user's, and `DailyLimitReachedError` when a Basic user has no
    prompt left; in either case nothing is stored or counted once the caller rolls back.
    """
    room_id = parse_id(chatroom_id, "Chatroom")
    charged_day = _charge(user_id, room_id)
    prompt_id, reply_id = uuid7(), uuid7()
    row = db.session.execute(
        _ACCEPT,
        {
            "room_id": room_id,
            "user_id": user_id,
            "prompt_id": prompt_id,
            "reply_id": reply_id,
            "content": content,
            "charged_day": charged_day,
            "ring_grace": RING_GRACE_SECONDS,
        },
    ).one_or_none()
    if row is None:
        raise NotFoundError("Chatroom not found")
    times = {"created_at": row.accepted_at, "updated_at": row.accepted_at}
    return AcceptedPrompt(
        Message(id=prompt_id, message_type="user", content=content, status="completed", **times),
        Message(id=reply_id, message_type="ai", content="", status="pending", reply_to=prompt_id, **times),
    )


def ring_reply(reply_id: UUID) -> None:
    """Wake a worker up for a reply whose job is committed."""
    ring(GENERATE_REPLY, REPLIES_QUEUE, reply_id)


def _charge(user_id: UUID, room_id: UUID) -> date | None:
    """Lock the user, outdate the cached room list, and count the prompt; return the day charged, None on Pro."""
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
    return None if user.is_pro else quota.consume(user_id, user.number_hash)
