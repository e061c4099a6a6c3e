"""Stripe, as far as it is needed to set billing up: products, prices and webhook endpoints.

A module of its own, since nothing of it is needed while the service runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from chatapi.subscriptions.gateway import (
    API_VERSION,
    PAGE,
    Patience,
    SetupMissingError,
    make_client,
    refusals_in_words,
)

NOTED = {"app": "chatapi"}
"""The metadata of what is made here, by which it is found again."""
LOOKUP_KEY = "chatapi_pro"
"""What the price that is sold is called at Stripe; a new price takes it over."""

Interval = Literal["month", "year"]
INTERVALS: tuple[str, ...] = get_args(Interval)

EVENTS = (
    "checkout.session.completed",
    "checkout.session.async_payment_succeeded",
    "checkout.session.async_payment_failed",
    "checkout.session.expired",
    "customer.deleted",
    "customer.subscription.created",
    "customer.subscription.updated",
    "customer.subscription.deleted",
    "customer.subscription.paused",
    "customer.subscription.resumed",
    "customer.subscription.pending_update_applied",
    "invoice.finalized",
    "invoice.paid",
    "invoice.payment_failed",
    "invoice.voided",
    "invoice.marked_uncollectible",
)
"""What can change a tier, of all that `webhook.WATCHED` would take."""


@dataclass(frozen=True)
class Terms:
    """What is paid, in the currency's smallest unit, and how often."""

    amount: int
    currency: str
    interval: str


@dataclass(frozen=True)
class Product:
    """What is sold, as checkouts and invoices call it."""

    id: str
    name: str


@dataclass(frozen=True)
class Price:
    """A price of the product; `terms` is None when it is of another kind than those made here."""

    id: str
    terms: Terms | None
    is_active: bool
    is_sold: bool


@dataclass(frozen=True)
class Endpoint:
    """A webhook endpoint; `secret` is known only of one that was just made."""

    id: str
    url: str
    is_enabled: bool
    is_ours: bool
    events: frozenset[str]
    api_version: str | None
    secret: str | None


class SetupGateway:
    """One Stripe account, of which the parts that are set up once are read and made."""

    def __init__(self, secret_key: str, api_base: str, patience: Patience = Patience.BACKGROUND) -> None:
        self._v1 = make_client(secret_key, api_base, patience).v1

    def find_product(self) -> Product | None:
        """Return the product that was made here and is still sold, the oldest if there are several."""
        with refusals_in_words():
            found = self._v1.products.list({"active": True, "limit": PAGE})
            ours = [product for product in found.auto_paging_iter() if _is_ours(product.metadata)]
        return Product(ours[-1].id, ours[-1].name) if ours else None

    def make_product(self, name: str) -> Product:
        """Make the product."""
        with refusals_in_words():
            made = self._v1.products.create({"name": name, "metadata": NOTED})
        return Product(made.id, made.name)

    def rename_product(self, product_id: str, name: str) -> Product:
        """Have checkouts and invoices call the product `name`."""
        with refusals_in_words():
            changed = self._v1.products.update(product_id, {"name": name})
        return Product(changed.id, changed.name)

    def list_prices(self, product_id: str) -> list[Price]:
        """Return all prices that the product has had, newest first."""
        with refusals_in_words():
            found = self._v1.prices.list({"product": product_id, "type": "recurring", "limit": PAGE})
            return [_price(price) for price in found.auto_paging_iter()]

    def make_price(self, product_id: str, terms: Terms) -> Price:
        """Make a price, and have it be the one that is sold."""
        with refusals_in_words():
            made = self._v1.prices.create(
                {
                    "product": product_id,
                    "currency": terms.currency,
                    "unit_amount": terms.amount,
                    "recurring": {"interval": cast("Interval", terms.interval)},
                    "lookup_key": LOOKUP_KEY,
                    "transfer_lookup_key": True,
                    "metadata": NOTED,
                }
            )
        return _price(made)

    def sell_price(self, price_id: str) -> Price:
        """Have an earlier price be the one that is sold."""
        with refusals_in_words():
            changed = self._v1.prices.update(price_id, {"lookup_key": LOOKUP_KEY, "transfer_lookup_key": True})
        return _price(changed)

    def has_price(self, price_id: str) -> bool:
        """Return whether a price is one of this account, in this mode."""
        return self.find_price(price_id) is not None

    def find_price(self, price_id: str) -> Price | None:
        """Return a price, None when it is not one of this account, in this mode."""
        try:
            with refusals_in_words():
                return _price(self._v1.prices.retrieve(price_id))
        except SetupMissingError:
            return None

    def list_endpoints(self) -> list[Endpoint]:
        """Return all webhook endpoints, newest first."""
        with refusals_in_words():
            found = self._v1.webhook_endpoints.list({"limit": PAGE})
            return [_endpoint(endpoint) for endpoint in found.auto_paging_iter()]

    def make_endpoint(self, url: str) -> Endpoint:
        """Make an endpoint; the answer is the only one that holds its secret."""
        with refusals_in_words():
            made = self._v1.webhook_endpoints.create(
                {
                    "url": url,
                    "enabled_events": cast("Any", EVENTS),
                    "api_version": cast("Any", API_VERSION),
                    "metadata": NOTED,
                }
            )
        return _endpoint(made)

    def mend_endpoint(self, endpoint_id: str) -> Endpoint:
        """Have an endpoint get the events that are needed, also if it was disabled."""
        with refusals_in_words():
            wanted = {"enabled_events": EVENTS, "disabled": False}
            changed = self._v1.webhook_endpoints.update(endpoint_id, cast("Any", wanted))
        return _endpoint(changed)


def _is_ours(metadata: Any) -> bool:
    return bool(metadata) and all(name in metadata and metadata[name] == value for name, value in NOTED.items())


def _price(found: Any) -> Price:
    recurring, terms = found.recurring, None
    if recurring and recurring.interval_count == 1 and found.unit_amount is not None:
        terms = Terms(found.unit_amount, found.currency, recurring.interval)
    return Price(found.id, terms, found.active, found.lookup_key == LOOKUP_KEY)


def _endpoint(found: Any) -> Endpoint:
    return Endpoint(
        id=found.id,
        url=found.url,
        is_enabled=found.status == "enabled",
        is_ours=_is_ours(found.metadata),
        events=frozenset(found.enabled_events),
        api_version=found.api_version,
        secret=getattr(found, "secret", None),
    )
