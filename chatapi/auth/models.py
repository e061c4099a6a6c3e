"""Accounts and sessions, sign-ups and one-time codes, what limits are counted by, and the audit log."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, BigInteger, DateTime, ForeignKey, Index, LargeBinary, SmallInteger, Text, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from chatapi.extensions import Base
from chatapi.ids import uuid7


class User(Base):
    """An account. It can be used once `verified_at` says that its number was proven."""

    __tablename__ = "users"
    __table_args__ = (Index("ix_users_unverified", "created_at", postgresql_where=text("verified_at IS NULL")),)

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid7)
    mobile_number: Mapped[str] = mapped_column(Text, unique=True)
    number_hash: Mapped[bytes] = mapped_column(LargeBinary)
    name: Mapped[str | None] = mapped_column(Text)
    email: Mapped[str | None] = mapped_column(Text)
    password_hash: Mapped[str | None] = mapped_column(Text)
    verified_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    disabled_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    pro_until: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    session_version: Mapped[int] = mapped_column(server_default="1")
    rooms_version: Mapped[int] = mapped_column(BigInteger, server_default="1")
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())

    @property
    def is_pro(self) -> bool:
        """Whether Pro is paid for at this moment; for showing. What is charged asks the database's own clock."""
        return self.pro_until is not None and self.pro_until > datetime.now(UTC)


IS_USABLE = (User.verified_at.is_not(None), User.disabled_at.is_(None))
"""Of an account that somebody can sign in to with a password."""


class Signup(Base):
    """What one sign-up asked for; it becomes the account's when its token comes with the number's code."""

    __tablename__ = "signups"

    token_hash: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    name: Mapped[str | None] = mapped_column(Text)
    email: Mapped[str | None] = mapped_column(Text)
    password_hash: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    expires_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), index=True)


class OtpCode(Base):
    """The one code that is good for a number and a purpose: a new one takes the place of the old."""

    __tablename__ = "otp_codes"

    number_hash: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    purpose: Mapped[str] = mapped_column(Text, primary_key=True)
    challenge_id: Mapped[UUID]
    code_hash: Mapped[bytes] = mapped_column(LargeBinary)
    attempts: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    expires_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), index=True)
    used_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class Session(Base):
    """One sign-in: the family that its refresh tokens belong to. Its tokens are good only while the row is there."""

    __tablename__ = "sessions"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid7)
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    refreshed_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    expires_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), index=True)


class RefreshToken(Base):
    """A refresh token, known by its hash. Used ones stay until they expire: one that comes again ends its family.

    It names the family only, and not the user, so that rotating a token takes no lock on the user's row.
    """

    __tablename__ = "refresh_tokens"

    token_hash: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    family_id: Mapped[UUID] = mapped_column(ForeignKey("sessions.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    expires_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), index=True)
    used_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class OutboxMessage(Base):
    """A code on its way to the SMS gateway, encrypted, deleted once delivered or too old to be of use."""

    __tablename__ = "otp_outbox"
    __table_args__ = (Index("ix_otp_outbox_due_at", "due_at"),)

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid7)
    number_hash: Mapped[bytes | None] = mapped_column(LargeBinary, index=True)
    purpose: Mapped[str | None] = mapped_column(Text)
    payload: Mapped[bytes] = mapped_column(LargeBinary)
    attempts: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    due_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    expires_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    request_id: Mapped[str | None] = mapped_column(Text)
    """The request that asked for the code."""
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


class AuthLimit(Base):
    """When something that is limited was done, such as a code sent to a number; newest last.

    `subject` is a keyed hash of a number or an address, so the row tells nobody whose it is, and outlives accounts.
    """

    __tablename__ = "auth_limits"

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    subject: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    hits: Mapped[list[datetime]] = mapped_column(ARRAY(DateTime(timezone=True)))
    expires_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), index=True)


class AuthFailures(Base):
    """How many checks of codes and passwords failed, over all numbers, within ten seconds from `began_at`."""

    __tablename__ = "auth_failures"

    began_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), primary_key=True)
    failures: Mapped[int]


class KnownNetwork(Base):
    """An address, by its keyed hash, that somebody has signed in from."""

    __tablename__ = "known_networks"

    network_hash: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    seen_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now(), index=True)


class AuditEvent(Base):
    """What an operator did to an account. It outlives the account, so it names the number by its hash."""

    __tablename__ = "audit_events"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid7)
    action: Mapped[str] = mapped_column(Text)
    actor: Mapped[str] = mapped_column(Text)
    number_hash: Mapped[bytes] = mapped_column(LargeBinary, index=True)
    details: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default="{}")
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
