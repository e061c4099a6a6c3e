"""Comparing every subscription with Stripe, hourly: what no event told of is found here, and repaired."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from uuid import UUID

import structlog
from flask import current_app
from sqlalchemy import select, text

from chatapi.errors import ChatAPIError
from chatapi.extensions import db, in_transaction
from chatapi.subscriptions.closures import ENDED, close_customer, is_closed
from chatapi.subscriptions.customers import adopt_customer
from chatapi.subscriptions.gateway import PAGE, RemoteSubscription, StripeGateway, gateway
from chatapi.subscriptions.models import Subscription
from chatapi.subscriptions.sync import Outcome, is_ours, sync_customer

RECONCILE = "reconcile_billing"
RECONCILIATION_ID = UUID(int=1)
"""There is one, but what is rung for has an id."""

EVERY_SECONDS = 3600
RUN_SECONDS = 1800
"""How long a run may take before it is begun anew."""
RETRY_SECONDS = 300

log = structlog.get_logger(__name__)


@dataclass
class Report:
    """What a run found: subscriptions compared, customers who were repaired, and those nobody here is."""

    checked: int = 0
    drifted: int = 0
    unknown: int = 0


_TAKE = text("""
    UPDATE billing_reconciliation SET due_at = now() + make_interval(secs => :seconds)
    WHERE due_at <= now() RETURNING id
""")

_BEGIN = text("""
    UPDATE billing_reconciliation
    SET started_at = now(), due_at = now() + make_interval(secs => :seconds)
""")

_FINISH = text("""
    UPDATE billing_reconciliation
    SET finished_at = now(), due_at = now() + make_interval(secs => :seconds), checked = :checked,
        drifted = :drifted, total_drifted = total_drifted + :drifted, unknown = :unknown
""")

_FAIL = text("UPDATE billing_reconciliation SET due_at = now() + make_interval(secs => :seconds)")

# Accounts whose tier is not that of their subscriptions, and subscriptions that Stripe did not show. What was shown is
# a subquery, which PostgreSQL looks up by a hash; an array it would search through for each.
_SUSPECT = text("""
    SELECT stripe_customer_id FROM billing_customers JOIN users ON users.id = user_id
    WHERE stripe_customer_id IS NOT NULL AND users.pro_until IS DISTINCT FROM (
        SELECT max(pro_until) FROM subscriptions WHERE subscriptions.user_id = users.id
    )
    UNION
    SELECT stripe_customer_id FROM subscriptions JOIN billing_customers USING (user_id)
    WHERE stripe_customer_id IS NOT NULL AND status <> ALL(:ended)
      AND stripe_subscription_id NOT IN (SELECT unnest(CAST(:seen AS text[])))
""")


def take_due_reconciliation(_limit: int) -> list[UUID]:
    """Return the run that is due, if one is, to be rung for after commit; it is then nobody else's for a while."""
    if "stripe" not in current_app.extensions:
        return []
    is_due = db.session.execute(_TAKE, {"seconds": RETRY_SECONDS}).first() is not None
    return [RECONCILIATION_ID] if is_due else []


def run_reconciliation(_row_id: UUID = RECONCILIATION_ID) -> None:
    """Reconcile, as what is rung for; Stripe being away is waited out."""
    try:
        reconcile()
    except ChatAPIError as error:
        log.warning("reconciliation_failed", reason=error.slug)


def reconcile() -> Report:
    """Compare every subscription with Stripe and repair what differs. Raises `BillingUnavailableError`."""
    stripe = gateway()
    in_transaction(lambda: db.session.execute(_BEGIN, {"seconds": RUN_SECONDS}))
    try:
        report = _compare(stripe)
    except ChatAPIError:
        in_transaction(lambda: db.session.execute(_FAIL, {"seconds": RETRY_SECONDS}))
        raise
    found = {"checked": report.checked, "drifted": report.drifted, "unknown": report.unknown}
    in_transaction(lambda: db.session.execute(_FINISH, {**found, "seconds": EVERY_SECONDS}))
    log.info("reconciled", **found)
    return report


def _compare(stripe: StripeGateway) -> Report:
    report, seen, suspects = Report(), list[str](), dict[str, list[RemoteSubscription]]()
    for page in _pages(stripe.list_subscriptions()):
        known = in_transaction(partial(_known, page))
        for remote in page:
            if remote.id not in known and (remote.status in ENDED or not is_ours(remote)):
                continue
            report.checked += 1
            seen.append(remote.id)
            # Since when an invoice is unpaid is not seen in the list.
            if remote.status == "past_due" or _differs(remote, known.get(remote.id)):
                suspects.setdefault(remote.customer_id, []).append(remote)
    others = in_transaction(lambda: list(db.session.scalars(_SUSPECT, {"seen": seen, "ended": list(ENDED)})))
    for customer_id in {**suspects, **dict.fromkeys(others)}:
        _repair(stripe, customer_id, suspects.get(customer_id, []), report)
    return report


def _pages(remotes: Iterator[RemoteSubscription]) -> Iterator[list[RemoteSubscription]]:
    while page := list(islice(remotes, PAGE)):
        yield page


def _known(page: Sequence[RemoteSubscription]) -> dict[str, Subscription]:
    ids = [remote.id for remote in page]
    query = select(Subscription).where(Subscription.stripe_subscription_id.in_(ids))
    found = db.session.scalars(query.execution_options(populate_existing=True))
    return {subscription.stripe_subscription_id: subscription for subscription in found}


def _differs(remote: RemoteSubscription, known: Subscription | None) -> bool:
    if known is None:
        return True
    return (remote.status, remote.ended_at, remote.current_period_end, remote.is_ending) != (
        known.status,
        known.ended_at,
        known.current_period_end,
        known.cancel_at_period_end,
    )


def _repair(stripe: StripeGateway, customer_id: str, remotes: Iterable[RemoteSubscription], report: Report) -> None:
    outcome = sync_customer(stripe, customer_id)
    if outcome is Outcome.UNKNOWN:
        if in_transaction(lambda: _close_again(customer_id, remotes)):
            return
        if adopt_customer(stripe, customer_id):
            outcome = sync_customer(stripe, customer_id)
    if outcome is Outcome.UNKNOWN:
        report.unknown += 1
        log.error("customer_unknown", customer=customer_id, subscriptions=[remote.id for remote in remotes])
    if outcome is Outcome.CHANGED:
        report.drifted += 1
        log.warning("subscription_drifted", customer=customer_id)


def _close_again(customer_id: str, remotes: Iterable[RemoteSubscription]) -> bool:
    """Return whether the account is erased; what still runs is to be ended then."""
    if not is_closed(customer_id):
        return False
    if any(remote.status not in ENDED for remote in remotes):
        close_customer(customer_id)
    return True
