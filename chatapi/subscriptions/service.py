"""A user's own subscription: what it is, what it was, ending it and taking that back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

import structlog
from flask import current_app
from sqlalchemy import select, text

from chatapi.errors import ConflictError
from chatapi.extensions import db, in_transaction
from chatapi.quota import Usage, read_usage
from chatapi.subscriptions.customers import customer_of
from chatapi.subscriptions.gateway import (
    BillingUnavailableError,
    MissingAtStripeError,
    Patience,
    StripeGateway,
    gateway,
)
from chatapi.subscriptions.models import Subscription
from chatapi.subscriptions.remote import RemoteSubscription
from chatapi.subscriptions.sync import is_running, sync_customer
from chatapi.subscriptions.tiers import RUNNING

HEAL_EVERY_SECONDS = 3.0

log = structlog.get_logger(__name__)


class NotSubscribedError(ConflictError):
    """There is no subscription that is not over."""

    slug = "not_subscribed"
    message = "You have no subscription"


@dataclass(frozen=True)
class Standing:
    """A user's tier and what follows from it. `subscription` is the one that counts, None if there never was any."""

    is_pro: bool
    subscription: Subscription | None
    usage: Usage


# That one has an open checkout is known here; that it was paid for perhaps at Stripe only.
_CLAIM_HEALING = text("""
    UPDATE billing_customers SET healed_at = now()
    WHERE user_id = :user_id AND stripe_customer_id IS NOT NULL AND checkout_expires_at > now() - interval '1 hour'
      AND (healed_at IS NULL OR healed_at < now() - make_interval(secs => :every))
    RETURNING stripe_customer_id
""")

_IS_PRO = text("SELECT coalesce(pro_until > now(), false) FROM users WHERE id = :user_id")


def heal(user_id: UUID) -> None:
    """After a checkout, look at Stripe whether it was paid for, as its message may be late.

    At most once every few seconds, and without making the caller wait long: what does not succeed is left to the
    message. Nothing is believed of whoever asks; only Stripe's answer makes them Pro.
    """
    if "stripe" not in current_app.extensions:
        return
    wanted = {"user_id": user_id, "every": HEAL_EVERY_SECONDS}
    customer_id = in_transaction(lambda: db.session.scalar(_CLAIM_HEALING, wanted))
    if customer_id is None:
        return
    try:
        sync_customer(gateway(Patience.GLANCE), customer_id)
    except BillingUnavailableError:
        log.info("healing_failed", customer=customer_id)


def read_standing(user_id: UUID) -> Standing:
    """Return the user's tier, by the database's clock, with the subscription and the day's usage."""
    is_pro = bool(db.session.scalar(_IS_PRO, {"user_id": user_id}))
    return Standing(is_pro, current_subscription(user_id), read_usage(user_id))


def current_subscription(user_id: UUID) -> Subscription | None:
    """Return the subscription that counts: what gives Pro longest, else what runs, else the newest."""
    query = (
        select(Subscription)
        .where(Subscription.user_id == user_id)
        .order_by(
            Subscription.pro_until.desc().nulls_last(),
            Subscription.status.in_(RUNNING).desc(),
            Subscription.started_at.desc().nulls_last(),
            Subscription.id.desc(),
        )
        .limit(1)
        .execution_options(populate_existing=True)
    )
    return db.session.scalars(query).one_or_none()


def list_history(user_id: UUID) -> Sequence[Subscription]:
    """Return all subscriptions there were, newest first."""
    query = select(Subscription).where(Subscription.user_id == user_id)
    newest_first = query.order_by(Subscription.started_at.desc().nulls_last(), Subscription.id.desc())
    return db.session.scalars(newest_first).all()


def cancel(user_id: UUID) -> None:
    """Have what the user is subscribed to end with its paid period. Raises `NotSubscribedError`."""
    _change(user_id, StripeGateway.end_with_period)


def resume(user_id: UUID) -> None:
    """Take the cancellation back. Raises `NotSubscribedError`, also when the subscription has ended meanwhile."""
    _change(user_id, StripeGateway.go_on)


def open_portal(user_id: UUID) -> str:
    """Return the URL of the page with invoices and cards. Raises `NotSubscribedError`."""
    stripe, customer_id, _ = _running(user_id)
    try:
        return stripe.open_portal(customer_id, f"{current_app.config['FRONTEND_URL'].rstrip('/')}/subscription")
    except MissingAtStripeError:
        raise NotSubscribedError from None  # They were deleted since we looked.


def _change(user_id: UUID, change: Callable[[StripeGateway, RemoteSubscription], None]) -> None:
    stripe, customer_id, running = _running(user_id)
    changed = [subscription for subscription in running if _is_changed(stripe, subscription, change)]
    sync_customer(stripe, customer_id)
    if not changed:
        raise NotSubscribedError


def _is_changed(
    stripe: StripeGateway, subscription: RemoteSubscription, change: Callable[[StripeGateway, RemoteSubscription], None]
) -> bool:
    """Return whether there was something to change: it may have ended since we looked."""
    try:
        change(stripe, subscription)
    except MissingAtStripeError:
        return False
    return True


def _running(user_id: UUID) -> tuple[StripeGateway, str, list[RemoteSubscription]]:
    """Return what runs for the user, as Stripe says. Our own rows may be late."""
    stripe = gateway(Patience.REQUEST)
    customer_id = in_transaction(lambda: customer_of(user_id))
    if customer_id is None:
        raise NotSubscribedError
    running = [found for found in stripe.subscriptions_of(customer_id) if is_running(found)]
    if not running:
        sync_customer(stripe, customer_id)
        raise NotSubscribedError
    return stripe, customer_id, running
