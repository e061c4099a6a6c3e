"""`flask billing setup`, in an account of Stripe's of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, get_args

import pytest
import stripe as sdk
from click.testing import Result
from flask import Flask
from stripe.params import WebhookEndpointCreateParams

from chatapi.dev.embedded import free_port
from chatapi.dev.stripe.faults import Fault
from chatapi.dev.stripe.standin import StripeStandin
from chatapi.subscriptions.gateway import API_VERSION
from chatapi.subscriptions.gateway_setup import EVENTS
from chatapi.subscriptions.webhook import WATCHED
from config import ROOT
from tests.support import Account, stripe_client

PUBLIC_URL = "https://api.chat.example"
ENDPOINT_URL = f"{PUBLIC_URL}/webhook/stripe"


@pytest.fixture
def shop() -> Iterator[StripeStandin]:
    """An account in which nothing was made yet."""
    with StripeStandin() as standin:
        yield standin


@pytest.fixture
def set_up(make_app: Callable[..., Flask], shop: StripeStandin) -> Callable[..., Result]:
    """Return what runs the command, with options and some settings changed."""

    def run(*options: str, **changes: str) -> Result:
        settings = {"STRIPE_API_BASE": shop.url, "PUBLIC_URL": PUBLIC_URL, "STRIPE_PRICE_ID": ""}
        app = make_app(**{**settings, "STRIPE_WEBHOOK_SECRET": "", **changes})
        return app.test_cli_runner().invoke(args=["billing", "setup", *options])

    return run


def done(result: Result) -> dict[str, Any]:
    """Return what the command says with --json, once it has succeeded."""
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def environ_of(result: Result) -> dict[str, str]:
    assert result.exit_code == 0, result.output
    return dict(line.split("=", 1) for line in result.stdout.splitlines())


def endpoints(shop: StripeStandin) -> list[Any]:
    return list(stripe_client(shop).v1.webhook_endpoints.list())


def prices(shop: StripeStandin) -> list[Any]:
    return list(stripe_client(shop).v1.prices.list())


def test_setup_makes_product_price_and_endpoint_and_prints_what_to_set(
    set_up: Callable[..., Result], shop: StripeStandin
) -> None:
    found = environ_of(set_up())

    (product,) = stripe_client(shop).v1.products.list()
    (price,) = prices(shop)
    (endpoint,) = endpoints(shop)
    assert (product.name, product.metadata["app"]) == ("Pro", "chatapi")
    assert (price.product, price.unit_amount, price.currency) == (product.id, 900, "usd")
    assert (price.recurring.interval, price.recurring.interval_count) == ("month", 1)
    assert (endpoint.url, endpoint.api_version, endpoint.metadata["app"]) == (ENDPOINT_URL, sdk.api_version, "chatapi")
    assert sorted(endpoint.enabled_events) == sorted(EVENTS)
    secret = shop.account.private[endpoint.id]["secrets"][0]
    assert found == {"STRIPE_PRICE_ID": price.id, "STRIPE_WEBHOOK_SECRET": secret}


def test_setup_sells_what_it_made_and_believes_its_endpoint(
    set_up: Callable[..., Result],
    make_app: Callable[..., Flask],
    shop: StripeStandin,
    sign_in: Callable[..., Account],
) -> None:
    app = make_app(STRIPE_API_BASE=shop.url, **environ_of(set_up()))
    account = sign_in(via=app.test_client())

    session_id = account.call("POST", "/subscribe/pro").get_json()["session_id"]
    subscription = shop.pay(session_id)["subscription"]

    (event,) = shop.events("checkout.session.completed")
    payload = json.dumps(event).encode()
    answer = app.test_client().post("/webhook/stripe", data=payload, headers={"Stripe-Signature": shop.sign(payload)})
    assert answer.get_json() == {"received": True}
    status = account.call("GET", "/subscription/status").get_json()["subscription"]
    assert (status["tier"], status["stripe_subscription_id"]) == ("pro", subscription)
    assert account.call("DELETE", "/user/me").status_code == 204  # At the Stripe of other tests they are nobody.


def test_setup_makes_nothing_the_second_time(set_up: Callable[..., Result], shop: StripeStandin) -> None:
    first = environ_of(set_up())
    secret = first.pop("STRIPE_WEBHOOK_SECRET")
    shop.forget_requests()

    again = set_up(STRIPE_WEBHOOK_SECRET=secret, **first)
    unset = set_up()

    assert environ_of(again) == environ_of(unset) == first
    assert {request.method for request in shop.requests} == {"GET"}
    assert "Its secret stays what it is" in again.stderr
    assert "Its secret cannot be read from here" in unset.stderr


def test_setup_takes_terms_and_name(set_up: Callable[..., Result], shop: StripeStandin) -> None:
    done(set_up("--amount", "9900", "--currency", "EUR", "--interval", "year", "--name", "Chat Pro", "--json"))

    (price,) = prices(shop)
    assert (price.unit_amount, price.currency, price.recurring.interval) == (9900, "eur", "year")
    assert [product.name for product in stripe_client(shop).v1.products.list()] == ["Chat Pro"]


def test_setup_changes_only_what_it_is_told_to(set_up: Callable[..., Result], shop: StripeStandin) -> None:
    first = done(set_up("--amount", "1500", "--currency", "eur", "--name", "Chat Pro", "--json"))

    unchanged = done(set_up("--json"))
    yearly = done(set_up("--interval", "year", "--json"))

    assert unchanged["price"] == first["price"]
    assert yearly["price"]["terms"] == {"amount": 1500, "currency": "eur", "interval": "year"}
    assert yearly["product"] == first["product"]


def test_setup_with_another_amount_makes_a_price_and_honours_the_old_one(
    set_up: Callable[..., Result], shop: StripeStandin
) -> None:
    old = environ_of(set_up())["STRIPE_PRICE_ID"]

    result = set_up("--amount", "1200", STRIPE_PRICE_ID=old)

    new, honoured = environ_of(result)["STRIPE_PRICE_ID"].split(",")
    assert honoured == old
    assert {price.id: price.unit_amount for price in prices(shop)} == {new: 1200, old: 900}
    assert {price.id: price.lookup_key for price in prices(shop)} == {new: "chatapi_pro", old: None}
    assert "Whoever pays another price goes on with it" in result.stderr


def test_setup_sells_an_earlier_price_again_when_its_terms_are_wanted(
    set_up: Callable[..., Result], shop: StripeStandin
) -> None:
    first = environ_of(set_up())["STRIPE_PRICE_ID"]
    second, _ = environ_of(set_up("--amount", "1200"))["STRIPE_PRICE_ID"].split(",")

    found = environ_of(set_up("--amount", "900"))["STRIPE_PRICE_ID"].split(",")

    assert found == [first, second]
    assert len(prices(shop)) == 2
    assert {price.id: price.lookup_key for price in prices(shop)} == {first: "chatapi_pro", second: None}


def test_setup_sells_no_price_that_was_archived(set_up: Callable[..., Result], shop: StripeStandin) -> None:
    archived = environ_of(set_up())["STRIPE_PRICE_ID"]
    stripe_client(shop).v1.prices.update(archived, {"active": False})

    new, honoured = environ_of(set_up())["STRIPE_PRICE_ID"].split(",")

    assert honoured == archived
    assert new != archived


def test_setup_keeps_configured_prices_of_its_account(set_up: Callable[..., Result], shop: StripeStandin) -> None:
    v1 = stripe_client(shop).v1
    product = v1.products.create({"name": "Made by hand"})
    by_hand = v1.prices.create(
        {"product": product.id, "currency": "usd", "unit_amount": 700, "recurring": {"interval": "month"}}
    )

    found = environ_of(set_up(STRIPE_PRICE_ID=f"{by_hand.id},price_of_live_mode"))["STRIPE_PRICE_ID"].split(",")

    assert len(found) == 2
    assert found[1] == by_hand.id
    assert v1.prices.retrieve(found[0]).product != product.id


def test_setup_with_a_new_secret_makes_an_endpoint_beside_the_old_one(
    set_up: Callable[..., Result], shop: StripeStandin
) -> None:
    old_secret = environ_of(set_up())["STRIPE_WEBHOOK_SECRET"]
    (old,) = endpoints(shop)

    result = set_up("--new-secret", STRIPE_WEBHOOK_SECRET=old_secret)

    new = next(endpoint for endpoint in endpoints(shop) if endpoint.id != old.id)
    assert new.url == old.url
    secret = shop.account.private[new.id]["secrets"][0]
    assert environ_of(result)["STRIPE_WEBHOOK_SECRET"] == f"{secret},{old_secret}"
    assert f"curl -X DELETE -u $STRIPE_SECRET_KEY: {shop.url}/v1/webhook_endpoints/{old.id}`" in result.stderr


def test_setup_mends_an_endpoint_that_is_disabled_or_lacks_events(
    set_up: Callable[..., Result], shop: StripeStandin
) -> None:
    v1 = stripe_client(shop).v1
    made = v1.webhook_endpoints.create({"url": ENDPOINT_URL, "enabled_events": ["invoice.paid"]})
    v1.webhook_endpoints.update(made.id, {"disabled": True})

    result = set_up()

    (endpoint,) = endpoints(shop)
    assert (endpoint.id, endpoint.status) == (made.id, "enabled")
    assert sorted(endpoint.enabled_events) == sorted(EVENTS)
    assert f"--new-secret makes one with {API_VERSION}" in result.stderr
    assert "STRIPE_WEBHOOK_SECRET" not in environ_of(result)


def test_setup_leaves_an_endpoint_that_gets_everything(set_up: Callable[..., Result], shop: StripeStandin) -> None:
    stripe_client(shop).v1.webhook_endpoints.create({"url": ENDPOINT_URL, "enabled_events": ["*"]})

    set_up()

    assert [endpoint.enabled_events for endpoint in endpoints(shop)] == [["*"]]


def test_setup_tells_of_its_endpoint_at_another_address(set_up: Callable[..., Result], shop: StripeStandin) -> None:
    set_up(PUBLIC_URL="https://old.chat.example/")
    (old,) = endpoints(shop)
    stripe_client(shop).v1.webhook_endpoints.create({"url": "https://other.example/hook", "enabled_events": ["*"]})

    result = set_up()

    assert f"There is also {old.id} at https://old.chat.example/webhook/stripe" in result.stderr
    assert "other.example" not in result.stderr


@pytest.mark.parametrize(
    "public_url",
    [
        "http://localhost:5000",
        "http://127.0.0.1:5000",
        "http://192.168.1.4",
        "https://[::1]",
        "http://chat",
        "https://x.local",
    ],
)
def test_setup_makes_no_endpoint_where_stripe_cannot_reach_it(
    set_up: Callable[..., Result], shop: StripeStandin, public_url: str
) -> None:
    result = set_up(PUBLIC_URL=public_url, PORT="5001")

    assert environ_of(result) == {"STRIPE_PRICE_ID": prices(shop)[0].id}
    assert endpoints(shop) == []
    assert "`stripe listen --forward-to localhost:5001/webhook/stripe`" in result.stderr


@pytest.mark.parametrize("key", ["sk_live_suite", "rk_live_suite"])
def test_setup_wants_https_in_live_mode_alone(
    make_app: Callable[..., Flask], set_up: Callable[..., Result], key: str
) -> None:
    address = "http://api.chat.example"
    with StripeStandin(livemode=True) as live:
        app = make_app(STRIPE_API_BASE=live.url, STRIPE_SECRET_KEY=key, PUBLIC_URL=address)

        result = app.test_cli_runner().invoke(args=["billing", "setup"])

        assert result.exit_code == 0, result.output
        assert live.account.all_of("webhook_endpoint") == []
    assert "In live mode" in result.stderr
    assert "PUBLIC_URL is not https, which live mode wants." in result.stderr
    assert "STRIPE_WEBHOOK_SECRET" in environ_of(set_up(PUBLIC_URL=address))


@pytest.mark.parametrize("name", ["STRIPE_SECRET_KEY", "PUBLIC_URL"])
def test_setup_is_refused_without_key_or_address(set_up: Callable[..., Result], shop: StripeStandin, name: str) -> None:
    result = set_up(**{name: ""})

    assert result.exit_code == 1
    assert f"Error: {name} is not set: " in result.stderr
    assert shop.requests == []


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("401", "Stripe does not take STRIPE_SECRET_KEY: "),
        ("403", "STRIPE_SECRET_KEY may not do all of this: "),
        ("400", "Stripe refuses: "),
        ("500", "Stripe refuses: "),
    ],
)
def test_setup_ends_in_a_sentence_when_stripe_refuses(
    set_up: Callable[..., Result], shop: StripeStandin, kind: str, said: str
) -> None:
    shop.add_fault(Fault(kind))

    result = set_up()

    assert result.exit_code == 1
    assert f"Error: {said}" in result.stderr
    assert (result.stdout, "Traceback" in result.stderr) == ("", False)


def test_setup_ends_in_a_sentence_when_stripe_is_away(set_up: Callable[..., Result]) -> None:
    result = set_up(STRIPE_API_BASE=f"http://127.0.0.1:{free_port()}")

    assert result.exit_code == 1
    assert "Error: Stripe cannot be reached (APIConnectionError)." in result.stderr


def test_setup_with_a_key_that_is_none_says_so_before_flask_misses_the_command() -> None:
    environ = {"PATH": os.environ["PATH"], "FLASK_APP": "wsgi", "APP_ENV": "development", "PUBLIC_URL": PUBLIC_URL}

    done = subprocess.run(
        [sys.executable, "-m", "flask", "billing", "setup"],
        cwd=ROOT,
        env={**environ, "STRIPE_SECRET_KEY": "pk_test_published"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode != 0
    assert "- STRIPE_SECRET_KEY must begin with sk_test_, " in done.stderr
    assert "The service's own commands are there once that is put right." in done.stderr
    assert "Traceback" not in done.stderr


def test_setup_needs_nothing_but_key_and_address(shop: StripeStandin) -> None:
    environ = {
        "PATH": os.environ["PATH"],
        "FLASK_APP": "wsgi",
        "APP_ENV": "development",
        "STRIPE_SECRET_KEY": "sk_test_suite",
        "STRIPE_API_BASE": shop.url,
        "PUBLIC_URL": PUBLIC_URL,
        "DATABASE_URL": f"postgresql://nobody@127.0.0.1:{free_port()}/none",
        "REDIS_URL": f"redis://127.0.0.1:{free_port()}",
    }

    output = subprocess.check_output(
        [sys.executable, "-m", "flask", "billing", "setup"], cwd=ROOT, env=environ, text=True, stderr=subprocess.DEVNULL
    )

    assert [line.split("=")[0] for line in output.splitlines()] == ["STRIPE_PRICE_ID", "STRIPE_WEBHOOK_SECRET"]


def test_events_asked_for_are_known_to_stripe_and_watched_here() -> None:
    (known,) = get_args(WebhookEndpointCreateParams.__annotations__["enabled_events"])

    assert set(EVENTS) <= set(get_args(known))
    assert all(event.startswith(WATCHED) for event in EVENTS)
    assert all(any(event.startswith(prefix) for event in EVENTS) for prefix in WATCHED)
