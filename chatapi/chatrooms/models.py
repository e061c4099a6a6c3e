"""Chatrooms, their messages, and the jobs of replies that are not finished."""

from __future__ import annotations

from datetime import date, datetime
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Date,
    DateTime,
    Exists,
    ForeignKey,
    Index,
    LargeBinary,
    SmallInteger,
    Text,
    exists,
    func,
    text,
)
from sqlalchemy.orm import InstrumentedAttribute, Mapped, mapped_column

from chatapi.extensions import Base
from chatapi.ids import uuid7

FINAL = frozenset({"completed", "failed", "stopped"})

MESSAGE_DOCUMENT = "to_tsvector('simple', content) || array_to_tsvector(ARRAY[coalesce(user_id::text, '-')])"
CHATROOM_DOCUMENT = (
    "to_tsvector('simple', (coalesce(title, '') || ' ') || coalesce(description, ''))"
    " || array_to_tsvector(ARRAY[user_id::text])"
)
"""What search looks through. The owner is a word of each text: who searches for one word and that one gets both from
the index, and somebody else's million messages cost nothing."""


class Chatroom(Base):
    """A conversation of one user. `seq` is the number of its newest message, given out under the row's lock.

    A deleted room that still has messages is nobody's, so that whoever asks by owner finds no trace of it; the account
    whose it was, `former_user_id`, takes it along when it is erased.
    """

    __tablename__ = "chatrooms"
    __table_args__ = (
        Index("ix_chatrooms_user_id_activity_at_id", "user_id", "activity_at", "id"),
        Index(
            "ix_chatrooms_search_owned",
            text(f"({CHATROOM_DOCUMENT})"),
            postgresql_using="gin",
            postgresql_where=text("user_id IS NOT NULL"),
        ),
        Index(
            "ix_chatrooms_former_user_id",
            "former_user_id",
            postgresql_where=text("former_user_id IS NOT NULL"),
        ),
        CheckConstraint("num_nonnulls(user_id, former_user_id) = 1", name="owner"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid7)
    user_id: Mapped[UUID | None] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    former_user_id: Mapped[UUID | None] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    title: Mapped[str | None] = mapped_column(Text)
    description: Mapped[str | None] = mapped_column(Text)
    system_instruction: Mapped[str | None] = mapped_column(Text)
    model: Mapped[str | None] = mapped_column(Text)
    seq: Mapped[int] = mapped_column(BigInteger, server_default="0")
    message_count: Mapped[int] = mapped_column(server_default="0")
    last_message_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    activity_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


class Message(Base):
    """A prompt of the user or a reply to one. `charged_day` is set on a reply whose prompt was counted.

    `text_token` names the lease whose streamed text became `content`, so that who followed it knows where they are.
    `user_id` is the room's, kept here for the search index.
    """

    __tablename__ = "messages"
    __table_args__ = (
        Index("uq_messages_room_id_seq", "room_id", "seq", unique=True),
        Index(
            "uq_messages_reply_to_unfinished",
            "reply_to",
            unique=True,
            postgresql_where=text("status IN ('pending', 'processing')"),
        ),
        Index("ix_messages_search", text(f"({MESSAGE_DOCUMENT})"), postgresql_using="gin"),
        CheckConstraint("message_type IN ('user', 'ai')", name="message_type"),
        CheckConstraint("status IN ('pending', 'processing', 'completed', 'failed', 'stopped')", name="status"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid7)
    room_id: Mapped[UUID] = mapped_column(ForeignKey("chatrooms.id", ondelete="CASCADE"))
    user_id: Mapped[UUID | None]
    seq: Mapped[int] = mapped_column(BigInteger)
    message_type: Mapped[str] = mapped_column(Text)
    content: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(Text)
    reply_to: Mapped[UUID | None] = mapped_column(ForeignKey("messages.id", ondelete="CASCADE"), index=True)
    error: Mapped[str | None] = mapped_column(Text)
    model: Mapped[str | None] = mapped_column(Text)
    prompt_tokens: Mapped[int | None]
    output_tokens: Mapped[int | None]
    charged_day: Mapped[date | None] = mapped_column(Date)
    text_token: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())

    @property
    def is_final(self) -> bool:
        """Whether it will not change any more."""
        return self.status in FINAL

    @property
    def usage(self) -> dict[str, int | None] | None:
        """The tokens that the model counted, None where it said nothing of them."""
        return usage_of(self.prompt_tokens, self.output_tokens)


def is_owned(room_id: UUID | InstrumentedAttribute[UUID]) -> Exists:
    """Return the condition that a room is somebody's: what is left of a deleted one is not to be shown."""
    return exists().where(Chatroom.id == room_id, Chatroom.user_id.is_not(None))


def usage_of(prompt_tokens: int | None, output_tokens: int | None) -> dict[str, int | None] | None:
    """Return the tokens that a model counted, None where it said nothing of them."""
    if prompt_tokens is None and output_tokens is None:
        return None
    return {"prompt_tokens": prompt_tokens, "output_tokens": output_tokens}


class ReplyJob(Base):
    """The work that an unfinished reply still needs; the row goes when the reply ends.

    Whoever holds `lease_token` may write the end, until `lease_expires_at`. Nothing runs before `run_at`, and
    `ring_at` is when the sweeper shall next see to the job. `last_error` is why the last attempt failed, for operators.
    """

    __tablename__ = "reply_jobs"
    __table_args__ = (
        Index("ix_reply_jobs_ring_at", "ring_at"),
        Index("ix_reply_jobs_room_id_seq", "room_id", "seq"),
        Index("ix_reply_jobs_user_id", "user_id"),
    )

    message_id: Mapped[UUID] = mapped_column(ForeignKey("messages.id", ondelete="CASCADE"), primary_key=True)
    room_id: Mapped[UUID]
    user_id: Mapped[UUID]
    seq: Mapped[int] = mapped_column(BigInteger)
    attempts: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    run_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    ring_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    rings: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    lease_token: Mapped[int | None] = mapped_column(BigInteger)
    lease_expires_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    stop_requested_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    last_error: Mapped[str | None] = mapped_column(Text)
    request_id: Mapped[str | None] = mapped_column(Text)
    """The request that asked for the reply; what is done for it is logged, and asked of the model, under its id."""
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


class IdempotencyKey(Base):
    """A key that a user's prompt was accepted under, and what was accepted; `fingerprint` is of the whole request."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (Index("ix_idempotency_keys_created_at", "created_at"),)

    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(Text, primary_key=True)
    fingerprint: Mapped[bytes] = mapped_column(LargeBinary)
    reply_id: Mapped[UUID]
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
