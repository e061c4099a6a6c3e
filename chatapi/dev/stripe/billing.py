"""Checkout and portal sessions, subscriptions and invoices, as the API offers them."""

from __future__ import annotations

from chatapi.dev.stripe import checkout, invoices, subscriptions
from chatapi.dev.stripe.account import Account
from chatapi.dev.stripe.catalogue import change
from chatapi.dev.stripe.lists import FILTERED_PAGING, PAGING, check_filters, cut_page, page
from chatapi.dev.stripe.params import (
    Checker,
    Params,
    array,
    boolean,
    choice,
    either,
    hash_of,
    metadata,
    text,
    url,
    whole,
)
from chatapi.dev.stripe.routes import Route
from chatapi.dev.stripe.wire import ApiError, Json, invalid, missing_object

SUBSCRIPTION_STATUSES = (
    *("active", "canceled", "incomplete", "incomplete_expired"),
    *("past_due", "paused", "trialing", "unpaid"),
)
INVOICE_STATUSES = ("draft", "open", "paid", "uncollectible", "void")
MAX_TRIAL_DAYS = 730
LINES = array(hash_of({"price": text(), "quantity": whole(1, 999999)}, "price"), minimum=1)
END_BEHAVIOUR = hash_of(
    {"missing_payment_method": choice("cancel", "create_invoice", "pause")}, "missing_payment_method"
)
TRIAL_FIELDS: dict[str, Checker] = {
    "description": text(max_length=500),
    "metadata": metadata(),
    "trial_period_days": whole(1, MAX_TRIAL_DAYS),
    "trial_settings": hash_of({"end_behavior": END_BEHAVIOUR}, "end_behavior"),
}
SESSION_FIELDS: dict[str, Checker] = {
    "allow_promotion_codes": boolean(),
    "billing_address_collection": choice("auto", "required"),
    "cancel_url": url(),
    "client_reference_id": text(max_length=200),
    "customer": text(),
    "customer_email": text(),
    "customer_update": hash_of(dict.fromkeys(("address", "name", "shipping"), choice("auto", "never"))),
    "expires_at": whole(),
    "line_items": LINES,
    "locale": text(),
    "metadata": metadata(),
    "mode": choice("subscription"),
    "payment_method_collection": choice("always", "if_required"),
    "subscription_data": hash_of(TRIAL_FIELDS),
    "success_url": url(),
    "ui_mode": choice("hosted_page"),
}
CANCEL_DETAILS = hash_of({"comment": text(), "feedback": text()})
ENDS: dict[str, Checker] = {
    "cancel_at": either("", either("min_period_end", either("max_period_end", whole()))),
    "cancel_at_period_end": boolean(),
}
PAUSE = hash_of(
    {"behavior": choice("keep_as_draft", "mark_uncollectible", "void"), "resumes_at": whole()},
    "behavior",
    may_unset=True,
)
PRORATIONS = choice("always_invoice", "create_prorations", "none")
UNCHANGEABLE = "A canceled subscription can only update its cancellation_details and metadata."


def _create_session(account: Account, _: str, params: Json) -> Json:
    return checkout.create_session(account, params)


def _get_session(account: Account, object_id: str, _: Json) -> Json:
    return account.find("checkout.session", object_id)


def _list_sessions(account: Account, _: str, params: Json) -> Json:
    check_filters(account, params, "customer", "subscription")
    same = [name for name in ("customer", "subscription", "status") if name in params]

    def is_wanted(session: Json) -> bool:
        return all(session[name] == params[name] for name in same)

    return page(account, "checkout.session", "/v1/checkout/sessions", params, is_wanted)


def _expire_session(account: Account, object_id: str, _: Json) -> Json:
    return checkout.expire(account, account.find("checkout.session", object_id))


def _list_session_lines(account: Account, object_id: str, params: Json) -> Json:
    lines = checkout.lines_of(account, account.find("checkout.session", object_id))
    ids = [line["id"] for line in lines]
    return cut_page(lines, ids, "item", f"/v1/checkout/sessions/{object_id}/line_items", params)


def _create_portal_session(account: Account, _: str, params: Json) -> Json:
    customer = account.find("customer", params["customer"], param="customer")
    return checkout.create_portal_session(account, customer, params.get("return_url"))


def _create_subscription(account: Account, _: str, params: Json) -> Json:
    customer = account.find("customer", params["customer"], param="customer")
    lines = checkout.line_prices(account, params["items"], "items")
    order = checkout.order_for(customer["id"], lines, params)
    has_card = invoices.card_of(account, customer["id"]) is not None
    if not has_card and not order.trial_days and params.get("payment_behavior") != "default_incomplete":
        message = "This customer has no attached payment source or default payment method."
        raise ApiError(400, message, code="resource_missing")
    return subscriptions.begin(account, order)


def _get_subscription(account: Account, object_id: str, _: Json) -> Json:
    return account.find("subscription", object_id)


def _list_subscriptions(account: Account, _: str, params: Json) -> Json:
    check_filters(account, params, "customer", "price")

    def is_wanted(subscription: Json) -> bool:
        return (
            ("customer" not in params or subscription["customer"] == params["customer"])
            and ("price" not in params or _has_price(subscription, params["price"]))
            and _has_status(subscription["status"], params.get("status"))
        )

    return page(account, "subscription", "/v1/subscriptions", params, is_wanted)


def _has_price(subscription: Json, price_id: str) -> bool:
    return any(item["price"]["id"] == price_id for item in subscription["items"]["data"])


def _has_status(status: str, wanted: str | None) -> bool:
    if wanted == "ended":
        return status in invoices.ENDED
    return wanted == "all" or (status != "canceled" if wanted is None else status == wanted)


def _update_subscription(account: Account, object_id: str, params: Json) -> Json:
    subscription = account.find("subscription", object_id)
    fields = {name: value for name, value in params.items() if name != "proration_behavior"}
    if subscription["status"] in invoices.ENDED and set(fields) - {"metadata", "cancellation_details"}:
        raise ApiError(400, UNCHANGEABLE, code="invalid_canceled_subscription_fields")
    ends = _ends(account, subscription, fields)
    if fields.get("pause_collection"):
        fields["pause_collection"] = {"resumes_at": None, **fields["pause_collection"]}
    details = fields.pop("cancellation_details", {})
    with account.updating(subscription, "customer.subscription.updated"):
        subscription["cancellation_details"] |= details
        if ends:
            subscriptions.schedule_end(subscription, ends, account.clock.now())
        change(account, subscription, fields, None)
    return subscription


def _ends(account: Account, subscription: Json, fields: Json) -> Json:
    """Take from `fields` when the subscription is to end."""
    ends: Json = {name: fields.pop(name) for name in ("cancel_at", "cancel_at_period_end") if name in fields}
    if len(ends) > 1:
        message = "Received both cancel_at and cancel_at_period_end parameters. Please pass in only one."
        raise invalid(message, param="cancel_at_period_end")
    wanted = ends.get("cancel_at")
    if wanted in {"min_period_end", "max_period_end"}:
        ends["cancel_at"] = invoices.period_of(subscription)[1]
    elif isinstance(wanted, int) and wanted <= account.clock.now():
        raise invalid("The `cancel_at` must be in the future.", param="cancel_at")
    return ends


def _cancel_subscription(account: Account, object_id: str, params: Json) -> Json:
    subscription = account.find("subscription", object_id)
    if subscription["status"] in invoices.ENDED:
        raise missing_object("subscription", object_id)
    subscription["cancellation_details"] |= params.get("cancellation_details", {})
    subscription["canceled_at"] = None
    invoices.end_subscription(account, subscription)
    return subscription


def _resume_subscription(account: Account, object_id: str, _: Json) -> Json:
    subscription = account.find("subscription", object_id)
    subscriptions.resume(account, subscription)
    return subscription


def _get_invoice(account: Account, object_id: str, _: Json) -> Json:
    return account.find("invoice", object_id)


def _list_invoices(account: Account, _: str, params: Json) -> Json:
    check_filters(account, params, "customer", "subscription")

    def is_wanted(invoice: Json) -> bool:
        return (
            ("customer" not in params or invoice["customer"] == params["customer"])
            and ("subscription" not in params or invoices.subscription_of(invoice) == params["subscription"])
            and ("status" not in params or invoice["status"] == params["status"])
        )

    return page(account, "invoice", "/v1/invoices", params, is_wanted)


def _pay_invoice(account: Account, object_id: str, params: Json) -> Json:
    invoice = account.find("invoice", object_id)
    if invoice["status"] == "draft":
        invoices.finalise(account, invoice)
    if invoice["status"] != "open":
        raise ApiError(400, f"Invoice is already {invoice['status']}", code="invoice_not_editable")
    card = invoices.GOOD_CARD if params.get("paid_out_of_band") else None
    if not invoices.pay(account, invoice, card=card):
        extra = {"decline_code": "generic_decline"}
        raise ApiError(402, "Your card was declined.", kind="card_error", code="card_declined", extra=extra)
    return invoice


def _void_invoice(account: Account, object_id: str, _: Json) -> Json:
    invoice = account.find("invoice", object_id)
    invoices.close(account, invoice, "void")
    return invoice


def _finalise_invoice(account: Account, object_id: str, _: Json) -> Json:
    invoice = account.find("invoice", object_id)
    if invoice["status"] != "draft":
        raise ApiError(400, "This invoice is already finalized.", code="invoice_not_editable")
    invoices.finalise(account, invoice)
    return invoice


SESSION_LIST = Params(
    FILTERED_PAGING | {"customer": text(), "status": choice("complete", "expired", "open"), "subscription": text()}
)
NEW_SUBSCRIPTION = Params(
    TRIAL_FIELDS
    | {"customer": text(), "items": LINES, "off_session": boolean(), "proration_behavior": PRORATIONS}
    | {"payment_behavior": choice("allow_incomplete", "default_incomplete")},
    ("customer", "items"),
)
SUBSCRIPTION_LIST = Params(
    FILTERED_PAGING | {"customer": text(), "price": text(), "status": choice(*SUBSCRIPTION_STATUSES, "all", "ended")}
)
SUBSCRIPTION_CHANGE = Params(
    ENDS
    | {"cancellation_details": CANCEL_DETAILS, "description": text(), "metadata": metadata()}
    | {"pause_collection": PAUSE, "proration_behavior": PRORATIONS},
)
CANCEL = Params({"cancellation_details": CANCEL_DETAILS, "invoice_now": boolean(), "prorate": boolean()})
RESUME = Params({"billing_cycle_anchor": choice("now"), "proration_behavior": PRORATIONS})
INVOICE_LIST = Params(
    FILTERED_PAGING | {"customer": text(), "status": choice(*INVOICE_STATUSES), "subscription": text()}
)
PORTAL = Params({"customer": text(), "locale": text(), "return_url": url()}, ("customer",))
SUBSCRIPTION = "/v1/subscriptions/{id}"
SESSION = "/v1/checkout/sessions/{id}"

ROUTES = (
    Route(
        "POST", "/v1/checkout/sessions", _create_session, Params(SESSION_FIELDS, ("mode", "line_items", "success_url"))
    ),
    Route("GET", "/v1/checkout/sessions", _list_sessions, SESSION_LIST),
    Route("GET", SESSION, _get_session),
    Route("POST", f"{SESSION}/expire", _expire_session),
    Route("GET", f"{SESSION}/line_items", _list_session_lines, Params(PAGING)),
    Route("POST", "/v1/billing_portal/sessions", _create_portal_session, PORTAL),
    Route("POST", "/v1/subscriptions", _create_subscription, NEW_SUBSCRIPTION),
    Route("GET", "/v1/subscriptions", _list_subscriptions, SUBSCRIPTION_LIST),
    Route("GET", SUBSCRIPTION, _get_subscription),
    Route("POST", SUBSCRIPTION, _update_subscription, SUBSCRIPTION_CHANGE),
    Route("DELETE", SUBSCRIPTION, _cancel_subscription, CANCEL),
    Route("POST", f"{SUBSCRIPTION}/resume", _resume_subscription, RESUME),
    Route("GET", "/v1/invoices", _list_invoices, INVOICE_LIST),
    Route("GET", "/v1/invoices/{id}", _get_invoice),
    Route("POST", "/v1/invoices/{id}/finalize", _finalise_invoice, Params({"auto_advance": boolean()})),
    Route("POST", "/v1/invoices/{id}/pay", _pay_invoice, Params({"paid_out_of_band": boolean()})),
    Route("POST", "/v1/invoices/{id}/void", _void_invoice),
)
