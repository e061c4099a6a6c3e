"""What operators may do: have events handled at once or dismissed, and have one account compared with Stripe."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import Row, select, text

from chatapi.auth import audit
from chatapi.auth.models import AuditEvent, User
from chatapi.broker import BILLING_QUEUE, ring
from chatapi.extensions import db, in_transaction
from chatapi.subscriptions.events import HANDLE_EVENT
from chatapi.subscriptions.gateway import gateway
from chatapi.subscriptions.models import Subscription
from chatapi.subscriptions.sync import Outcome, sync_customer

RETRY_BATCH = 500

log = structlog.get_logger(__name__)

NOBODY = UUID(int=0)
"""Before all ids."""

_FIND = text("""
    SELECT event.status, event.reason, account.number_hash
    FROM stripe_events AS event
    LEFT JOIN billing_customers AS customer ON customer.stripe_customer_id = event.customer_id
    LEFT JOIN users AS account ON account.id = customer.user_id
    WHERE event.event_id = :event_id
""")

# By id, so that each is taken once: one that matches nobody is closed again within moments.
_MAKE_DUE = text("""
    UPDATE stripe_events
    SET status = CASE status WHEN 'unmatched' THEN 'retrying' ELSE status END, due_at = clock_timestamp(),
        not_before = NULL, closed_at = NULL
    WHERE id IN (
        SELECT id FROM stripe_events
        WHERE (due_at IS NOT NULL OR status = 'unmatched') AND id > :after
          AND (CAST(:event_id AS text) IS NULL OR event_id = :event_id)
        ORDER BY id LIMIT :limit FOR UPDATE SKIP LOCKED
    )
    RETURNING id
""")

# A handler that is at it meanwhile finds it closed, and writes nothing.
_DISMISS = text("""
    UPDATE stripe_events SET status = 'ignored', reason = 'dismissed', due_at = NULL, closed_at = now()
    WHERE event_id = :event_id
      AND (status = 'unmatched' OR (status = 'retrying' AND reason = 'unknown_customer'))
    RETURNING id
""")


class RefusedError(Exception):
    """What an operator asked for cannot be done; the message says why in a sentence."""


@dataclass(frozen=True)
class AccountState:
    """An account's tier, and Stripe's word on each of its subscriptions, oldest first."""

    tier: str
    subscriptions: dict[str, str]


def retry_event(event_id: str) -> None:
    """Let an event that is open, or that matched nobody, be due now, and ring for it.

    Raises `RefusedError` when there is no such event, or when it is closed for good.
    """

    def work() -> tuple[list[UUID], AuditEvent | None]:
        found = _find_open(event_id)
        row_ids = _make_due(event_id, NOBODY)
        is_somebody = row_ids and found.number_hash is not None
        return row_ids, audit.record("event_retried", found.number_hash, event=event_id) if is_somebody else None

    row_ids, event = in_transaction(work)
    if event is not None:
        audit.announce(event)
    _ring(row_ids)


def dismiss_event(event_id: str) -> None:
    """Close an event whose customer is nobody here, for somebody who has looked into it.

    Raises `RefusedError` when there is no such event, when it is closed for good, or waits for something else.
    """

    def work() -> AuditEvent | None:
        found = _find_open(event_id)
        if db.session.execute(_DISMISS, {"event_id": event_id}).first() is None:
            because = f" ({found.reason})" if found.reason else ""
            raise RefusedError(f"The event {event_id} is {found.status}{because}: it will be handled.")
        number_hash = found.number_hash
        return None if number_hash is None else audit.record("event_dismissed", number_hash, event=event_id)

    event = in_transaction(work)
    if event is not None:
        audit.announce(event)
    log.info("stripe_event_closed", stripe_event=event_id, status="ignored", reason="dismissed", actor=audit.operator())


def _find_open(event_id: str) -> Row[Any]:
    """Return an event that is open or matched nobody, with whose it is by now. Raises `RefusedError`."""
    found = db.session.execute(_FIND, {"event_id": event_id}).one_or_none()
    if found is None:
        raise RefusedError(f"There is no event {event_id}.")
    if found.status in ("handled", "ignored"):
        because = f" ({found.reason})" if found.reason else ""
        raise RefusedError(f"The event {event_id} was {found.status}{because}, and stays as it is.")
    return found


def retry_all() -> int:
    """Let all events that are open or matched nobody be due now, and ring for them; return how many it was."""
    total, after = 0, NOBODY
    while row_ids := in_transaction(partial(_make_due, None, after)):
        _ring(row_ids)
        total, after = total + len(row_ids), max(row_ids)
    return total


def _make_due(event_id: str | None, after: UUID) -> list[UUID]:
    wanted = {"event_id": event_id, "after": after, "limit": RETRY_BATCH}
    return list(db.session.scalars(_MAKE_DUE, wanted))


def _ring(row_ids: list[UUID]) -> None:
    for row_id in row_ids:
        ring(HANDLE_EVENT, BILLING_QUEUE, row_id)


def check_account(user: User, customer_id: str) -> tuple[Outcome, AccountState, AccountState]:
    """Bring an account to what Stripe has now; return what came of it, and how it stood before and stands after.

    Raises `BillingUnavailableError`, `BillingNotConfiguredError`; nothing is written then.
    """
    stripe = gateway()
    before = in_transaction(lambda: read_account(user.id))
    outcome = sync_customer(stripe, customer_id)
    after = in_transaction(lambda: read_account(user.id))
    if outcome is Outcome.CHANGED:
        details: dict[str, Any] = {"before": before.tier, "after": after.tier}
        audit.announce(in_transaction(lambda: audit.record("subscription_synced", user.number_hash, **details)))
    return outcome, before, after


def read_account(user_id: UUID) -> AccountState:
    """Return how an account stands here, whatever Stripe says."""
    is_pro = db.session.scalar(text("SELECT pro_until > now() FROM users WHERE id = :id"), {"id": user_id})
    query = select(Subscription.stripe_subscription_id, Subscription.status).where(Subscription.user_id == user_id)
    rows = db.session.execute(query.order_by(Subscription.started_at, Subscription.id))
    return AccountState("pro" if is_pro else "basic", {row.stripe_subscription_id: row.status for row in rows})
