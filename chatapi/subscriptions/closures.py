"""What is left to do at Stripe for accounts that are erased: their subscriptions end, and nobody can pay any more.

A closure holds Stripe's id of the customer and nothing else, and stays: what is heard of that customer later belongs
to nobody, and has them looked after once more.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import Row, select, text

from chatapi.auth.models import User
from chatapi.extensions import db, in_transaction, take_due
from chatapi.ids import uuid7
from chatapi.request_ids import continue_request, current_request_id
from chatapi.subscriptions.backoff import ATTEMPT_SECONDS, RING_AGAIN_SECONDS, retry_seconds
from chatapi.subscriptions.failures import reason_of
from chatapi.subscriptions.gateway import MissingAtStripeError, StripeGateway, gateway
from chatapi.subscriptions.models import BillingClosure, BillingCustomer
from chatapi.subscriptions.tiers import ENDED

CLOSE_CUSTOMER = "close_customer"

log = structlog.get_logger(__name__)

_CLOSE = text("""
    INSERT INTO billing_closures (id, stripe_customer_id, due_at, request_id)
    VALUES (:id, :customer_id, now(), :request_id)
    ON CONFLICT (stripe_customer_id) DO UPDATE
    SET due_at = now(), not_before = NULL, attempts = 0, confirmed_at = NULL, request_id = excluded.request_id
""")

_TAKE = text("""
    UPDATE billing_closures
    SET attempts = attempts + 1, due_at = now() + make_interval(secs => :seconds),
        not_before = now() + make_interval(secs => :seconds)
    WHERE id = :id AND due_at IS NOT NULL AND (not_before IS NULL OR not_before <= now())
    RETURNING stripe_customer_id, attempts, not_before, request_id
""")

# What was asked for again meanwhile has another time, or none, and stays due. Once it is done, nothing but the
# customer is kept: the request's id would lead by the logs to whose account it was.
_END = text("""
    UPDATE billing_closures
    SET due_at = now() + make_interval(secs => :delay), not_before = now() + make_interval(secs => :delay),
        last_error = :reason, confirmed_at = CASE WHEN :reason IS NULL THEN now() END,
        request_id = CASE WHEN :reason IS NULL THEN NULL ELSE request_id END
    WHERE id = :id AND not_before = :taken_until
""")


def close_customer(customer_id: str) -> None:
    """Have everything of a customer ended, as soon as the sweeper comes by; within the caller's transaction."""
    db.session.execute(_CLOSE, {"id": uuid7(), "customer_id": customer_id, "request_id": current_request_id()})


def close_account(user: User) -> None:
    """Note what is to be done at Stripe for an account that is being erased, its row locked."""
    customer_id = db.session.scalar(
        select(BillingCustomer.stripe_customer_id).where(BillingCustomer.user_id == user.id).with_for_update()
    )
    if customer_id is not None:
        close_customer(customer_id)


def is_closed(customer_id: str) -> bool:
    """Return whether the account of that customer is erased."""
    query = select(BillingClosure.id).where(BillingClosure.stripe_customer_id == customer_id)
    return db.session.scalar(query) is not None


def end_customer(closure_id: UUID) -> None:
    """Do what a closure asks for, if nobody is at it and it is time. What fails is due again, until Stripe confirms."""
    taken = in_transaction(
        lambda: db.session.execute(_TAKE, {"id": closure_id, "seconds": ATTEMPT_SECONDS}).one_or_none()
    )
    if taken is None:
        return
    continue_request(taken.request_id)
    reason = None
    try:
        _end_all(gateway(), taken.stripe_customer_id)
    except Exception as error:  # noqa: BLE001 - whatever it is, somebody is still being charged
        reason = reason_of(error, customer=taken.stripe_customer_id)
    _note(closure_id, taken, reason)


def _end_all(stripe: StripeGateway, customer_id: str) -> None:
    """End what a customer could pay in, and then what they pay for: whoever was paying meanwhile is found too."""
    stripe.expire_checkouts(customer_id)
    for subscription in stripe.subscriptions_of(customer_id):
        if subscription.status not in ENDED:
            _cancel(stripe, subscription.id)


def _cancel(stripe: StripeGateway, subscription_id: str) -> None:
    try:
        stripe.cancel_now(subscription_id)
    except MissingAtStripeError:
        return  # It ended by itself.
    log.info("subscription_cancelled", subscription=subscription_id, reason="account_erased")


def _note(closure_id: UUID, taken: Row[Any], reason: str | None) -> None:
    delay = retry_seconds(taken.attempts) if reason else None
    wanted = {"id": closure_id, "delay": delay, "reason": reason, "taken_until": taken.not_before}
    in_transaction(lambda: db.session.execute(_END, wanted))
    if reason:
        log.warning("closure_failed", customer=taken.stripe_customer_id, reason=reason, attempts=taken.attempts)


def take_due_closures(limit: int) -> list[UUID]:
    """Return up to `limit` closures that are due, to be rung after commit."""
    return take_due(BillingClosure, limit, RING_AGAIN_SECONDS)
