"""When the runner starts a stand-in for Stripe, and what is in it."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

import config
from config_billing import is_configured
from tests.dev.run_support import Run, stripe_of


def test_run_starts_a_stand_in_for_stripe_with_something_to_sell(start: Callable[..., Run]) -> None:
    run = start(STRIPE_API_BASE="")
    run.wait_ready()

    assert run.output.read_text().splitlines()[0].endswith("; Stripe is a stand-in)")
    services = run.services()
    price = stripe_of(run).v1.prices.retrieve(services["STRIPE_PRICE_ID"] or "")
    assert (price.active, price.unit_amount, price.currency) == (True, 900, "usd")
    assert services["FRONTEND_URL"] == f"{services['STRIPE_API_BASE']}/frontend"
    assert services["STAND_INS"] == "Stripe"
    settings = config.load_settings(
        {"APP_ENV": "development", **{name: value or "" for name, value in services.items()}}
    )
    assert is_configured(settings)
    (endpoint,) = stripe_of(run).v1.webhook_endpoints.list()
    assert endpoint.url == f"http://127.0.0.1:{run.port}/webhook/stripe"


def test_run_has_stripes_stand_in_sign_with_the_secret_that_the_service_knows(start: Callable[..., Run]) -> None:
    run = start(STRIPE_API_BASE="")
    run.wait_ready()

    state = json.loads((run.data_dir / "stripe.json").read_text())

    secrets = [private["secrets"] for private in state["private"].values() if "secrets" in private]
    assert secrets == [[run.services()["STRIPE_WEBHOOK_SECRET"]]]


@pytest.mark.slow
def test_second_run_keeps_stripes_customers_and_its_one_endpoint(start: Callable[..., Run]) -> None:
    run = start(STRIPE_API_BASE="")
    run.wait_ready()
    customer = stripe_of(run).v1.customers.create({"email": "ada@example.com"})
    secret = run.services()["STRIPE_WEBHOOK_SECRET"]
    for name in ("stripe_webhook_secret", "stripe.json"):
        assert (run.data_dir / name).stat().st_mode & 0o777 == 0o600
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(30) == 0

    again = start(STRIPE_API_BASE="")
    again.wait_ready()

    assert stripe_of(again).v1.customers.retrieve(customer.id).email == "ada@example.com"
    assert again.services()["STRIPE_WEBHOOK_SECRET"] == secret
    (endpoint,) = stripe_of(again).v1.webhook_endpoints.list()
    assert endpoint.url == f"http://127.0.0.1:{again.port}/webhook/stripe"
    assert len(list(stripe_of(again).v1.prices.list())) == 1


@pytest.mark.slow
def test_run_starts_no_stand_in_for_stripe_when_there_is_a_key(start: Callable[..., Run]) -> None:
    run = start(STRIPE_API_BASE="", STRIPE_SECRET_KEY="sk_test_somebody")
    run.wait_ready()

    assert "stand-in" not in run.output.read_text()
    assert set(run.services()) == {"PORT", "DATABASE_URL", "REDIS_URL"}


@pytest.mark.parametrize("name", ["STRIPE_SECRET_KEY", "STRIPE_API_BASE"])
def test_flask_commands_with_a_stripe_of_their_own_take_nothing_of_the_stand_ins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(config, "DATA_DIR", tmp_path)
    monkeypatch.setenv("APP_ENV", "development")
    services = "REDIS_URL='redis://there'\nSTRIPE_SECRET_KEY='sk_test_stand_in'\nSTRIPE_API_BASE='http://here'\n"
    (tmp_path / "services.env").write_text(services)
    for each in ("REDIS_URL", "STRIPE_SECRET_KEY", "STRIPE_API_BASE"):
        monkeypatch.delenv(each, raising=False)
    both = config.load_environment()
    monkeypatch.setenv(name, "mine")

    found = config.load_environment()

    assert (both["STRIPE_SECRET_KEY"], both["STRIPE_API_BASE"]) == ("sk_test_stand_in", "http://here")
    assert {each for each in found if each.startswith("STRIPE_")} == {name}
    assert found["REDIS_URL"] == "redis://there"


@pytest.mark.slow
def test_run_sends_people_to_their_own_front_end_when_there_is_one(start: Callable[..., Run]) -> None:
    run = start(STRIPE_API_BASE="", FRONTEND_URL="http://localhost:3000")
    run.wait_ready()

    assert run.services()["FRONTEND_URL"] == "http://localhost:3000"
