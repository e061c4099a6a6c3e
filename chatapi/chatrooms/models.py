"""Chatrooms, their messages, and the jobs of replies that are not finished."""

from __future__ import annotations

from datetime import date, datetime
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, Date, DateTime, ForeignKey, Index, SmallInteger, Text, func
from sqlalchemy.orm import Mapped, mapped_column

from chatapi.extensions import Base
from chatapi.ids import uuid7


class Chatroom(Base):
    """A conversation of one user. `seq` is the number of its newest message, given out under the row's lock."""

    __tablename__ = "chatrooms"
    __table_args__ = (Index("ix_chatrooms_user_id_activity_at_id", "user_id", "activity_at", "id"),)

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid7)
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
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
    """A prompt of the user or a reply to one. `charged_day` is set on a reply whose prompt was counted."""

    __tablename__ = "messages"
    __table_args__ = (
        Index("uq_messages_room_id_seq", "room_id", "seq", unique=True),
        CheckConstraint("message_type IN ('user', 'ai')", name="message_type"),
        CheckConstraint("status IN ('pending', 'processing', 'completed', 'failed', 'stopped')", name="status"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid7)
    room_id: Mapped[UUID] = mapped_column(ForeignKey("chatrooms.id", ondelete="CASCADE"))
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
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())

    @property
    def usage(self) -> dict[str, int | None] | None:
        """The tokens that the model counted, None where it said nothing of them."""
        if self.prompt_tokens is None and self.output_tokens is None:
            return None
        return {"prompt_tokens": self.prompt_tokens, "output_tokens": self.output_tokens}


class ReplyJob(Base):
    """The work that an unfinished reply still needs; the row goes when the reply ends.

    Whoever holds `lease_token` may write the end, until `lease_expires_at`. Nothing runs before `run_at`, and
    `ring_at` is when the sweeper shall next see to the job.
    """

    __tablename__ = "reply_jobs"
    __table_args__ = (
        Index("ix_reply_jobs_ring_at", "ring_at"),
        Index("ix_reply_jobs_room_id_seq", "room_id", "seq"),
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
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
