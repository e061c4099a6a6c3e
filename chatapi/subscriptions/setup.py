"""Setting billing up at Stripe: what is there is found and used again, what is missing is made."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlsplit

from chatapi.parsing import WEBHOOK_PATH
from chatapi.subscriptions.gateway import API_VERSION
from chatapi.subscriptions.gateway_setup import (
    EVENTS,
    Endpoint,
    Price,
    Product,
    SetupGateway,
    Terms,
)
from config_billing import is_live

FIRST_TERMS = Terms(900, "usd", "month")
FIRST_NAME = "Pro"
STRIPE_ITSELF = "https://api.stripe.com"


class NotReadyError(Exception):
    """A setting is missing without which nothing can be set up; the message says which."""


@dataclass(frozen=True)
class Wishes:
    """What an operator asked for; None where it is to stay as it is."""

    amount: int | None = None
    currency: str | None = None
    interval: str | None = None
    name: str | None = None
    wants_secret: bool = False

    def terms(self, sold: Terms) -> Terms:
        """Return what is to be sold, where `sold` is until now."""
        currency = (self.currency or sold.currency).lower()
        return Terms(self.amount or sold.amount, currency, self.interval or sold.interval)


@dataclass
class Found:
    """What is at Stripe now. `environ` is what belongs into the environment, `notes` is for people."""

    mode: str
    product: Product
    price: Price
    endpoint: Endpoint | None = None
    environ: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return it in values that JSON has. Secrets are in `environ` alone."""
        endpoint = self.endpoint and {"id": self.endpoint.id, "url": self.endpoint.url}
        own = {"mode": self.mode, "product": asdict(self.product), "price": asdict(self.price)}
        return {**own, "endpoint": endpoint, "environ": self.environ, "notes": self.notes}


def mode_of(secret_key: str) -> str:
    """Return what Stripe calls the world in which a key is good."""
    return "live" if is_live(secret_key) else "test"


def set_up(config: Mapping[str, Any], wishes: Wishes) -> Found:
    """Find or make product, price and endpoint. Safe to run again.

    Raises `NotReadyError`, `SetupRefusedError`.
    """
    for name in ("STRIPE_SECRET_KEY", "PUBLIC_URL"):
        if not config[name]:
            raise NotReadyError(f"{name} is not set: {_WHAT_FOR[name]}")
    stripe = SetupGateway(config["STRIPE_SECRET_KEY"], config["STRIPE_API_BASE"])
    notes = [_place(config)]
    product = _product(stripe, wishes, notes)
    prices = stripe.list_prices(product.id)
    price = _price(stripe, product, prices, wishes, notes)
    found = Found(mode_of(config["STRIPE_SECRET_KEY"]), product, price, notes=notes)
    found.environ["STRIPE_PRICE_ID"] = ",".join(_honoured(stripe, price, prices, config["STRIPE_PRICE_ID"]))
    _endpoint(stripe, config, wishes, found)
    return found


_WHAT_FOR = {
    "STRIPE_SECRET_KEY": "it says in which account, and whether in test or live mode.",
    "PUBLIC_URL": "it says where Stripe is to send its events, such as https://api.example.com.",
}


def _place(config: Mapping[str, Any]) -> str:
    base = config["STRIPE_API_BASE"].rstrip("/")
    where = "" if base == STRIPE_ITSELF else f", at {base}, which is not Stripe itself"
    return f"In {mode_of(config['STRIPE_SECRET_KEY'])} mode{where}."


def _product(stripe: SetupGateway, wishes: Wishes, notes: list[str]) -> Product:
    product = stripe.find_product()
    if product is None:
        product = stripe.make_product(wishes.name or FIRST_NAME)
        notes.append(f"Made the product {product.name}, {product.id}.")
    elif wishes.name not in (None, product.name):
        product = stripe.rename_product(product.id, wishes.name or product.name)
        notes.append(f"The product {product.id} is called {product.name} now.")
    else:
        notes.append(f"The product {product.name}, {product.id}, is there.")
    return product


def _price(stripe: SetupGateway, product: Product, prices: list[Price], wishes: Wishes, notes: list[str]) -> Price:
    """Return the price that is to be sold: a price's terms cannot be changed, so others are another price."""
    sold = next((price.terms for price in prices if price.is_sold and price.terms), FIRST_TERMS)
    terms = wishes.terms(sold)
    fitting = [price for price in prices if price.is_active and price.terms == terms]
    price = next((price for price in fitting if price.is_sold), None)
    what = f"{terms.amount} {terms.currency} (in its smallest unit) every {terms.interval}"
    if price is not None:
        notes.append(f"The price of {what}, {price.id}, is there.")
        return price
    price = stripe.sell_price(fitting[0].id) if fitting else stripe.make_price(product.id, terms)
    notes.append(f"The price of {what}, {price.id}, is {'sold again' if fitting else 'made'}.")
    if any(other.is_sold for other in prices):
        notes.append("Whoever pays another price goes on with it: leave its id in STRIPE_PRICE_ID, after the comma.")
    return price


def _honoured(stripe: SetupGateway, price: Price, prices: list[Price], configured: tuple[str, ...]) -> list[str]:
    """Return the price that is sold, and after it those that give Pro as well: earlier ones, and those configured."""
    own = [price.id, *(other.id for other in prices)]
    # Test mode and live mode do not know each other's prices.
    return list(dict.fromkeys([*own, *(other for other in configured if other in own or stripe.has_price(other))]))


def _endpoint(stripe: SetupGateway, config: Mapping[str, Any], wishes: Wishes, found: Found) -> None:
    url = config["PUBLIC_URL"].rstrip("/") + WEBHOOK_PATH
    if because := _unreachable(url, is_live=found.mode == "live"):
        command = f"stripe listen --forward-to localhost:{config['PORT']}{WEBHOOK_PATH}"
        found.notes.append(f"No webhook endpoint was made: {because}")
        found.notes.append(f"Run `{command}` instead, and put the secret that it prints into STRIPE_WEBHOOK_SECRET.")
        return
    endpoints = stripe.list_endpoints()
    here = [endpoint for endpoint in endpoints if endpoint.url == url]
    if here and not wishes.wants_secret:
        found.endpoint = _mended(stripe, here, found.notes)
        found.notes.append(_on_its_secret(config))
    else:
        found.endpoint = stripe.make_endpoint(url)
        found.notes.append(f"Made the webhook endpoint {found.endpoint.id} at {url}. Stripe shows its secret only now.")
        earlier = config["STRIPE_WEBHOOK_SECRET"] if here else ()
        found.environ["STRIPE_WEBHOOK_SECRET"] = ",".join([found.endpoint.secret or "", *earlier])
    found.notes += [_on_rotation(endpoint, config) for endpoint in here if endpoint.id != found.endpoint.id]
    found.notes += [
        f"There is also {endpoint.id} at {endpoint.url}: delete it if nobody is there any more."
        for endpoint in endpoints
        if endpoint.is_ours and endpoint.url != url
    ]


def _unreachable(url: str, *, is_live: bool) -> str | None:
    """Return why Stripe cannot send anything to `url`, None as far as it can."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        is_public = ipaddress.ip_address(host).is_global
    except ValueError:
        is_public = "." in host and not host.endswith((".localhost", ".local", ".internal"))
    if not is_public:
        return f"PUBLIC_URL names {host}, which Stripe cannot reach."
    if is_live and parts.scheme != "https":
        return "PUBLIC_URL is not https, which live mode wants."
    return None


def _mended(stripe: SetupGateway, here: list[Endpoint], notes: list[str]) -> Endpoint:
    """Return the endpoint that is there, with the events that are needed."""
    endpoint = next((each for each in here if each.is_enabled), here[0])
    if endpoint.is_enabled and ("*" in endpoint.events or endpoint.events >= set(EVENTS)):
        notes.append(f"The webhook endpoint {endpoint.id} is there.")
    else:
        endpoint = stripe.mend_endpoint(endpoint.id)
        notes.append(f"The webhook endpoint {endpoint.id} is there, and gets the events now that are needed.")
    if endpoint.api_version != API_VERSION:
        notes.append(
            f"It sends events of the API version {endpoint.api_version or 'of the account'}, which cannot be changed;"
            f" --new-secret makes one with {API_VERSION}."
        )
    return endpoint


def _on_its_secret(config: Mapping[str, Any]) -> str:
    if config["STRIPE_WEBHOOK_SECRET"]:
        return "Its secret stays what it is: leave STRIPE_WEBHOOK_SECRET alone."
    return (
        "Its secret cannot be read from here: take it from Stripe's dashboard (Developers, Webhooks), or have"
        " --new-secret make another endpoint."
    )


def _on_rotation(endpoint: Endpoint, config: Mapping[str, Any]) -> str:
    path = f"{config['STRIPE_API_BASE'].rstrip('/')}/v1/webhook_endpoints/{endpoint.id}"
    return (
        f"{endpoint.id} is at the same address. Once every process knows the new secret, delete it in Stripe's"
        f" dashboard, or by `curl -X DELETE -u $STRIPE_SECRET_KEY: {path}`; then take its secret out of"
        " STRIPE_WEBHOOK_SECRET."
    )
