"""Checkout sessions and the portal: what a customer can do on the pages that Stripe hosts."""

from __future__ import annotations

import copy
from typing import Any

from chatapi.dev.stripe import invoices, objects, subscriptions
from chatapi.dev.stripe.account import Account
from chatapi.dev.stripe.calendar import DAY_SECONDS
from chatapi.dev.stripe.params import merge_metadata
from chatapi.dev.stripe.wire import ApiError, Json, invalid, new_id

MIN_SESSION_SECONDS = 30 * 60
MAX_SESSION_SECONDS = DAY_SECONDS
CLOCK_SLACK = 5
PLAIN_FIELDS = (
    *("allow_promotion_codes", "billing_address_collection", "cancel_url", "client_reference_id", "customer_email"),
    *("locale", "payment_method_collection", "success_url"),
)
NO_LINE_ITEMS = "Line items must hold at least one recurring price in subscription mode."


def line_prices(account: Account, lines: list[Json], param: str) -> list[tuple[Json, int]]:
    """Return prices and quantities; refuse what cannot be subscribed to."""
    found = []
    for index, line in enumerate(lines):
        name = f"{param}[{index}][price]"
        price = account.find("price", line["price"], param=name)
        if not price["active"]:
            raise ApiError(400, f"The price specified is inactive: {price['id']}", param=name)
        if not price["recurring"]:
            raise ApiError(400, f"The price specified is not recurring: {price['id']}. {NO_LINE_ITEMS}", param=name)
        found.append((price, line.get("quantity", 1)))
    rhythms = {(price["recurring"]["interval"], price["recurring"]["interval_count"]) for price, _ in found}
    if len(rhythms) > 1 or len({price["currency"] for price, _ in found}) > 1:
        raise ApiError(400, "The stand-in wants all prices to have one interval and one currency.", param=param)
    return found


def create_session(account: Account, params: Json) -> Json:
    """Open a session of 24 hours, or until `expires_at`."""
    expires_at = _expiry(account.clock.now(), params)
    if "customer" in params and "customer_email" in params:
        raise invalid("You may only specify one of these parameters: customer, customer_email.", param="customer_email")
    customer = account.find("customer", params["customer"], param="customer") if params.get("customer") else None
    prices = line_prices(account, params["line_items"], "line_items")
    settings = params.get("subscription_data") or {}
    is_trial = bool(settings.get("trial_period_days"))
    total = 0 if is_trial else sum(price["unit_amount"] * quantity for price, quantity in prices)
    head = account.head("checkout.session")
    made = objects.checkout_session(head, prices[0][0]["currency"], total, expires_at)
    made |= {name: params[name] for name in PLAIN_FIELDS if name in params}
    made |= {"metadata": merge_metadata({}, params.get("metadata")), "url": account.checkout_url(head.object_id)}
    if customer:
        made |= {"customer": customer["id"], "customer_details": _details(customer)}
    elif made["customer_email"]:
        made["customer_details"] = objects.customer_details(made["customer_email"], None)
    secret = account.secret_of(head.object_id)
    secret |= {"lines": [_line(account, *line) for line in prices], "subscription_data": settings}
    return account.add(made)


def _expiry(now: int, params: Json) -> int:
    """Return when a session is to expire; a few seconds more or less than allowed are the request's own way here."""
    expires_at: int = params.get("expires_at", now + MAX_SESSION_SECONDS)
    if not now + MIN_SESSION_SECONDS - CLOCK_SLACK <= expires_at <= now + MAX_SESSION_SECONDS + CLOCK_SLACK:
        message = "The `expires_at` timestamp must be between 30 minutes and 24 hours from now."
        raise invalid(message, param="expires_at")
    return expires_at


def _details(customer: Json) -> Json:
    return objects.customer_details(customer["email"], customer["name"])


def _line(account: Account, price: Json, quantity: int) -> Json:
    product = account.kinds["product"][price["product"]]
    return objects.session_line(account.part_head("li_"), copy.deepcopy(price), product["name"], quantity)


def lines_of(account: Account, session: Json) -> list[Json]:
    """Return what a session is about."""
    lines: list[Json] = account.private[session["id"]]["lines"]
    return lines


def complete(account: Account, session: Json) -> Json:
    """Pay on the session's page: the subscription begins, and Stripe tells of it. Return the subscription."""
    _check_open(session, "paid")
    customer = _customer_for(account, session)
    account.secret_of(customer["id"])["card"] = invoices.GOOD_CARD
    settings = account.private[session["id"]]["subscription_data"]
    lines = [(line["price"], line["quantity"]) for line in lines_of(account, session)]
    order = order_for(customer["id"], lines, settings)
    order.fields["default_payment_method"] = objects.CARD_METHOD
    subscription = subscriptions.begin(account, order, is_paid_already=True)
    with account.updating(session, None):
        is_trial = subscription["status"] == "trialing"
        session |= {"status": "complete", "payment_status": "no_payment_required" if is_trial else "paid", "url": None}
        session |= {"subscription": subscription["id"], "invoice": subscription["latest_invoice"]}
        session |= {"customer": customer["id"], "customer_details": _details(customer)}
    account.emit("checkout.session.completed", session)
    return subscription


def order_for(customer_id: str, lines: list[tuple[Json, int]], settings: Json) -> subscriptions.Order:
    """Turn what a request said of a subscription into the order for it."""
    fields: dict[str, Any] = {"metadata": merge_metadata({}, settings.get("metadata"))}
    if "description" in settings:
        fields["description"] = settings["description"]
    ending = (settings.get("trial_settings") or {}).get("end_behavior") or {}
    missing = ending.get("missing_payment_method", "create_invoice")
    return subscriptions.Order(customer_id, lines, settings.get("trial_period_days") or 0, fields, missing)


def _customer_for(account: Account, session: Json) -> Json:
    if session["customer"]:
        return account.find("customer", session["customer"], param="customer")
    return create_customer(account, {"email": session["customer_email"] or "buyer@example.com"})


def create_customer(account: Account, params: Json) -> Json:
    """Make a customer, without a card."""
    made = objects.customer(account.head("customer"), new_id("")[:8].upper())
    made |= {name: value for name, value in params.items() if name != "metadata"}
    made["metadata"] = merge_metadata({}, params.get("metadata"))
    return account.add(made, "customer.created")


def decline(session: Json) -> None:
    """Try to pay with a card that is declined: the session stays open, and no event that we rely on tells of it."""
    _check_open(session, "paid")


def expire(account: Account, session: Json) -> Json:
    """End an open session."""
    _check_open(session, "expired")
    with account.updating(session, None):
        session |= {"status": "expired", "url": None}
    account.emit("checkout.session.expired", session)
    return session


def _check_open(session: Json, what: str) -> None:
    if session["status"] != "open":
        message = f'Only Checkout Sessions with a status in ["open"] can be {what}. '
        raise ApiError(400, message + f"This Checkout Session has a status of `{session['status']}`.", param="session")


def create_portal_session(account: Account, customer: Json, return_url: str | None) -> Json:
    """Make a page for one customer, at an address that nobody can guess."""
    token = new_id("") + new_id("")
    account.secret_of(f"portal/{token}").update(customer=customer["id"], return_url=return_url)
    head = account.part_head("bps_")
    made = objects.portal_session(head, customer["id"], f"{account.base_url}/portal/{token}", return_url)
    account.emit("billing_portal.session.created", made)
    return made
