"""What is known here of customers and subscriptions at Stripe, of its events, and what is left to do there."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, DateTime, ForeignKey, Index, SmallInteger, Text, func, text
from sqlalchemy.orm import Mapped, mapped_column

from chatapi.extensions import Base
from chatapi.ids import uuid7


class BillingCustomer(Base):
    """A user who has begun to pay, and their open checkout.

    Tickets order what is read from Stripe: who wants to read takes the next one first, and what was read is written
    only if nobody with a later one has written.
    """

    __tablename__ = "billing_customers"

    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    stripe_customer_id: Mapped[str | None] = mapped_column(Text, unique=True)
    generation: Mapped[int] = mapped_column(server_default="0")
    """How many customers of theirs are gone at Stripe, deleted in its dashboard."""
    sync_ticket: Mapped[int] = mapped_column(BigInteger, server_default="0")
    synced_ticket: Mapped[int] = mapped_column(BigInteger, server_default="0")
    sync_began_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    """When the reading began whose result is written."""
    checkout_key: Mapped[UUID | None]
    """The intent to buy, of which Stripe makes one session however often it is asked."""
    checkout_session_id: Mapped[str | None] = mapped_column(Text)
    checkout_url: Mapped[str | None] = mapped_column(Text)
    checkout_terms: Mapped[str | None] = mapped_column(Text)
    """What the session sells, and where it sends people: of other terms, another one is made."""
    checkout_expires_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    checkout_confirmed_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    """When Stripe last said that the session is open."""
    checkout_claimed_until: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    """Until when somebody is at it, and others wait."""
    healed_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


class Subscription(Base):
    """A subscription as Stripe had it when it was last asked; `status` is Stripe's word.

    `pro_until` is for how long it gives Pro, null when it does not. The account's own is the latest of them.
    """

    __tablename__ = "subscriptions"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid7)
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    stripe_subscription_id: Mapped[str] = mapped_column(Text, unique=True)
    status: Mapped[str] = mapped_column(Text)
    price_id: Mapped[str | None] = mapped_column(Text)
    """The price of ours, null if it has become a subscription to something else."""
    cancel_at_period_end: Mapped[bool]
    started_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    ended_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    current_period_end: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    pro_until: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


class StripeEvent(Base):
    """An event that Stripe has sent, once however often it came; of its content only who it is about.

    `due_at` is when to ring for it next, null once it is closed: `handled`, `ignored` or `unmatched`, for `reason`.
    `not_before` is when it may be handled next: somebody is at it, or it failed just now, whoever has been rung for.
    """

    __tablename__ = "stripe_events"
    __table_args__ = (
        Index("ix_stripe_events_due_at", "due_at", postgresql_where=text("due_at IS NOT NULL")),
        Index("ix_stripe_events_unmatched", "received_at", postgresql_where=text("status = 'unmatched'")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid7)
    event_id: Mapped[str] = mapped_column(Text, unique=True)
    type: Mapped[str] = mapped_column(Text)
    customer_id: Mapped[str | None] = mapped_column(Text, index=True)
    status: Mapped[str] = mapped_column(Text)
    reason: Mapped[str | None] = mapped_column(Text)
    attempts: Mapped[int] = mapped_column(server_default="0")
    due_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    not_before: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    stripe_created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    received_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    closed_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True), index=True)
    request_id: Mapped[str | None] = mapped_column(Text)
    """Stripe's own request that brought it."""


class BillingClosure(Base):
    """A customer whose account is erased, whose subscriptions are to end; it holds Stripe's id only.

    It stays when that is confirmed: whatever is still heard of the customer belongs to nobody. `due_at` and
    `not_before` are as with events.
    """

    __tablename__ = "billing_closures"
    __table_args__ = (Index("ix_billing_closures_due_at", "due_at", postgresql_where=text("due_at IS NOT NULL")),)

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid7)
    stripe_customer_id: Mapped[str] = mapped_column(Text, unique=True)
    attempts: Mapped[int] = mapped_column(server_default="0")
    last_error: Mapped[str | None] = mapped_column(Text)
    due_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    not_before: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    confirmed_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    request_id: Mapped[str | None] = mapped_column(Text)
    """The request that asked for it last, as long as it is to be done."""


class BillingReconciliation(Base):
    """The one row that says when all subscriptions are compared with Stripe next, and what the last time found."""

    __tablename__ = "billing_reconciliation"
    __table_args__ = (CheckConstraint("id = 1", name="one_row"),)

    id: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    due_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    not_before: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    started_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    finished_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    checked: Mapped[int] = mapped_column(server_default="0")
    drifted: Mapped[int] = mapped_column(server_default="0")
    total_drifted: Mapped[int] = mapped_column(BigInteger, server_default="0")
    unknown: Mapped[int] = mapped_column(server_default="0")
    failed: Mapped[int] = mapped_column(server_default="0")
