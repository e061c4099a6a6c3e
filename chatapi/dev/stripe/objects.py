"""Stripe's objects, fresh, with every member that the API's current version shows."""

from __future__ import annotations

from dataclasses import dataclass

from chatapi.dev.stripe.wire import API_VERSION, Json

OFF_TAX: Json = {"enabled": False, "liability": None, "provider": None, "status": None}
CARD_METHOD = "pm_standin_card"

CUSTOMER_NULLS = ("address", "business_name", "currency", "customer_account", "default_source", "discount", "phone")
CUSTOMER_MORE_NULLS = ("individual_name", "shipping", "test_clock", "description", "email", "name")
PRODUCT_NULLS = ("default_price", "description", "package_dimensions", "shippable", "statement_descriptor")
PRODUCT_MORE_NULLS = ("tax_code", "tax_details", "unit_label", "url")
PRICE_NULLS = ("custom_unit_amount", "lookup_key", "nickname", "recurring", "tiers_mode", "transform_quantity")
PLAN_NULLS = ("meter", "nickname", "tiers_mode", "transform_usage", "trial_period_days")
SESSION_NULLS = (
    *("after_expiration", "allow_promotion_codes", "billing_address_collection", "branding_settings", "cancel_url"),
    *("client_reference_id", "client_secret", "collected_information", "consent", "consent_collection"),
    *("currency_conversion", "customer", "customer_account", "customer_creation", "customer_details", "customer_email"),
    *("integration_identifier", "invoice", "invoice_creation", "locale", "managed_payments", "name_collection"),
    *("origin_context", "payment_intent", "payment_link", "payment_method_configuration_details", "permissions"),
    *("presentment_details", "recovered_from", "redirect_on_completion", "return_url", "setup_intent"),
    *("shipping_address_collection", "shipping_cost", "submit_type", "subscription", "success_url", "wallet_options"),
    *("allowed_payment_method_types", "excluded_payment_method_types", "optional_items"),
)
SUBSCRIPTION_NULLS = (
    *("application", "application_fee_percent", "billing_cycle_anchor_config", "billing_thresholds", "cancel_at"),
    *("canceled_at", "customer_account", "days_until_due", "default_payment_method", "default_source", "description"),
    *("ended_at", "latest_invoice", "managed_payments", "next_pending_invoice_item_invoice", "on_behalf_of"),
    *("pause_collection", "pending_invoice_item_interval", "pending_setup_intent", "pending_update"),
    *("presentment_details", "schedule", "status_details", "test_clock", "transfer_data", "trial_end", "trial_start"),
)
INVOICE_NULLS = (
    *("account_name", "account_tax_ids", "application", "automatically_finalizes_at", "confirmation_secret"),
    *("custom_fields", "customer_account", "customer_address", "customer_email", "customer_name", "customer_phone"),
    *("customer_shipping", "default_payment_method", "default_source", "description", "due_date", "effective_at"),
    *("ending_balance", "footer", "from_invoice", "hosted_invoice_url", "invoice_pdf", "last_finalization_error"),
    *("latest_revision", "next_payment_attempt", "number", "on_behalf_of", "receipt_number", "rendering"),
    *("shipping_cost", "shipping_details", "statement_descriptor", "status_details", "test_clock"),
    *("threshold_reason", "total_pretax_credit_amounts", "webhooks_delivered_at"),
)


@dataclass(frozen=True)
class Head:
    """What every object says of its birth."""

    object_id: str
    created: int
    livemode: bool

    def of(self, name: str) -> Json:
        return {"id": self.object_id, "object": name, "created": self.created, "livemode": self.livemode}


def list_of(data: list[Json], url: str, *, has_more: bool = False) -> Json:
    return {"object": "list", "data": data, "has_more": has_more, "url": url}


def customer(head: Head, invoice_prefix: str) -> Json:
    return {
        **head.of("customer"),
        **dict.fromkeys((*CUSTOMER_NULLS, *CUSTOMER_MORE_NULLS)),
        "balance": 0,
        "delinquent": False,
        "invoice_prefix": invoice_prefix,
        "invoice_settings": dict.fromkeys(("custom_fields", "default_payment_method", "footer", "rendering_options")),
        "metadata": {},
        "next_invoice_sequence": 1,
        "preferred_locales": [],
        "tax_exempt": "none",
    }


def product(head: Head, name: str) -> Json:
    return {
        **head.of("product"),
        **dict.fromkeys((*PRODUCT_NULLS, *PRODUCT_MORE_NULLS)),
        "active": True,
        "images": [],
        "marketing_features": [],
        "metadata": {},
        "name": name,
        "type": "service",
        "updated": head.created,
    }


def price(head: Head, product_id: str, currency: str, unit_amount: int, recurring: Json | None) -> Json:
    """Make a price per unit; `recurring` has `interval` and `interval_count`, None makes it one of a single payment."""
    shown = None
    if recurring:
        shown = {**recurring, "meter": None, "trial_period_days": None, "usage_type": "licensed"}
    return {
        **head.of("price"),
        **dict.fromkeys(PRICE_NULLS),
        "active": True,
        "billing_scheme": "per_unit",
        "currency": currency,
        "metadata": {},
        "product": product_id,
        "recurring": shown,
        "tax_behavior": "unspecified",
        "type": "recurring" if recurring else "one_time",
        "unit_amount": unit_amount,
        "unit_amount_decimal": str(unit_amount),
    }


def plan_of(price: Json) -> Json:
    """Return the plan that a subscription item still shows beside its price."""
    same = ("id", "active", "billing_scheme", "created", "currency", "livemode", "metadata", "product")
    return {
        **dict.fromkeys(PLAN_NULLS),
        **{name: price[name] for name in same},
        "object": "plan",
        "amount": price["unit_amount"],
        "amount_decimal": price["unit_amount_decimal"],
        "interval": price["recurring"]["interval"],
        "interval_count": price["recurring"]["interval_count"],
        "usage_type": "licensed",
    }


def subscription_item(head: Head, subscription_id: str, price: Json, quantity: int, period: tuple[int, int]) -> Json:
    made = head.of("subscription_item") | {
        "billing_thresholds": None,
        "billed_until": None,
        "current_period_start": period[0],
        "current_period_end": period[1],
        "discounts": [],
        "metadata": {},
        "plan": plan_of(price),
        "price": price,
        "quantity": quantity,
        "subscription": subscription_id,
        "tax_rates": [],
    }
    del made["livemode"]
    return made


def subscription(head: Head, customer_id: str, currency: str, items: list[Json]) -> Json:
    """Make a subscription that nothing was paid for yet."""
    return {
        **head.of("subscription"),
        **dict.fromkeys(SUBSCRIPTION_NULLS),
        "automatic_tax": {"disabled_reason": None, "enabled": False, "liability": None},
        "billing_cycle_anchor": head.created,
        "billing_mode": {"type": "flexible", "flexible": {"proration_discounts": "included"}},
        "billing_schedules": [],
        "cancel_at_period_end": False,
        "cancellation_details": dict.fromkeys(("comment", "feedback", "feedback_option", "reason")),
        "collection_method": "charge_automatically",
        "currency": currency,
        "customer": customer_id,
        "default_tax_rates": [],
        "discounts": [],
        "invoice_settings": {
            **dict.fromkeys(("account_tax_ids", "custom_fields", "description", "footer")),
            "issuer": {"type": "self"},
        },
        "items": list_of(items, f"/v1/subscription_items?subscription={head.object_id}"),
        "metadata": {},
        "payment_settings": {
            "payment_method_options": None,
            "payment_method_types": None,
            "save_default_payment_method": "off",
        },
        "start_date": head.created,
        "status": "incomplete",
        "trial_settings": {"end_behavior": {"billing_cycle_anchor": None, "missing_payment_method": "create_invoice"}},
    }


def invoice_line(head: Head, invoice_id: str, item: Json, amount: int, period: tuple[int, int]) -> Json:
    """Make the line for one item of a subscription."""
    price = item["price"]
    details = {
        "invoice_item": None,
        "proration": False,
        "proration_details": {"credited_items": None},
        "subscription": item["subscription"],
        "subscription_item": item["id"],
    }
    pricing = {"price": price["id"], "product": price["product"]}
    return {
        "id": head.object_id,
        "object": "line_item",
        "amount": amount,
        "currency": price["currency"],
        "description": f"{item['quantity']} x {price['nickname'] or price['product']}",
        "discount_amounts": [],
        "discountable": True,
        "discounts": [],
        "invoice": invoice_id,
        "livemode": head.livemode,
        "metadata": {},
        "parent": {
            "invoice_item_details": None,
            "subscription_item_details": details,
            "type": "subscription_item_details",
        },
        "period": {"start": period[0], "end": period[1]},
        "pretax_credit_amounts": None,
        "pricing": {
            "price_details": pricing,
            "type": "price_details",
            "unit_amount_decimal": price["unit_amount_decimal"],
        },
        "quantity": item["quantity"],
        "quantity_decimal": str(item["quantity"]),
        "subscription": item["subscription"],
        "subtotal": amount,
        "taxes": [],
    }


def invoice(head: Head, subscription: Json, lines: list[Json], reason: str, period: tuple[int, int]) -> Json:
    """Make the draft of what `subscription` owes for `lines`."""
    total = sum(line["amount"] for line in lines)
    parent = {"metadata": dict(subscription["metadata"]), "subscription": subscription["id"]}
    return {
        **head.of("invoice"),
        **dict.fromkeys(INVOICE_NULLS),
        **dict.fromkeys(("amount_due", "amount_remaining", "subtotal", "subtotal_excluding_tax"), total),
        **dict.fromkeys(("total", "total_excluding_tax"), total),
        **dict.fromkeys(("amount_overpaid", "amount_paid", "amount_paid_off_stripe", "amount_shipping"), 0),
        **dict.fromkeys(("post_payment_credit_notes_amount", "pre_payment_credit_notes_amount"), 0),
        "account_country": "US",
        "attempt_count": 0,
        "attempted": False,
        "auto_advance": True,
        "automatic_tax": {"disabled_reason": None, **OFF_TAX},
        "billing_reason": reason,
        "collection_method": "charge_automatically",
        "currency": subscription["currency"],
        "customer": subscription["customer"],
        "customer_tax_exempt": "none",
        "customer_tax_ids": [],
        "default_tax_rates": [],
        "discounts": [],
        "issuer": {"type": "self"},
        "lines": list_of(lines, f"/v1/invoices/{head.object_id}/lines"),
        "metadata": {},
        "parent": {"quote_details": None, "subscription_details": parent, "type": "subscription_details"},
        "payment_settings": dict.fromkeys(("default_mandate", "payment_method_options", "payment_method_types")),
        "period_start": period[0],
        "period_end": period[1],
        "starting_balance": 0,
        "status": "draft",
        "status_transitions": dict.fromkeys(("finalized_at", "marked_uncollectible_at", "paid_at", "voided_at")),
        "total_discount_amounts": [],
        "total_taxes": [],
    }


def checkout_session(head: Head, currency: str, amount: int, expires_at: int) -> Json:
    """Make an open session in subscription mode, with a page that Stripe hosts."""
    return {
        **head.of("checkout.session"),
        **dict.fromkeys(SESSION_NULLS),
        "adaptive_pricing": {"enabled": False},
        "amount_subtotal": amount,
        "amount_total": amount,
        "automatic_tax": dict(OFF_TAX),
        "currency": currency,
        "custom_fields": [],
        "custom_text": dict.fromkeys(
            ("after_submit", "shipping_address", "submit", "terms_of_service_acceptance"),
        ),
        "discounts": [],
        "expires_at": expires_at,
        "metadata": {},
        "mode": "subscription",
        "payment_method_collection": "always",
        "payment_method_options": {"card": {"request_three_d_secure": "automatic"}},
        "payment_method_types": ["card"],
        "payment_status": "unpaid",
        "phone_number_collection": {"enabled": False},
        "saved_payment_method_options": {
            "allow_redisplay_filters": ["always"],
            "payment_method_remove": "disabled",
            "payment_method_save": None,
        },
        "shipping_options": [],
        "status": "open",
        "tax_id_collection": {"enabled": False, "required": "never"},
        "total_details": {"amount_discount": 0, "amount_shipping": 0, "amount_tax": 0},
        "ui_mode": "hosted_page",
        "url": None,
    }


def session_line(head: Head, price: Json, product_name: str, quantity: int) -> Json:
    amount = price["unit_amount"] * quantity
    return {
        "id": head.object_id,
        "object": "item",
        "adjustable_quantity": None,
        "amount_discount": 0,
        "amount_subtotal": amount,
        "amount_tax": 0,
        "amount_total": amount,
        "currency": price["currency"],
        "description": product_name,
        "discounts": [],
        "metadata": {},
        "price": price,
        "quantity": quantity,
        "taxes": [],
    }


def customer_details(email: str | None, name: str | None) -> Json:
    empty = ("address", "business_name", "individual_name", "phone", "tax_ids")
    return {**dict.fromkeys(empty), "email": email, "name": name, "tax_exempt": "none"}


def portal_session(head: Head, customer_id: str, url: str, return_url: str | None) -> Json:
    nulls = ("after_expiration", "customer_account", "flow", "locale", "on_behalf_of")
    return {
        **head.of("billing_portal.session"),
        **dict.fromkeys(nulls),
        "configuration": "bpc_standin",
        "customer": customer_id,
        "return_url": return_url,
        "url": url,
    }


def webhook_endpoint(head: Head, url: str, enabled_events: list[str]) -> Json:
    return {
        **head.of("webhook_endpoint"),
        **dict.fromkeys(("api_version", "application", "description")),
        "enabled_events": enabled_events,
        "metadata": {},
        "status": "enabled",
        "url": url,
    }


def event(head: Head, event_type: str, data: Json, request: Json) -> Json:
    return {
        **head.of("event"),
        "api_version": API_VERSION,
        "data": data,
        "pending_webhooks": 0,
        "request": request,
        "type": event_type,
    }


def account(created: int, *, is_live: bool) -> Json:
    """Make `GET /v1/account`'s answer, short: one that may take payments."""
    return {
        "id": "acct_standin",
        "object": "account",
        "business_profile": {"name": "Stand-in", "url": None},
        "business_type": None,
        "capabilities": {"card_payments": "active"},
        "charges_enabled": True,
        "country": "US",
        "created": created,
        "default_currency": "usd",
        "details_submitted": is_live,
        "email": None,
        "metadata": {},
        "payouts_enabled": True,
        "settings": {"dashboard": {"display_name": "Stripe stand-in", "timezone": "Etc/UTC"}},
        "type": "standard",
    }
