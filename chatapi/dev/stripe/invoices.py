"""Invoices of subscriptions: made, finalised, paid or not, and what that does to the subscription.

A draft is finalised at once; Stripe waits about an hour, in which nothing that we rely on happens.
"""

from __future__ import annotations

from chatapi.dev.stripe import objects
from chatapi.dev.stripe.account import Account
from chatapi.dev.stripe.calendar import DAY_SECONDS
from chatapi.dev.stripe.wire import ApiError, Json

GOOD_CARD = "good"
DECLINING_CARD = "declines"
CARDS = (GOOD_CARD, DECLINING_CARD)
ENDED = frozenset({"canceled", "incomplete_expired"})
SETTLED = frozenset({"paid", "void", "uncollectible"})


def card_of(account: Account, customer_id: str) -> str | None:
    """Return which card the customer pays with, None if there is none."""
    card: str | None = account.private.get(customer_id, {}).get("card")
    return card


def invoices_of(account: Account, owner_id: str) -> list[Json]:
    """Return the invoices of a subscription or of a customer, oldest first."""
    ids = account.private.get(owner_id, {}).get("invoices", [])
    return [account.kinds["invoice"][invoice_id] for invoice_id in ids]


def subscription_of(invoice: Json) -> str:
    """Return the id of the subscription that an invoice is for."""
    return str(invoice["parent"]["subscription_details"]["subscription"])


def period_of(subscription: Json) -> tuple[int, int]:
    """Return the current period, which since 2025 is the items' own."""
    item = subscription["items"]["data"][0]
    return item["current_period_start"], item["current_period_end"]


def draft_invoice(
    account: Account,
    subscription: Json,
    reason: str,
    *,
    passed: tuple[int, int] | None = None,
    is_free: bool = False,
) -> Json:
    """Make the draft for the subscription's current period, and have the subscription name it.

    Its lines are for that period, itself it looks back on the one that has `passed`.
    """
    head = account.head("invoice")
    period = period_of(subscription)
    lines = []
    for item in subscription["items"]["data"]:
        amount = 0 if is_free else item["price"]["unit_amount"] * item["quantity"]
        lines.append(objects.invoice_line(account.part_head("il_"), head.object_id, item, amount, period))
    invoice = objects.invoice(head, subscription, lines, reason, passed or (head.created, head.created))
    customer = account.kinds["customer"][subscription["customer"]]
    invoice |= {f"customer_{name}": customer.get(name) for name in ("email", "name", "phone", "address")}
    subscription["latest_invoice"] = invoice["id"]
    for owner_id in (subscription["id"], customer["id"]):
        account.secret_of(owner_id).setdefault("invoices", []).append(invoice["id"])
    return account.add(invoice)


def finalise(account: Account, invoice: Json) -> None:
    """Open a draft; one of nothing is paid by that."""
    customer = account.kinds["customer"][invoice["customer"]]
    now = account.clock.now()
    with account.updating(invoice, "invoice.finalized"):
        number = customer["next_invoice_sequence"]
        invoice |= {"status": "open", "number": f"{customer['invoice_prefix']}-{number:04}", "effective_at": now}
        invoice["status_transitions"]["finalized_at"] = now
        customer["next_invoice_sequence"] = number + 1
    if not invoice["total"]:
        _mark_paid(account, invoice)


def collect(account: Account, invoice: Json) -> bool:
    """Try to have an open invoice paid as Stripe does by itself; return whether it is paid."""
    return pay(account, invoice, is_scheduled=True)


def pay(account: Account, invoice: Json, *, card: str | None = None, is_scheduled: bool = False) -> bool:
    """Try `card`, or the customer's; what comes of it shows in the subscription. Return whether it is paid."""
    if invoice["status"] == "open":
        if (card or card_of(account, invoice["customer"])) == GOOD_CARD:
            with account.updating(invoice, None):
                _count_attempt(invoice)
            _mark_paid(account, invoice)
        else:
            _fail(account, invoice, is_scheduled=is_scheduled)
    follow_invoices(account, account.kinds["subscription"][subscription_of(invoice)])
    return bool(invoice["status"] == "paid")


def _count_attempt(invoice: Json) -> None:
    invoice["attempted"] = True
    invoice["attempt_count"] += 1


def _mark_paid(account: Account, invoice: Json) -> None:
    with account.updating(invoice, "invoice.updated"):
        invoice |= {"status": "paid", "amount_paid": invoice["total"], "amount_remaining": 0, "attempted": True}
        invoice |= {"next_payment_attempt": None, "auto_advance": False}
        invoice["status_transitions"]["paid_at"] = account.clock.now()
    account.emit("invoice.paid", invoice)
    account.emit("invoice.payment_succeeded", invoice)


def _fail(account: Account, invoice: Json, *, is_scheduled: bool) -> None:
    with account.updating(invoice, "invoice.updated"):
        _count_attempt(invoice)
        if is_scheduled:
            invoice["next_payment_attempt"] = _next_attempt(account, invoice)
            invoice["auto_advance"] = invoice["next_payment_attempt"] is not None
    account.emit("invoice.payment_failed", invoice)


def _next_attempt(account: Account, invoice: Json) -> int | None:
    """Return when a retry is due: never for the first invoice, whose subscription waits for its customer."""
    if account.kinds["subscription"][subscription_of(invoice)]["status"] == "incomplete":
        return None
    secret = account.secret_of(invoice["id"])
    first = secret.setdefault("first_failed_at", account.clock.now())
    tried = secret["retries"] = secret.get("retries", -1) + 1
    days = account.dunning.retry_days
    return int(first + days[tried] * DAY_SECONDS) if tried < len(days) else None


def follow_invoices(account: Account, subscription: Json) -> None:
    """Set the subscription's status by its newest invoice that is no draft, and the customer's by all."""
    invoices = [invoice for invoice in invoices_of(account, subscription["id"]) if invoice["status"] != "draft"]
    if not invoices or subscription["status"] in ENDED:
        return
    status = _status_by(account, subscription["status"], invoices[-1])
    if status == "canceled":
        end_subscription(account, subscription, reason="payment_failed")
    else:
        with account.updating(subscription, "customer.subscription.updated"):
            subscription["status"] = status
    _note_debts(account, subscription["customer"])


def _status_by(account: Account, status: str, invoice: Json) -> str:
    if status == "trialing":
        return status
    if invoice["status"] in SETTLED:
        return status if status == "incomplete" and invoice["status"] != "paid" else "active"
    if status == "incomplete" or not invoice["attempted"]:
        return status
    if invoice["next_payment_attempt"] is None:
        return account.dunning.final_status
    return "past_due"


def _note_debts(account: Account, customer_id: str) -> None:
    customer = account.kinds["customer"][customer_id]
    if customer.get("deleted"):
        return
    invoices = invoices_of(account, customer_id)
    with account.updating(customer, "customer.updated"):
        customer["delinquent"] = any(invoice["status"] == "open" and invoice["attempted"] for invoice in invoices)


def end_subscription(account: Account, subscription: Json, *, reason: str = "cancellation_requested") -> None:
    """Cancel a subscription now; its open invoices stay as they are, but nothing tries to collect them."""
    now = account.clock.now()
    with account.updating(subscription, None):
        subscription |= {"status": "canceled", "ended_at": now, "canceled_at": subscription["canceled_at"] or now}
        details = subscription["cancellation_details"]
        details["reason"] = details["reason"] or reason
    stop_collecting(account, subscription)
    account.emit("customer.subscription.deleted", subscription)


def stop_collecting(account: Account, subscription: Json) -> None:
    """Leave the invoices of a subscription that has ended alone."""
    for invoice in invoices_of(account, subscription["id"]):
        if invoice["status"] in {"open", "draft"}:
            with account.updating(invoice, "invoice.updated"):
                invoice |= {"auto_advance": False, "next_payment_attempt": None}


def close(account: Account, invoice: Json, status: str) -> None:
    """Void an invoice, or give it up as uncollectible."""
    moment = {"void": "voided_at", "uncollectible": "marked_uncollectible_at"}[status]
    if invoice["status"] not in {"open", "uncollectible"}:
        message = f"You can only pass in open invoices. This invoice is {invoice['status']}."
        raise ApiError(400, message, code="invoice_not_editable", param="invoice")
    told = {"void": "invoice.voided", "uncollectible": "invoice.marked_uncollectible"}[status]
    with account.updating(invoice, told):
        invoice |= {"status": status, "auto_advance": False, "next_payment_attempt": None}
        invoice["status_transitions"][moment] = account.clock.now()
    follow_invoices(account, account.kinds["subscription"][subscription_of(invoice)])
