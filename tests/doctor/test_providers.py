"""What the doctor says of Gemini, Stripe, the delivery of codes and the host, with the thing wrong."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from chatapi.dev.embedded import free_port
from chatapi.dev.stripe.faults import Fault
from chatapi.dev.stripe.standin import StripeStandin
from chatapi.doctor.billing import check_stripe
from chatapi.doctor.findings import Finding
from chatapi.doctor.gemini import check_gemini
from chatapi.doctor.host import check_delivery, check_host
from chatapi.doctor.settings import check_settings
from chatapi.subscriptions.gateway_setup import EVENTS
from tests.doctor.support import WEBHOOK_URL, Read, named
from tests.support import STRIPE_KEY, make_price, stripe_client


def test_doctor_says_which_models_gemini_has(read: Read) -> None:
    models = [
        {"alias": "good", "model": "gemini-a", "fallback": ["gone-1"]},
        {"alias": "saved", "model": "unknown-a", "fallback": ["gemini-b"]},
        {"alias": "lost", "model": "unknown-b", "tiers": ["pro"]},
        {"alias": "mute", "model": "embedding-a"},
        {"alias": "long", "model": "gemini-c", "context_tokens": 2_000_000},
    ]

    found = list(check_gemini(read(GEMINI_MODELS=json.dumps(models))))

    assert [(each.name, each.state) for each in found] == [
        ("gemini", "ok"),
        ("model good", "ok"),
        ("model good", "warning"),
        ("model saved", "warning"),
        ("model lost", "failed"),
        ("model mute", "failed"),
        ("model long", "warning"),
    ]
    assert "until then gemini-b answers" in (found[3].advice or "")


def test_doctor_says_that_gemini_refuses_the_key(read: Read) -> None:
    (found,) = check_gemini(read(GEMINI_API_KEY="invalid-one"))

    assert found.state == "failed"
    assert "refuses the key (400 API_KEY_INVALID)" in found.found


def test_doctor_says_that_gemini_is_away_or_somebody_else(read: Read, stripe: StripeStandin) -> None:
    (away,) = check_gemini(read(GEMINI_API_ENDPOINT=f"http://127.0.0.1:{free_port()}"))
    (other,) = check_gemini(read(GEMINI_API_ENDPOINT=stripe.url))

    assert (away.state, other.state) == ("failed", "failed")
    assert "cannot be reached" in away.found
    assert other.found.startswith(stripe.url.removeprefix("http://"))


@pytest.fixture
def shop() -> Iterator[StripeStandin]:
    """An account of Stripe's of its own."""
    with StripeStandin() as shop:
        yield shop


def at(shop: StripeStandin, **changes: str) -> dict[str, str]:
    return {"STRIPE_API_BASE": shop.url, "STRIPE_SECRET_KEY": STRIPE_KEY, **changes}


def test_doctor_says_what_is_wrong_with_the_price(read: Read, shop: StripeStandin) -> None:
    sold, gone = make_price(shop), make_price(shop)
    quarterly = make_price(shop, recurring={"interval": "month", "interval_count": 3})
    archived = make_price(shop)
    stripe_client(shop).v1.prices.update(archived, {"active": False})

    def state_of(*price_ids: str) -> list[str]:
        found = check_stripe(read(**at(shop, STRIPE_PRICE_ID=",".join(price_ids))))
        return [each.state for each in found if each.name.startswith("price ")]

    assert state_of(sold, gone) == ["ok", "ok"]
    assert state_of(archived, sold) == ["failed", "ok"]
    assert state_of("price_nobodys") == ["failed"]
    assert state_of(sold, "price_nobodys", archived) == ["ok", "warning", "ok"]
    assert state_of(quarterly) == ["warning"]


def test_doctor_says_what_is_wrong_with_the_webhook(read: Read, shop: StripeStandin) -> None:
    settings, endpoints = read(**at(shop, STRIPE_PRICE_ID=make_price(shop))), stripe_client(shop).v1.webhook_endpoints

    def found() -> Finding:
        return named(check_stripe(settings), "stripe webhook")

    assert found().state == "failed"
    endpoint = endpoints.create({"url": WEBHOOK_URL, "enabled_events": ["invoice.paid"]})
    assert "is not sent checkout.session.completed" in found().found
    endpoints.update(endpoint.id, {"enabled_events": list(EVENTS)})  # type: ignore[typeddict-item]
    assert found().state in ("ok", "warning")  # A warning where it has another API version.
    endpoints.update(endpoint.id, {"disabled": True})
    assert found().found == f"{endpoint.id} is disabled"


@pytest.mark.parametrize("kind", ["401", "403", "500"])
def test_doctor_says_that_stripe_refuses(read: Read, shop: StripeStandin, kind: str) -> None:
    settings = read(**at(shop, STRIPE_PRICE_ID=make_price(shop)))
    shop.add_fault(Fault(kind))

    (found,) = check_stripe(settings)

    assert found.state == ("warning" if kind == "403" else "failed")


def test_doctor_says_that_stripe_is_away_or_in_part_configured(read: Read) -> None:
    (away,) = check_stripe(read(STRIPE_API_BASE=f"http://127.0.0.1:{free_port()}"))
    in_part = list(check_stripe(read(STRIPE_WEBHOOK_SECRET="")))
    (nothing,) = check_stripe(read(STRIPE_SECRET_KEY="", STRIPE_WEBHOOK_SECRET="", STRIPE_PRICE_ID=""))

    assert (away.state, away.found) == ("failed", "Stripe cannot be reached (APIConnectionError)")
    assert "STRIPE_WEBHOOK_SECRET not set" in in_part[0].found
    assert nothing.state == "skipped"


def test_doctor_says_that_codes_cannot_leave(read: Read) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gateway:
        url = f"http://127.0.0.1:{gateway.getsockname()[1]}/send"
        (there,) = check_delivery(read(OTP_WEBHOOK_URL=url))
    (away,) = check_delivery(read(OTP_WEBHOOK_URL=url))
    (unknown,) = check_delivery(read(OTP_WEBHOOK_URL="https://sms.invalid/send"))

    assert (there.state, away.state, unknown.state) == ("ok", "failed", "failed")


def test_doctor_says_that_the_log_cannot_be_written(read: Read, tmp_path: Any) -> None:
    (tmp_path / "file").touch()

    good = named(check_host(read(LOG_DIR=str(tmp_path / "logs" / "chatapi"))), "log files")
    bad = named(check_host(read(LOG_DIR=str(tmp_path / "file" / "logs"))), "log files")

    assert (good.state, bad.state) == ("ok", "skipped")
    assert any(each.name == "LOG_DIR" for each in check_settings(read(LOG_DIR=str(tmp_path / "file" / "logs"))))
