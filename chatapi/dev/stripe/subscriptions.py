"""The life of a subscription: begun, renewed, ended; each step tells what Stripe tells."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

from chatapi.dev.stripe import invoices, objects
from chatapi.dev.stripe.account import Account
from chatapi.dev.stripe.calendar import DAY_SECONDS, add_intervals, period_after
from chatapi.dev.stripe.wire import ApiError, Json

FIRST_PAYMENT_SECONDS = 23 * 3600
TRIAL_WARNING_SECONDS = 3 * DAY_SECONDS
RENEWED = frozenset({"active", "past_due", "unpaid"})


@dataclass(frozen=True)
class Order:
    """What is subscribed to: prices and quantities, `trial_days` before the first payment."""

    customer_id: str
    items: list[tuple[Json, int]]
    trial_days: int = 0
    fields: Json = field(default_factory=dict)
    missing_payment_method: str = "create_invoice"


def begin(account: Account, order: Order, *, is_paid_already: bool = False) -> Json:
    """Begin a subscription.

    From a checkout it is paid already and active from the start; otherwise it begins incomplete, and the customer's
    card decides.
    """
    subscription = _new_subscription(account, order)
    is_trial = order.trial_days > 0
    if is_paid_already and not is_trial:
        subscription["status"] = "active"
    account.add(subscription)
    invoice = invoices.draft_invoice(account, subscription, "subscription_create", is_free=is_trial)
    account.emit("customer.subscription.created", subscription)
    account.emit("invoice.created", invoice)
    invoices.finalise(account, invoice)
    if not is_trial:
        invoices.pay(account, invoice, card=invoices.GOOD_CARD if is_paid_already else None)
    return subscription


def _new_subscription(account: Account, order: Order) -> Json:
    head = account.head("subscription")
    recurring = order.items[0][0]["recurring"]
    trial_end = head.created + order.trial_days * DAY_SECONDS if order.trial_days else None
    end = trial_end or add_intervals(head.created, recurring["interval"], recurring["interval_count"])
    items = [
        objects.subscription_item(
            account.part_head("si_"), head.object_id, copy.deepcopy(price), quantity, (head.created, end)
        )
        for price, quantity in order.items
    ]
    made = objects.subscription(head, order.customer_id, order.items[0][0]["currency"], items)
    made["trial_settings"]["end_behavior"]["missing_payment_method"] = order.missing_payment_method
    if trial_end:
        made |= {"trial_start": head.created, "trial_end": trial_end, "billing_cycle_anchor": trial_end}
        made["status"] = "trialing"
    return made | order.fields


def renew(account: Account, subscription: Json) -> None:
    """Begin the next period and bill it, as its status and `pause_collection` say. A trial's end is one too."""
    with account.updating(subscription, "customer.subscription.updated"):
        if subscription["status"] == "trialing":
            subscription["status"] = "active"
        passed = invoices.period_of(subscription)
        _move_period(subscription)
        invoice = invoices.draft_invoice(account, subscription, "subscription_cycle", passed=passed)
    account.emit("invoice.created", invoice)
    pause = subscription["pause_collection"]
    if subscription["status"] == "unpaid" or (pause and pause["behavior"] == "keep_as_draft"):
        invoice["auto_advance"] = False
        return
    invoices.finalise(account, invoice)
    if pause:
        invoices.close(account, invoice, {"void": "void"}.get(pause["behavior"], "uncollectible"))
    else:
        invoices.collect(account, invoice)


def _move_period(subscription: Json) -> None:
    _, end = invoices.period_of(subscription)
    anchor = subscription["billing_cycle_anchor"]
    for item in subscription["items"]["data"]:
        recurring = item["price"]["recurring"]
        following = period_after(anchor, recurring["interval"], recurring["interval_count"], end)
        item |= {"current_period_start": end, "current_period_end": following}
    if subscription["cancel_at_period_end"]:
        subscription["cancel_at"] = invoices.period_of(subscription)[1]


def end_trial(account: Account, subscription: Json) -> None:
    """Let the paid time begin; without a card, what the trial's settings say happens instead."""
    behaviour = subscription["trial_settings"]["end_behavior"]["missing_payment_method"]
    if invoices.card_of(account, subscription["customer"]) is None and behaviour != "create_invoice":
        if behaviour == "cancel":
            invoices.end_subscription(account, subscription)
        else:
            pause(account, subscription, "trial_end_without_payment_method")
        return
    renew(account, subscription)


def pause(account: Account, subscription: Json, reason: str) -> None:
    """Stop the subscription's periods until it is resumed."""
    paused = {"subscription": {"type": reason}, "transitioned_at": account.clock.now(), "type": "subscription"}
    with account.updating(subscription, "customer.subscription.updated"):
        subscription |= {"status": "paused", "status_details": {"paused": paused}}
    account.emit("customer.subscription.paused", subscription)


def resume(account: Account, subscription: Json) -> None:
    """Begin a paused subscription's periods anew, from now, and bill the first of them."""
    if subscription["status"] != "paused":
        raise ApiError(400, f"This subscription is {subscription['status']}: only a paused one can be resumed.")
    with account.updating(subscription, "customer.subscription.updated"):
        now = account.clock.now()
        subscription |= {"status": "active", "status_details": None, "billing_cycle_anchor": now}
        for item in subscription["items"]["data"]:
            item["current_period_end"] = now
        _move_period(subscription)
        invoice = invoices.draft_invoice(account, subscription, "subscription_update")
    account.emit("customer.subscription.resumed", subscription)
    account.emit("invoice.created", invoice)
    invoices.finalise(account, invoice)
    invoices.collect(account, invoice)


def expire_incomplete(account: Account, subscription: Json) -> None:
    """End a subscription whose first invoice was not paid within 23 hours."""
    with account.updating(subscription, "customer.subscription.updated"):
        subscription |= {"status": "incomplete_expired", "ended_at": account.clock.now()}
    for invoice in invoices.invoices_of(account, subscription["id"]):
        if invoice["status"] == "open":
            invoices.close(account, invoice, "void")


def schedule_end(subscription: Json, changes: Json, now: int) -> None:
    """Set or clear `cancel_at_period_end` or `cancel_at`, of which Stripe takes one at a time.

    False for the first takes back only what the first had set: a date of its own stays.
    """
    if "cancel_at_period_end" in changes:
        is_wanted = changes["cancel_at_period_end"]
        if not is_wanted and not subscription["cancel_at_period_end"]:
            return
        ends_at = invoices.period_of(subscription)[1] if is_wanted else None
        subscription["cancel_at_period_end"] = is_wanted
    else:
        ends_at = changes["cancel_at"] or None
        subscription["cancel_at_period_end"] = False
    subscription |= {"cancel_at": ends_at, "canceled_at": now if ends_at else None}
    subscription["cancellation_details"]["reason"] = "cancellation_requested" if ends_at else None


def bring_forward(subscription: Json, seconds: int) -> None:
    """Shift the subscription's own dates, as if it had begun so much earlier: its period ends sooner, nobody else's.

    Later periods are counted from that end, for a month earlier by days is not the same day of the month.
    """
    for name in ("trial_end", "cancel_at"):
        if subscription[name]:
            subscription[name] -= seconds
    for item in subscription["items"]["data"]:
        item["current_period_start"] -= seconds
        item["current_period_end"] -= seconds
    subscription["billing_cycle_anchor"] = invoices.period_of(subscription)[1]
