"""Comparing every subscription with Stripe, hourly: what no event told of is found here, and repaired."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from uuid import UUID

import structlog
from flask import current_app
from sqlalchemy import select, text

from chatapi.extensions import db, in_transaction
from chatapi.subscriptions.closures import close_customer, is_closed
from chatapi.subscriptions.customers import adopt_customer
from chatapi.subscriptions.failures import reason_of
from chatapi.subscriptions.gateway import PAGE, CustomerMissingError, StripeGateway, gateway
from chatapi.subscriptions.models import Subscription
from chatapi.subscriptions.remote import RemoteSubscription
from chatapi.subscriptions.sync import Outcome, columns_of, grant, is_ours, sync_customer
from chatapi.subscriptions.tiers import ENDED, RUNNING

RECONCILE = "reconcile_billing"
RECONCILIATION_ID = UUID(int=1)
"""There is one, but what is rung for has an id."""

EVERY_SECONDS = 3600
RUN_SECONDS = 1800
"""How long a run may take before it is begun anew."""
RETRY_SECONDS = 300

log = structlog.get_logger(__name__)


GIVE_UP_AFTER = 3
"""So many customers in a row who cannot be read are not to blame themselves."""


@dataclass
class Report:
    """What a run found.

    Subscriptions compared; customers who were repaired, whom nobody here is, and who could not be read.
    """

    checked: int = 0
    drifted: int = 0
    unknown: int = 0
    failed: int = 0


_TAKE = text("""
    UPDATE billing_reconciliation SET due_at = now() + make_interval(secs => :seconds)
    WHERE due_at <= now() RETURNING id
""")

_BEGIN = text("""
    UPDATE billing_reconciliation
    SET started_at = now(), due_at = now() + make_interval(secs => :seconds),
        not_before = now() + make_interval(secs => :seconds)
    WHERE :is_asked_for OR not_before IS NULL OR not_before <= now() RETURNING id
""")

_FINISH = text("""
    UPDATE billing_reconciliation
    SET finished_at = now(), due_at = now() + make_interval(secs => :seconds),
        not_before = now() + make_interval(secs => :seconds), checked = :checked, drifted = :drifted,
        total_drifted = total_drifted + :drifted, unknown = :unknown, failed = :failed
""")

_FAIL = text("""
    UPDATE billing_reconciliation
    SET due_at = now() + make_interval(secs => :seconds), not_before = now() + make_interval(secs => :seconds),
        total_drifted = total_drifted + :drifted, failed = :failed
""")

# Accounts whose tier is not that of their subscriptions, subscriptions that Stripe did not show, and checkouts that
# are open beside one that runs. What was shown is a subquery, which PostgreSQL looks up by a hash; an array it would
# search through for each.
_SUSPECT = text("""
    SELECT stripe_customer_id FROM billing_customers JOIN users ON users.id = user_id
    WHERE stripe_customer_id IS NOT NULL AND users.pro_until IS DISTINCT FROM (
        SELECT max(pro_until) FROM subscriptions WHERE subscriptions.user_id = users.id
    )
    UNION
    SELECT stripe_customer_id FROM subscriptions JOIN billing_customers USING (user_id)
    WHERE stripe_customer_id IS NOT NULL AND status <> ALL(:ended)
      AND stripe_subscription_id NOT IN (SELECT unnest(CAST(:seen AS text[])))
    UNION
    SELECT stripe_customer_id FROM billing_customers JOIN subscriptions USING (user_id)
    WHERE stripe_customer_id IS NOT NULL AND checkout_expires_at > now() AND status = ANY(:running)
""")


def take_due_reconciliation(_limit: int) -> list[UUID]:
    """Return the run that is due, if one is, to be rung for after commit; it is then nobody else's for a while."""
    if "stripe" not in current_app.extensions:
        return []
    is_due = db.session.execute(_TAKE, {"seconds": RETRY_SECONDS}).first() is not None
    return [RECONCILIATION_ID] if is_due else []


def run_reconciliation(_row_id: UUID = RECONCILIATION_ID) -> None:
    """Reconcile, as what is rung for, if nobody is at it and it is time; Stripe being away is waited out."""
    try:
        stripe = gateway()
        if _begin(is_asked_for=False):
            _run(stripe)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is to be done again
        log.warning("reconciliation_failed", reason=reason_of(error))


def reconcile() -> Report:
    """Compare every subscription with Stripe now, and repair what differs. Raises `BillingUnavailableError`."""
    stripe = gateway()
    _begin(is_asked_for=True)
    return _run(stripe)


def _begin(*, is_asked_for: bool) -> bool:
    wanted = {"seconds": RUN_SECONDS, "is_asked_for": is_asked_for}
    return in_transaction(lambda: db.session.execute(_BEGIN, wanted).first()) is not None


def _run(stripe: StripeGateway) -> Report:
    report = Report()
    try:
        _compare(stripe, report)
    except Exception:
        in_transaction(lambda: db.session.execute(_FAIL, {**asdict(report), "seconds": RETRY_SECONDS}))
        raise
    in_transaction(lambda: db.session.execute(_FINISH, {**asdict(report), "seconds": EVERY_SECONDS}))
    log.info("reconciled", **asdict(report))
    return report


def _compare(stripe: StripeGateway, report: Report) -> None:
    seen, suspects = list[str](), dict[str, list[RemoteSubscription]]()
    for page in _pages(stripe.list_current()):
        known = in_transaction(partial(_known, page))
        for remote in page:
            if remote.id not in known and (remote.status in ENDED or not is_ours(remote)):
                continue
            report.checked += 1
            seen.append(remote.id)
            # Since when an invoice is unpaid is not seen in the list.
            if remote.status == "past_due" or _differs(remote, known.get(remote.id)):
                suspects.setdefault(remote.customer_id, []).append(remote)
    wanted = {"seen": seen, "ended": list(ENDED), "running": list(RUNNING)}
    others = in_transaction(lambda: list(db.session.scalars(_SUSPECT, wanted)))
    _repair_all(stripe, {**suspects, **{each: () for each in others if each not in suspects}}, report)


def _pages(remotes: Iterator[RemoteSubscription]) -> Iterator[list[RemoteSubscription]]:
    while page := list(islice(remotes, PAGE)):
        yield page


def _known(page: Sequence[RemoteSubscription]) -> dict[str, Subscription]:
    ids = [remote.id for remote in page]
    query = select(Subscription).where(Subscription.stripe_subscription_id.in_(ids))
    found = db.session.scalars(query.execution_options(populate_existing=True))
    return {subscription.stripe_subscription_id: subscription for subscription in found}


def _differs(remote: RemoteSubscription, known: Subscription | None) -> bool:
    now_as = columns_of(remote, grant(remote))
    return known is None or now_as != {name: getattr(known, name) for name in now_as}


def _repair_all(stripe: StripeGateway, suspects: Mapping[str, Sequence[RemoteSubscription]], report: Report) -> None:
    """Repair one after the other. Raises what the last one raised when several in a row fail."""
    in_a_row = 0
    for customer_id, remotes in suspects.items():
        try:
            _repair(stripe, customer_id, remotes, report)
            in_a_row = 0
        except Exception as error:
            report.failed += 1
            log.error("customer_failed", customer=customer_id, reason=reason_of(error))  # noqa: TRY400
            # Stripe has answered about those that it does not know.
            in_a_row = 0 if isinstance(error, CustomerMissingError) else in_a_row + 1
            if in_a_row == GIVE_UP_AFTER:
                raise


def _repair(stripe: StripeGateway, customer_id: str, remotes: Sequence[RemoteSubscription], report: Report) -> None:
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


def _close_again(customer_id: str, remotes: Sequence[RemoteSubscription]) -> bool:
    """Return whether the account is erased; what still runs is to be ended then."""
    if not is_closed(customer_id):
        return False
    if any(remote.status not in ENDED for remote in remotes):
        close_customer(customer_id)
    return True
