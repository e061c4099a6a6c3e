"""What the Stripe stand-in holds: customers, products and prices, and that all is as the SDK declares it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import stripe
from stripe import params as sdk_params
from stripe.params import billing_portal as portal_params
from stripe.params import checkout as checkout_params

from chatapi.dev.stripe import billing, catalogue, notices
from tests.dev.stripe_support import MONTH, Shop, open_shop

SDK_PARAMS: dict[tuple[str, str], Any] = {
    ("POST", "/v1/customers"): sdk_params.CustomerCreateParams,
    ("GET", "/v1/customers"): sdk_params.CustomerListParams,
    ("POST", "/v1/customers/{id}"): sdk_params.CustomerUpdateParams,
    ("POST", "/v1/products"): sdk_params.ProductCreateParams,
    ("GET", "/v1/products"): sdk_params.ProductListParams,
    ("POST", "/v1/products/{id}"): sdk_params.ProductUpdateParams,
    ("POST", "/v1/prices"): sdk_params.PriceCreateParams,
    ("GET", "/v1/prices"): sdk_params.PriceListParams,
    ("POST", "/v1/prices/{id}"): sdk_params.PriceUpdateParams,
    ("POST", "/v1/checkout/sessions"): checkout_params.SessionCreateParams,
    ("GET", "/v1/checkout/sessions"): checkout_params.SessionListParams,
    ("GET", "/v1/checkout/sessions/{id}/line_items"): checkout_params.SessionListLineItemsParams,
    ("POST", "/v1/billing_portal/sessions"): portal_params.SessionCreateParams,
    ("POST", "/v1/subscriptions"): sdk_params.SubscriptionCreateParams,
    ("GET", "/v1/subscriptions"): sdk_params.SubscriptionListParams,
    ("POST", "/v1/subscriptions/{id}"): sdk_params.SubscriptionUpdateParams,
    ("DELETE", "/v1/subscriptions/{id}"): sdk_params.SubscriptionCancelParams,
    ("POST", "/v1/subscriptions/{id}/resume"): sdk_params.SubscriptionResumeParams,
    ("GET", "/v1/invoices"): sdk_params.InvoiceListParams,
    ("POST", "/v1/invoices/{id}/finalize"): sdk_params.InvoiceFinalizeInvoiceParams,
    ("POST", "/v1/invoices/{id}/pay"): sdk_params.InvoicePayParams,
    ("GET", "/v1/events"): sdk_params.EventListParams,
    ("POST", "/v1/webhook_endpoints"): sdk_params.WebhookEndpointCreateParams,
    ("GET", "/v1/webhook_endpoints"): sdk_params.WebhookEndpointListParams,
    ("POST", "/v1/webhook_endpoints/{id}"): sdk_params.WebhookEndpointUpdateParams,
}

SHOWN_ON_REQUEST = {
    *("OBJECT_NAME", "deleted", "secret", "account", "context"),
    *("cash_balance", "invoice_credit_balance", "sources", "subscriptions", "tax", "tax_ids"),
    *("currency_options", "tiers", "line_items", "payments", "current_trial"),
}
"""Members that Stripe shows only if asked for, or of other kinds of objects than ours."""


@pytest.fixture(scope="module")
def shop() -> Iterator[Shop]:
    with open_shop() as opened:
        yield opened


def test_customer_changes_and_metadata_merges_when_updated(shop: Shop) -> None:
    customer = shop.v1.customers.create({"name": "Ada", "metadata": {"user": "1", "old": "x"}})

    changed = shop.v1.customers.update(customer.id, {"email": "new@example.com", "metadata": {"old": "", "more": "y"}})
    cleared = shop.v1.customers.update(customer.id, {"name": "", "metadata": ""})

    assert (changed.name, changed.email) == ("Ada", "new@example.com")
    assert changed.metadata.to_dict() == {"user": "1", "more": "y"}
    assert (cleared.name, cleared.metadata.to_dict()) == (None, {})
    [event] = [made for made in shop.standin.events("customer.updated") if made["data"]["object"]["name"]]
    assert event["data"]["previous_attributes"] == {"email": None, "metadata": {"old": "x", "more": None}}


def test_deleted_customer_is_shown_as_deleted_and_counts_as_missing_when_named(shop: Shop) -> None:
    subscription = shop.subscription()
    customer_id = subscription.customer

    deleted = shop.v1.customers.delete(customer_id)
    found = shop.v1.customers.retrieve(customer_id)

    assert deleted.deleted
    assert found.to_dict() == {"id": customer_id, "object": "customer", "deleted": True}
    assert shop.status(subscription) == "canceled"
    assert customer_id not in [held.id for held in shop.v1.customers.list({"limit": 100}).data]
    for use in (
        lambda: shop.session(customer=customer_id),
        lambda: shop.v1.customers.update(customer_id, {"name": "x"}),
    ):
        with pytest.raises(stripe.InvalidRequestError, match="No such customer"):
            use()


def test_customers_are_found_by_email_when_listed(shop: Shop) -> None:
    first, second = shop.customer("same@example.com"), shop.customer("same@example.com")

    found = shop.v1.customers.list({"email": "same@example.com"})

    assert [customer.id for customer in found.data] == [second.id, first.id]
    assert not found.has_more


def test_products_and_prices_are_found_by_what_describes_them_when_listed(shop: Shop) -> None:
    product = shop.v1.products.create({"id": "chat_pro", "name": "Chat Pro", "active": False})
    price = shop.v1.prices.create(
        {"product": product.id, "currency": "EUR", "unit_amount": 500, "recurring": MONTH, "lookup_key": "chat_pro"}
    )
    once = shop.v1.prices.create({"product": product.id, "currency": "eur", "unit_amount": 1})

    assert (price.currency, price.type, once.type) == ("eur", "recurring", "one_time")
    assert [held.id for held in shop.v1.products.list({"ids": ["chat_pro"]}).data] == ["chat_pro"]
    assert "chat_pro" not in [held.id for held in shop.v1.products.list({"active": True}).data]
    for listing in ({"lookup_keys": ["chat_pro", "x"]}, {"product": product.id, "type": "recurring"}):
        assert [held.id for held in shop.v1.prices.list(listing).data] == [price.id]
    with pytest.raises(stripe.InvalidRequestError) as again:
        shop.v1.products.create({"id": "chat_pro", "name": "Again"})
    assert again.value.code == "resource_already_exists"


def test_lookup_key_moves_only_when_its_transfer_is_asked_for(shop: Shop) -> None:
    new = {"product": shop.product.id, "currency": "usd", "unit_amount": 1, "lookup_key": "moving"}
    first = shop.v1.prices.create(new)

    with pytest.raises(stripe.InvalidRequestError, match="already uses that lookup key"):
        shop.v1.prices.create(new)
    second = shop.v1.prices.create({**new, "transfer_lookup_key": True})

    assert (shop.v1.prices.retrieve(first.id).lookup_key, second.lookup_key) == (None, "moving")


def test_product_has_a_default_price_when_made_with_one(shop: Shop) -> None:
    data = {"currency": "usd", "unit_amount": 700, "recurring": MONTH}
    product = shop.v1.products.create({"name": "With price", "default_price_data": data, "expand": ["default_price"]})

    assert product.default_price.unit_amount == 700


def test_account_is_shown_when_asked_for(shop: Shop) -> None:
    assert shop.v1.accounts.retrieve_current().charges_enabled


def members_of(kind: type[Any]) -> set[str]:
    """Return what the SDK's class for a kind of object declares."""
    return set(inspect.get_annotations(kind)) - SHOWN_ON_REQUEST


def test_objects_have_the_members_of_the_sdk_when_made(shop: Shop) -> None:
    session = shop.session(customer=shop.customer().id)
    paid = shop.standin.pay(session.id)
    subscription = shop.v1.subscriptions.retrieve(paid["subscription"])
    invoice = shop.v1.invoices.retrieve(paid["invoice"])
    item = subscription["items"].data[0]
    shown = [
        (stripe.Customer, shop.v1.customers.retrieve(paid["customer"])),
        (stripe.Product, shop.product),
        (stripe.Price, shop.price),
        (stripe.checkout.Session, session),
        (stripe.LineItem, shop.v1.checkout.sessions.line_items.list(session.id).data[0]),
        (stripe.Subscription, subscription),
        (stripe.SubscriptionItem, item),
        (stripe.Plan, item.plan),
        (stripe.Invoice, invoice),
        (stripe.InvoiceLineItem, invoice.lines.data[0]),
        (stripe.Event, shop.v1.events.list().data[0]),
        (stripe.billing_portal.Session, shop.v1.billing_portal.sessions.create({"customer": paid["customer"]})),
        (
            stripe.WebhookEndpoint,
            shop.v1.webhook_endpoints.create({"url": "http://127.0.0.1:9/", "enabled_events": ["price.deleted"]}),
        ),
    ]

    for kind, made in shown:
        assert set(made.to_dict()) - {"secret"} == members_of(kind), kind


def test_places_of_things_are_those_of_the_current_version_when_subscribed(shop: Shop) -> None:
    session = shop.session(customer=shop.customer().id)
    paid = shop.standin.pay(session.id)
    subscription = shop.v1.subscriptions.retrieve(paid["subscription"]).to_dict()
    invoice = shop.v1.invoices.retrieve(paid["invoice"]).to_dict()

    assert "current_period_end" not in subscription
    assert subscription["items"]["data"][0]["current_period_end"] > subscription["created"]
    assert invoice["parent"]["subscription_details"]["subscription"] == subscription["id"]
    assert not {"subscription", "paid", "charge", "payment_intent"} & set(invoice)


def test_parameters_are_those_of_the_sdk_when_a_route_takes_them() -> None:
    routes = (*catalogue.ROUTES, *billing.ROUTES, *notices.ROUTES)
    taking = {(route.method, route.path): set(route.params.known) for route in routes if route.params.known}

    assert set(taking) == set(SDK_PARAMS)
    for where, names in taking.items():
        assert names <= set(SDK_PARAMS[where].__annotations__), where
