"""What Stripe has now is what holds: fetch a customer's subscriptions, and write the tier that follows.

No event is believed but for saying whom to look at, so their order does not matter. Of several who fetch at once the
one that began last writes; no transaction is open while Stripe is waited for.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Any
from uuid import UUID

import structlog
from flask import current_app
from sqlalchemy import select, text

from chatapi.auth.models import User
from chatapi.extensions import db, in_transaction
from chatapi.ids import uuid7
from chatapi.subscriptions.gateway import (
    BillingUnavailableError,
    MissingAtStripeError,
    StripeGateway,
)
from chatapi.subscriptions.models import BillingCustomer, Subscription
from chatapi.subscriptions.remote import RemoteSubscription
from chatapi.subscriptions.tiers import RUNNING, pro_until

log = structlog.get_logger(__name__)


class Outcome(Enum):
    """What became of a customer's synchronisation."""

    CHANGED = "changed"
    UNCHANGED = "unchanged"
    SUPERSEDED = "superseded"
    """Somebody who began later has written already."""
    UNKNOWN = "unknown"
    """Nobody here is this customer."""


@dataclass(frozen=True)
class Fetched:
    """A subscription as it is at Stripe, and until when it gives Pro."""

    remote: RemoteSubscription
    pro_until: datetime | None


_TAKE_TICKET = text("""
    UPDATE billing_customers SET sync_ticket = sync_ticket + 1 WHERE stripe_customer_id = :customer_id
    RETURNING user_id, sync_ticket AS number, clock_timestamp() AS began_at
""")

_CLAIM_WRITE = text("""
    UPDATE billing_customers SET synced_ticket = :number, sync_began_at = :began_at
    WHERE user_id = :user_id AND stripe_customer_id = :customer_id AND synced_ticket < :number
    RETURNING user_id
""")

# A subscription can also be gone altogether, with all data of a test account.
_FORGET = text("""
    UPDATE subscriptions SET status = 'canceled', ended_at = coalesce(ended_at, now()), pro_until = NULL,
        updated_at = now()
    WHERE user_id = :user_id AND NOT stripe_subscription_id = ANY(:found)
      AND (status <> 'canceled' OR pro_until IS NOT NULL)
    RETURNING id
""")

_UPSERT = text("""
    INSERT INTO subscriptions AS known (
        id, user_id, stripe_subscription_id, status, price_id, cancel_at_period_end, started_at, ended_at,
        current_period_end, pro_until
    ) VALUES (
        :id, :user_id, :stripe_subscription_id, :status, :price_id, :cancel_at_period_end, :started_at, :ended_at,
        :current_period_end, :pro_until
    )
    ON CONFLICT (stripe_subscription_id) DO UPDATE SET
        status = excluded.status, price_id = excluded.price_id,
        cancel_at_period_end = excluded.cancel_at_period_end, started_at = excluded.started_at,
        ended_at = excluded.ended_at, current_period_end = excluded.current_period_end,
        pro_until = excluded.pro_until, updated_at = now()
    WHERE (
        known.status, known.price_id, known.cancel_at_period_end, known.started_at, known.ended_at,
        known.current_period_end, known.pro_until
    ) IS DISTINCT FROM (
        excluded.status, excluded.price_id, excluded.cancel_at_period_end, excluded.started_at, excluded.ended_at,
        excluded.current_period_end, excluded.pro_until
    )
    RETURNING id
""")

# But for one that somebody is making, or has made since it was read.
_FORGET_CHECKOUT = text("""
    UPDATE billing_customers
    SET checkout_key = NULL, checkout_session_id = NULL, checkout_url = NULL, checkout_terms = NULL,
        checkout_expires_at = NULL
    WHERE user_id = :user_id AND checkout_key = :key AND checkout_session_id IS NOT DISTINCT FROM :session_id
      AND (checkout_claimed_until IS NULL OR checkout_claimed_until < clock_timestamp())
""")

_WRITE_TIER = text("""
    UPDATE users SET pro_until = paid.until
    FROM (SELECT max(pro_until) AS until FROM subscriptions WHERE user_id = :user_id) AS paid
    WHERE id = :user_id AND users.pro_until IS DISTINCT FROM paid.until
    RETURNING id
""")


def sync_customer(stripe: StripeGateway, customer_id: str) -> Outcome:
    """Bring what is known of a customer, and their tier, to what Stripe has now.

    Raises `BillingUnavailableError`, also as `CustomerMissingError`; nothing is written then.
    """
    ticket = in_transaction(lambda: db.session.execute(_TAKE_TICKET, {"customer_id": customer_id}).one_or_none())
    if ticket is None:
        return Outcome.UNKNOWN
    fetched = [_fetch(stripe, remote) for remote in stripe.subscriptions_of(customer_id)]
    outcome = in_transaction(lambda: _write(ticket, customer_id, fetched))
    running = [one.remote.id for one in fetched if is_running(one.remote)]
    if len(running) > 1:
        log.error("second_subscription", customer=customer_id, subscriptions=running)
    if running and outcome is not Outcome.UNKNOWN:
        _close_checkout(stripe, ticket.user_id, customer_id)
    return outcome


def _fetch(stripe: StripeGateway, remote: RemoteSubscription) -> Fetched:
    return Fetched(remote, grant(remote, _unpaid_since(stripe, remote.id) if remote.status == "past_due" else None))


def grant(remote: RemoteSubscription, unpaid_since: datetime | None = None) -> datetime | None:
    """Return until when a subscription gives Pro, under the settings."""
    grace = timedelta(days=current_app.config["BILLING_GRACE_DAYS"])
    return pro_until(remote, unpaid_since, current_app.config["STRIPE_PRICE_ID"], grace)


def _unpaid_since(stripe: StripeGateway, subscription_id: str) -> datetime | None:
    try:
        return stripe.oldest_open_invoice_at(subscription_id)
    except MissingAtStripeError:  # It went since the list was read.
        return None


def _write(ticket: Any, customer_id: str, fetched: list[Fetched]) -> Outcome:
    """Write what was fetched, unless somebody with a later ticket has. The user is locked first, as everywhere."""
    user_id = db.session.scalar(select(User.id).where(User.id == ticket.user_id).with_for_update())
    claim = {"user_id": ticket.user_id, "customer_id": customer_id}
    if user_id is None:
        return Outcome.UNKNOWN
    if not db.session.execute(_CLAIM_WRITE, {**claim, "number": ticket.number, "began_at": ticket.began_at}).first():
        return Outcome.SUPERSEDED
    is_changed = bool(
        db.session.execute(_FORGET, {"user_id": user_id, "found": [one.remote.id for one in fetched]}).first()
    )
    known = set(db.session.scalars(select(Subscription.stripe_subscription_id).where(Subscription.user_id == user_id)))
    for one in reversed(fetched):  # Oldest first, as their ids tell when they were first seen.
        if is_ours(one.remote) or one.remote.id in known:
            is_changed |= bool(db.session.execute(_UPSERT, _row(user_id, one)).first())
    is_changed |= bool(db.session.execute(_WRITE_TIER, {"user_id": user_id}).first())
    return Outcome.CHANGED if is_changed else Outcome.UNCHANGED


def is_ours(remote: RemoteSubscription) -> bool:
    """Return whether it is for what we sell: the Stripe account may sell other things."""
    return bool(set(remote.price_ids) & set(current_app.config["STRIPE_PRICE_ID"]))


def is_running(remote: RemoteSubscription) -> bool:
    """Return whether it is for what we sell, and not over: there is no room for another."""
    return remote.status in RUNNING and is_ours(remote)


def columns_of(remote: RemoteSubscription, until: datetime | None) -> dict[str, Any]:
    """Return how a subscription that gives Pro until then is to be known here."""
    sold = current_app.config["STRIPE_PRICE_ID"]
    return {
        "status": remote.status,
        "price_id": next((price_id for price_id in remote.price_ids if price_id in sold), None),
        "cancel_at_period_end": remote.ends_with_period,
        "started_at": remote.started_at,
        "ended_at": remote.ended_at,
        "current_period_end": remote.current_period_end,
        "pro_until": until,
    }


def _row(user_id: UUID, one: Fetched) -> dict[str, Any]:
    known_as = {"id": uuid7(), "user_id": user_id, "stripe_subscription_id": one.remote.id}
    return {**known_as, **columns_of(one.remote, one.pro_until)}


def _close_checkout(stripe: StripeGateway, user_id: UUID, customer_id: str) -> None:
    """Let nobody pay twice, in a page that is still open somewhere. What fails is left to the next reading."""
    query = select(BillingCustomer.checkout_key, BillingCustomer.checkout_session_id)
    checkout = in_transaction(lambda: db.session.execute(query.where(BillingCustomer.user_id == user_id)).one_or_none())
    if checkout is None or checkout.checkout_key is None:
        return
    try:
        stripe.expire_checkouts(customer_id)
    except BillingUnavailableError:
        log.warning("checkout_left_open", customer=customer_id)
    else:
        closed = {"user_id": user_id, "key": checkout.checkout_key, "session_id": checkout.checkout_session_id}
        in_transaction(lambda: db.session.execute(_FORGET_CHECKOUT, closed))
