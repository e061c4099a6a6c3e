"""Handling Stripe's events, by looking at what Stripe has now.

An event says whom to look at, and that is all that is believed of it. What cannot be done yet is tried again later.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import Row, func, text

from chatapi.extensions import db, delete_some, in_transaction, take_due
from chatapi.request_ids import continue_request
from chatapi.subscriptions.backoff import ATTEMPT_SECONDS, RING_AGAIN_SECONDS, retry_seconds
from chatapi.subscriptions.closures import close_customer, is_closed
from chatapi.subscriptions.customers import adopt_customer, why_nobody
from chatapi.subscriptions.failures import reason_of
from chatapi.subscriptions.gateway import gateway
from chatapi.subscriptions.models import StripeEvent
from chatapi.subscriptions.sync import Outcome, sync_customer

HANDLE_EVENT = "handle_stripe_event"

UNMATCHED_AFTER = timedelta(days=3)
"""How long the customer of an event may take to become known; Stripe itself delivers for as long."""

KEEP_CLOSED = timedelta(days=90)
"""Longer than Stripe lets anybody send an event again (30 days), so that it is still known then."""

log = structlog.get_logger(__name__)

_TAKE = text("""
    UPDATE stripe_events
    SET attempts = attempts + 1, due_at = now() + make_interval(secs => :seconds),
        not_before = now() + make_interval(secs => :seconds)
    WHERE id = :id AND due_at IS NOT NULL AND (not_before IS NULL OR not_before <= now())
    RETURNING event_id, type, customer_id, attempts, received_at, request_id, now() - received_at AS age
""")

_CLOSE = text("""
    UPDATE stripe_events SET status = :status, reason = :reason, due_at = NULL, closed_at = now()
    WHERE id = :id AND due_at IS NOT NULL
""")

_RETRY = text("""
    UPDATE stripe_events
    SET status = 'retrying', reason = :reason, due_at = now() + make_interval(secs => :delay),
        not_before = now() + make_interval(secs => :delay)
    WHERE id = :id AND due_at IS NOT NULL
""")

_IS_SEEN = text("""
    SELECT sync_began_at > :received_at FROM billing_customers WHERE stripe_customer_id = :customer_id
""")


class _LaterError(Exception):
    """The event cannot be handled yet, for a reason of one word."""


def handle_event(row_id: UUID) -> None:
    """Do what an event asks for, if nobody is at it and it is time. What fails is due again later."""
    event = in_transaction(lambda: db.session.execute(_TAKE, {"id": row_id, "seconds": ATTEMPT_SECONDS}).one_or_none())
    if event is None:
        return
    continue_request(event.request_id)
    try:
        status, reason = _handle(event)
    except _LaterError as error:
        _retry(row_id, event, str(error))
    except Exception as error:  # noqa: BLE001 - whatever it is, the event must be looked at again
        _retry(row_id, event, reason_of(error, stripe_event=event.event_id))
    else:
        _close(row_id, event, status, reason)


def _handle(event: Row[Any]) -> tuple[str, str]:
    """Return how the event is closed, and why. Raises `_LaterError`, and what Stripe's being away raises."""
    if in_transaction(lambda: _close_again(event.customer_id)):
        return "handled", "account_erased"
    if in_transaction(lambda: _is_seen(event)):
        return "handled", "seen"
    stripe = gateway()
    outcome = sync_customer(stripe, event.customer_id)
    if outcome is Outcome.UNKNOWN and adopt_customer(stripe, event.customer_id):
        outcome = sync_customer(stripe, event.customer_id)
    if outcome is not Outcome.UNKNOWN:
        return "handled", str(outcome.value)
    if reason := why_nobody(stripe, event.customer_id):
        return "ignored", reason
    raise _LaterError("unknown_customer")


def _close_again(customer_id: str) -> bool:
    if not is_closed(customer_id):
        return False
    close_customer(customer_id)
    return True


def _is_seen(event: Row[Any]) -> bool:
    """Return whether what Stripe has was read since the event came: what it tells of was seen then."""
    return bool(db.session.scalar(_IS_SEEN, {"customer_id": event.customer_id, "received_at": event.received_at}))


def _close(row_id: UUID, event: Row[Any], status: str, reason: str) -> None:
    in_transaction(lambda: db.session.execute(_CLOSE, {"id": row_id, "status": status, "reason": reason}))
    level = log.error if status == "unmatched" else log.info
    level("stripe_event_closed", stripe_event=event.event_id, type=event.type, status=status, reason=reason)


def _retry(row_id: UUID, event: Row[Any], reason: str) -> None:
    if reason == "unknown_customer" and event.age > UNMATCHED_AFTER:
        _close(row_id, event, "unmatched", reason)
        return
    wanted = {"id": row_id, "reason": reason, "delay": retry_seconds(event.attempts)}
    in_transaction(lambda: db.session.execute(_RETRY, wanted))
    log.warning("stripe_event_retried", stripe_event=event.event_id, type=event.type, reason=reason)


def take_due_events(limit: int) -> list[UUID]:
    """Return up to `limit` events that are due, to be rung after commit."""
    return take_due(StripeEvent, limit, RING_AGAIN_SECONDS)


def prune_events() -> int:
    """Delete some events that were closed long ago; return how many."""
    return delete_some(StripeEvent, StripeEvent.closed_at < func.now() - KEEP_CLOSED)
