"""Chatrooms: made, listed, read, changed, deleted; always their owner's only."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import delete, exists, func, select, tuple_, update

from chatapi.auth.models import User
from chatapi.catalogue import catalogue, tier_of
from chatapi.chatrooms.models import Chatroom, Message, ReplyJob, is_owned, usage_of
from chatapi.errors import ChatAPIError, NotFoundError, UnauthorizedError, ValidationFailedError
from chatapi.extensions import db, delete_some, run_alone
from chatapi.ids import parse_id, uuid7
from chatapi.schemas import rfc3339

_CURSOR = re.compile(
    r"(?P<time>[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z) (?P<id>[0-9a-f-]{36})", re.ASCII
)


DELETED_AT_ONCE = 500
"""As many messages a request deletes; what is left of a larger room is the sweeper's, see `prune_rooms`."""


class ModelNotInPlanError(ChatAPIError):
    """The model is there, but not for the caller's tier."""

    status = HTTPStatus.FORBIDDEN
    slug = "model_not_in_plan"


@dataclass(frozen=True)
class ChatroomPage:
    """A page of a user's chatrooms and the cursor of the next, None on the last."""

    chatrooms: Sequence[Chatroom]
    next_cursor: str | None


class ShownChatroom(NamedTuple):
    """A chatroom as it is shown."""

    id: str
    title: str | None
    description: str | None
    system_instruction: str | None
    model: str | None
    message_count: int
    last_message_at: datetime | None
    created_at: datetime
    updated_at: datetime


class ShownMessage(NamedTuple):
    """A message as it is shown."""

    id: str
    content: str
    message_type: str
    status: str
    reply_to: str | None
    error: str | None
    model: str | None
    prompt_tokens: int | None
    output_tokens: int | None
    created_at: datetime
    updated_at: datetime

    @property
    def usage(self) -> dict[str, int | None] | None:
        """The tokens that the model counted."""
        return usage_of(self.prompt_tokens, self.output_tokens)


NO_SEQ = 2**63 - 1
"""More than any message has."""

_ROOM = """
    SELECT id::text, title, description, system_instruction, model, message_count, last_message_at, created_at,
           updated_at
    FROM chatrooms WHERE id = %(room_id)s AND user_id = %(user_id)s
"""
_SEQ = "SELECT seq FROM messages WHERE id = %(message_id)s AND room_id = %(room_id)s"
_NEWEST = """
    SELECT id::text, content, message_type, status, reply_to::text, error, model, prompt_tokens, output_tokens,
           created_at, updated_at
    FROM messages WHERE room_id = %(room_id)s AND seq < %(before_seq)s ORDER BY seq DESC LIMIT %(count)s
"""


def check_model(alias: str | None, *, is_pro: bool) -> None:
    """Raise `ModelNotInPlanError` if the caller's tier may not use the model of that alias; None is the default."""
    entry = catalogue().find(alias)
    if entry is not None and tier_of(is_pro=is_pro) not in entry.tiers:
        tiers = " and ".join(name.capitalize() for name in sorted(entry.tiers))
        raise ModelNotInPlanError(f"The model {entry.alias} is for {tiers} only; GET /models says which are yours")


def create_chatroom(user_id: UUID, **fields: Any) -> Chatroom:
    """Make a chatroom of the user."""
    touch_rooms(user_id)
    chatroom = Chatroom(id=uuid7(), user_id=user_id, **fields)
    db.session.add(chatroom)
    db.session.flush()
    db.session.refresh(chatroom)
    return chatroom


def list_chatrooms(user_id: UUID, limit: int, cursor: str | None) -> ChatroomPage:
    """Return up to `limit` chatrooms, the one with the newest message (else the newest made) first.

    Raises `ValidationFailedError` for a cursor that is not one of ours.
    """
    query = select(Chatroom).where(Chatroom.user_id == user_id)
    if cursor is not None:
        query = query.where(tuple_(Chatroom.activity_at, Chatroom.id) < tuple_(*_parse_cursor(cursor)))
    query = query.order_by(Chatroom.activity_at.desc(), Chatroom.id.desc()).limit(limit + 1)
    rooms = db.session.scalars(query).all()
    more = len(rooms) > limit
    return ChatroomPage(rooms[:limit], _cursor_of(rooms[limit - 1]) if more else None)


def find_chatroom(user_id: UUID, chatroom_id: str) -> Chatroom:
    """Return the user's chatroom of that id.

    Raises `NotFoundError` when it is malformed, unknown or somebody else's: nobody can tell which.
    """
    room = db.session.scalars(
        select(Chatroom).where(Chatroom.id == parse_id(chatroom_id, "Chatroom"), Chatroom.user_id == user_id)
    ).one_or_none()
    if room is None:
        raise NotFoundError("Chatroom not found")
    return room


def read_chatroom(user_id: UUID, chatroom_id: str, limit: int, before: str | None) -> dict[str, Any]:
    """Return the user's chatroom with its newest `limit` messages before the message `before`, oldest first.

    What it is for is shown and not changed, so it is rows and no objects that a session keeps. Raises `NotFoundError`
    as `find_chatroom` does, and when `before` is no message of the room.
    """
    room_id = str(parse_id(chatroom_id, "Chatroom"))
    rooms = run_alone(_ROOM, {"room_id": room_id, "user_id": str(user_id)})
    if not rooms:
        raise NotFoundError("Chatroom not found")
    before_seq = NO_SEQ if before is None else _seq_of(room_id, before)
    newest = run_alone(_NEWEST, {"room_id": room_id, "before_seq": before_seq, "count": limit + 1})
    messages = [ShownMessage._make(row) for row in newest[limit - 1 :: -1]]
    room = ShownChatroom._make(rooms[0])
    return {**room._asdict(), "messages": messages, "has_more": len(newest) > limit}


def _seq_of(room_id: str, message_id: str) -> int:
    found = run_alone(_SEQ, {"room_id": room_id, "message_id": str(parse_id(message_id, "Message"))})
    if not found:
        raise NotFoundError("Message not found")
    return int(found[0][0])


def find_owned_message(user_id: UUID, chatroom_id: str, message_id: str) -> Message:
    """Return a message of that room, which is the user's; raises `NotFoundError` whatever is wrong with the ids."""
    room_id, wanted = parse_id(chatroom_id, "Message"), parse_id(message_id, "Message")
    message = db.session.scalars(
        select(Message)
        .join(Chatroom, Chatroom.id == Message.room_id)
        .where(Message.id == wanted, Chatroom.id == room_id, Chatroom.user_id == user_id)
        .execution_options(populate_existing=True)
    ).one_or_none()
    if message is None:
        raise NotFoundError("Message not found")
    return message


def read_message(message_id: UUID) -> Message | None:
    """Return a message, for whoever has seen before that it is the caller's; None if it, or its room, was deleted."""
    return db.session.scalars(select(Message).where(Message.id == message_id, is_owned(Message.room_id))).one_or_none()


def update_chatroom(user_id: UUID, chatroom_id: str, fields: dict[str, Any]) -> Chatroom:
    """Change what `fields` names and return the chatroom."""
    room_id = parse_id(chatroom_id, "Chatroom")
    touch_rooms(user_id)
    room = db.session.scalars(
        update(Chatroom)
        .where(Chatroom.id == room_id, Chatroom.user_id == user_id)
        .values(**fields, updated_at=func.now())
        .returning(Chatroom)
    ).one_or_none()
    if room is None:
        raise NotFoundError("Chatroom not found")
    return room


def delete_chatroom(user_id: UUID, chatroom_id: str) -> Sequence[UUID]:
    """Delete the chatroom with its messages; return the replies that were under way in it, and are gone too.

    Of more than `DELETED_AT_ONCE` messages those that are finished are left to `prune_rooms`, in a room of nobody.
    """
    room_id = parse_id(chatroom_id, "Chatroom")
    touch_rooms(user_id)
    message_count = db.session.scalar(
        select(Chatroom.message_count).where(Chatroom.id == room_id, Chatroom.user_id == user_id).with_for_update()
    )
    if message_count is None:
        raise NotFoundError("Chatroom not found")
    unfinished = db.session.scalars(select(ReplyJob.message_id).where(ReplyJob.room_id == room_id)).all()
    if message_count <= DELETED_AT_ONCE:
        db.session.execute(delete(Chatroom).where(Chatroom.id == room_id))
    else:
        db.session.execute(delete(Message).where(Message.id.in_(unfinished)))
        disowned = {"user_id": None, "former_user_id": user_id, "title": None, "description": None}
        db.session.execute(update(Chatroom).where(Chatroom.id == room_id).values(**disowned, system_instruction=None))
    return unfinished


def prune_rooms() -> int:
    """Delete some of the messages that a deleted room has left, or the room without any; return how many it was."""
    # Locked before its messages, as by whoever erases the account: else they would meet at replies and their prompts.
    room_id = db.session.scalar(
        select(Chatroom.id)
        .where(Chatroom.former_user_id.is_not(None))
        .order_by(Chatroom.former_user_id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    if room_id is None:
        return 0
    is_empty = ~exists().where(Message.room_id == Chatroom.id)
    return delete_some(Message, Message.room_id == room_id) or delete_some(Chatroom, Chatroom.id == room_id, is_empty)


def fields_of(room: Chatroom) -> dict[str, Any]:
    """Return the columns of a chatroom by their names."""
    return {column.key: getattr(room, column.key) for column in Chatroom.__table__.columns}


def touch_rooms(user_id: UUID) -> None:
    """Make every cached list of the user's rooms outdated. Locks the user's row, which comes first in the order.

    Raises `UnauthorizedError` if the account was erased meanwhile.
    """
    touched = db.session.scalar(
        update(User)
        .where(User.id == user_id)
        .values(rooms_version=User.rooms_version + 1)
        .returning(User.id)
        .execution_options(synchronize_session=False)
    )
    if touched is None:
        raise UnauthorizedError


def _cursor_of(room: Chatroom) -> str:
    return base64.urlsafe_b64encode(f"{rfc3339(room.activity_at)} {room.id}".encode()).decode().rstrip("=")


def _parse_cursor(cursor: str) -> tuple[datetime, UUID]:
    """Return what `_cursor_of` put into a cursor; in just its form, as Python reads times that PostgreSQL does not."""
    with suppress(ValueError):
        decoded = base64.b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        if found := _CURSOR.fullmatch(decoded.decode("ascii")):
            return datetime.fromisoformat(found["time"]), UUID(found["id"])
    raise ValidationFailedError(errors={"cursor": ["Not a cursor of this list."]})
