"""What operators see of billing: in one query over its tables, and in lists of what needs somebody."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text

from chatapi.extensions import db
from chatapi.schemas import rfc3339
from chatapi.subscriptions.tiers import RUNNING

OPEN = ("received", "retrying")
"""Statuses of events that are still to be handled."""
NEEDED = (*OPEN, "unmatched")
EVENT_STATUSES = (*NEEDED, "handled", "ignored")

_SUMMARY = text("""
    SELECT (SELECT count(*) FROM billing_customers WHERE stripe_customer_id IS NOT NULL) AS customers,
           (SELECT count(*) FROM users WHERE pro_until > clock_timestamp()) AS pro_accounts,
           (SELECT coalesce(json_object_agg(status, number), '{}') FROM (
                SELECT status, count(*) AS number FROM subscriptions GROUP BY status
            ) AS counted) AS subscriptions,
           (SELECT count(*) FROM (
                SELECT FROM subscriptions WHERE status = ANY(:running) GROUP BY user_id HAVING count(*) > 1
            ) AS doubled) AS second_subscriptions,
           (SELECT coalesce(json_object_agg(status, number), '{}') FROM (
                SELECT status, count(*) AS number FROM stripe_events
                WHERE due_at IS NOT NULL OR status = 'unmatched' GROUP BY status
            ) AS counted) AS events,
           (SELECT coalesce(extract(epoch FROM clock_timestamp() - min(received_at)), 0)::float
            FROM stripe_events WHERE due_at IS NOT NULL) AS oldest_event_seconds,
           (SELECT count(*) FROM billing_closures WHERE due_at IS NOT NULL) AS closures,
           started_at, finished_at, checked, drifted, unknown, failed, total_drifted
    FROM billing_reconciliation
""")

_EVENTS = text("""
    SELECT event_id, type, customer_id, status, reason, attempts, due_at AS next_try,
           extract(epoch FROM clock_timestamp() - received_at)::float AS age_seconds
    FROM stripe_events WHERE status = ANY(:statuses)
    ORDER BY received_at DESC, id DESC LIMIT :limit
""")

_CLOSURES = text("""
    SELECT stripe_customer_id AS customer_id, attempts, last_error, due_at AS next_try,
           extract(epoch FROM clock_timestamp() - created_at)::float AS age_seconds
    FROM billing_closures WHERE due_at IS NOT NULL ORDER BY created_at, id
""")

_SECOND_SUBSCRIPTIONS = text("""
    SELECT user_id, stripe_customer_id AS customer_id,
           array_agg(stripe_subscription_id ORDER BY started_at, subscriptions.id) AS subscriptions
    FROM subscriptions LEFT JOIN billing_customers USING (user_id)
    WHERE status = ANY(:running)
    GROUP BY user_id, stripe_customer_id HAVING count(*) > 1 ORDER BY user_id
""")


@dataclass(frozen=True)
class Summary:
    """How billing stands. `subscriptions` and `events` are counts by status, `events` of those that need something.

    From `started_at` on it is about comparing with Stripe: when that was begun and when it was done last, what was
    found then, and how many customers were ever repaired by it.
    """

    customers: int
    pro_accounts: int
    subscriptions: dict[str, int]
    second_subscriptions: int
    events: dict[str, int]
    oldest_event_seconds: float
    closures: int
    started_at: datetime | None
    finished_at: datetime | None
    checked: int
    drifted: int
    unknown: int
    failed: int
    total_drifted: int


@dataclass(frozen=True)
class Event:
    """An event of Stripe's; `next_try` is None once it is closed."""

    event_id: str
    type: str
    customer_id: str | None
    status: str
    reason: str | None
    attempts: int
    next_try: datetime | None
    age_seconds: float


@dataclass(frozen=True)
class Closure:
    """A customer of an erased account, for whom something is still to be ended at Stripe."""

    customer_id: str
    attempts: int
    last_error: str | None
    next_try: datetime
    age_seconds: float


@dataclass(frozen=True)
class SecondSubscription:
    """Somebody who pays more than once, with Stripe's ids of what runs for them."""

    user_id: str
    customer_id: str | None
    subscriptions: list[str]


def read_summary() -> Summary:
    """Return how billing stands, in one query."""
    return Summary(**db.session.execute(_SUMMARY, {"running": list(RUNNING)}).one()._asdict())


def list_events(statuses: tuple[str, ...], limit: int) -> list[Event]:
    """Return up to `limit` events in one of `statuses`, newest first."""
    rows = db.session.execute(_EVENTS, {"statuses": list(statuses), "limit": limit})
    return [Event(**row._asdict()) for row in rows]


def list_closures() -> list[Closure]:
    """Return what waits to be ended, oldest first."""
    return [Closure(**row._asdict()) for row in db.session.execute(_CLOSURES)]


def list_second_subscriptions() -> list[SecondSubscription]:
    """Return who has more than one subscription that is not over."""
    rows = db.session.execute(_SECOND_SUBSCRIPTIONS, {"running": list(RUNNING)})
    return [SecondSubscription(str(row.user_id), row.customer_id, row.subscriptions) for row in rows]


def as_json(found: Any) -> dict[str, Any]:
    """Return a dataclass of this module in values that JSON has."""
    return {name: rfc3339(value) if isinstance(value, datetime) else value for name, value in asdict(found).items()}
