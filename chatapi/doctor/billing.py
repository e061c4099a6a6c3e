"""Stripe: is the key taken, can the price be sold, and do its events come here?"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from chatapi.doctor.findings import Finding, failed, ok, skipped, warning
from chatapi.doctor.settings import Settings
from chatapi.parsing import WEBHOOK_PATH
from chatapi.subscriptions.gateway import (
    API_VERSION,
    Patience,
    SetupForbiddenError,
    SetupRefusedError,
    SetupUnreachableError,
)
from chatapi.subscriptions.gateway_setup import EVENTS, Endpoint, Price, SetupGateway
from chatapi.subscriptions.setup import STRIPE_ITSELF, mode_of
from config_billing import BILLING_NAMES, is_live

NAME = "stripe"
SET_UP = "`flask billing setup` makes what is missing, and prints what to set."
RESTRICTED = "Give the key the right to read it, if you want it checked from here."


def check_stripe(settings: Settings) -> Iterator[Finding]:
    """Yield how the account of STRIPE_SECRET_KEY stands to what is configured."""
    key = settings["STRIPE_SECRET_KEY"]
    if not any(settings[name] for name in BILLING_NAMES) and not settings.has_fault("STRIPE_"):
        yield skipped(NAME, "not configured, so nothing is sold")
        return
    missing = [name for name in BILLING_NAMES if not settings[name]]
    if missing:
        yield warning(NAME, f"{', '.join(missing)} not set or at fault, so nothing is sold", SET_UP)
    if not key or not settings["STRIPE_API_BASE"]:
        return
    gateway = SetupGateway(key, settings["STRIPE_API_BASE"], Patience.REQUEST)
    try:
        prices = [(price_id, gateway.find_price(price_id)) for price_id in settings["STRIPE_PRICE_ID"] or ()]
        endpoints = gateway.list_endpoints()
    except SetupForbiddenError as error:
        yield warning(NAME, f"takes the key, but does not show all of this: {error}", RESTRICTED)
        return
    except SetupUnreachableError as error:
        yield failed(NAME, str(error).rstrip("."), "Is the way out open: DNS, a proxy, a firewall, STRIPE_API_BASE?")
        return
    except SetupRefusedError as error:
        advice = "Is STRIPE_SECRET_KEY right? The key is in the dashboard under Developers, API keys."
        yield failed(NAME, str(error).rstrip("."), advice)
        return
    yield _on_mode(settings, key)
    for place, (price_id, price) in enumerate(prices):
        yield _on_price(price_id, price, is_sold=place == 0)
    yield from _on_endpoints(settings, endpoints)


def _on_mode(settings: Settings, key: str) -> Finding:
    base = settings["STRIPE_API_BASE"].rstrip("/")
    place = "" if base == STRIPE_ITSELF else f" of {urlsplit(base).netloc.rpartition('@')[2]}, which is not Stripe"
    found = f"takes the key, in {mode_of(key)} mode{place}"
    if settings.is_production and place:
        return warning(NAME, found, "Leave STRIPE_API_BASE away to sell.")
    if settings.is_production and not is_live(key):
        return warning(NAME, found, "Nobody is charged in test mode: set a live key, price and secret to sell.")
    if not settings.is_production and is_live(key):
        return warning(NAME, found, "Real cards are charged in live mode: use a test key in development.")
    return ok(NAME, found)


def _on_price(price_id: str, price: Price | None, *, is_sold: bool) -> Finding:
    name, tell = f"price {price_id}", failed if is_sold else warning
    if price is None:
        return tell(name, "there is no such price in this account and mode", SET_UP)
    if not is_sold:
        return ok(name, "no longer sold, and still gives Pro to whoever pays it")
    if not price.is_active:
        advice = "Make it active again in the dashboard, or put another one before it in STRIPE_PRICE_ID."
        return failed(name, "archived, so no checkout can be opened", advice)
    if price.terms is None:
        advice = "Put one that is paid every month or year first: " + SET_UP
        return warning(name, "not paid once a month or a year, as subscriptions here are", advice)
    terms = price.terms
    return ok(name, f"{terms.amount} {terms.currency} (in its smallest unit) every {terms.interval}")


def _on_endpoints(settings: Settings, endpoints: list[Endpoint]) -> Iterator[Finding]:
    name, url = "stripe webhook", settings["PUBLIC_URL"] and settings["PUBLIC_URL"].rstrip("/") + WEBHOOK_PATH
    here = [each for each in endpoints if each.url == url or (not url and urlsplit(each.url).path == WEBHOOK_PATH)]
    if not here:
        tell = failed if settings.is_production else warning
        where = url or f"any {WEBHOOK_PATH}"
        advice = "Paid subscriptions would be noticed within the hour only. " + SET_UP
        yield tell(name, f"Stripe has no endpoint at {where}", advice)
        return
    enabled = [each for each in here if each.is_enabled]
    if not enabled:
        yield failed(
            name, f"{here[0].id} is disabled", "Enable it in the dashboard; `flask billing setup` does it too."
        )
        return
    yield _on_endpoint(name, enabled[0])


def _on_endpoint(name: str, endpoint: Endpoint) -> Finding:
    missing = [event for event in EVENTS if not any(fnmatchcase(event, pattern) for pattern in endpoint.events)]
    if missing:
        advice = "Let it have these events too; `flask billing setup` does it."
        return failed(name, f"{endpoint.id} at {endpoint.url} is not sent {', '.join(missing)}", advice)
    if endpoint.api_version not in (API_VERSION, None):
        advice = f"If events are not understood: `flask billing setup --new-secret` makes one with {API_VERSION}."
        found = f"{endpoint.id} at {endpoint.url} sends API version {endpoint.api_version}"
        return warning(name, found, advice)
    return ok(name, f"{endpoint.id} at {endpoint.url}")
