"""For how long a subscription gives Pro: one table over Stripe's statuses."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import Enum

import structlog

from chatapi.subscriptions.remote import RemoteSubscription

RENEWAL_SLACK = timedelta(days=3)
"""How long a running subscription is believed to go on after its period, with no word from Stripe.

Stripe takes an hour or so to renew one. Whoever has paid must not lose Pro while Stripe cannot be reached, and nobody
keeps it for ever because of that.
"""

log = structlog.get_logger(__name__)


class Grant(Enum):
    """How a status is to be read."""

    PERIOD = "until the paid period ends"
    GRACE = "until the grace ends that began with the oldest unpaid invoice"
    NONE = "not at all"


# https://docs.stripe.com/billing/subscriptions/overview#subscription-statuses
GRANTS = {
    "active": Grant.PERIOD,
    "trialing": Grant.PERIOD,
    "past_due": Grant.GRACE,
    "unpaid": Grant.NONE,
    "paused": Grant.NONE,
    "canceled": Grant.NONE,
    "incomplete": Grant.NONE,
    "incomplete_expired": Grant.NONE,
}

RUNNING = ("active", "trialing", "past_due", "unpaid", "paused")
"""Statuses of a subscription that is there: it may not give Pro, but another beside it would be one too many."""

ENDED = ("canceled", "incomplete_expired")
"""Statuses of a subscription that is over for good."""


def pro_until(
    subscription: RemoteSubscription, unpaid_since: datetime | None, price_ids: tuple[str, ...], grace: timedelta
) -> datetime | None:
    """Return until when `subscription` gives Pro, None when it does not; it may be past.

    `unpaid_since` is when the oldest unpaid invoice was made.
    """
    if not set(subscription.price_ids) & set(price_ids):
        return None
    grant = GRANTS.get(subscription.status)
    if grant is None:
        log.error("subscription_status_unknown", status=subscription.status, subscription=subscription.id)
        return None
    if grant is Grant.PERIOD and subscription.current_period_end is not None:
        return _earlier(subscription.current_period_end + RENEWAL_SLACK, subscription.ends_at)
    if grant is Grant.GRACE:
        began = unpaid_since or subscription.current_period_start
        return began and _earlier(began + grace, subscription.ends_at)
    return None


def _earlier(one: datetime, other: datetime | None) -> datetime:
    return one if other is None else min(one, other)
