"""Stripe hangs, and what has nothing to do with it goes on: codes are delivered."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest
import redis
import requests

from chatapi.dev.stripe.faults import Fault
from tests.auth.support import Gateway
from tests.subscriptions.support import sign
from tests.support import wait_for
from tests.system.support import System

EVENTS = 40


@pytest.fixture(autouse=True)
def no_events(system: System) -> Iterator[None]:
    """Stripe's events are forgotten afterwards."""
    yield
    system.rows("DELETE FROM stripe_events WHERE due_at IS NOT NULL RETURNING id")


def tell(system: System) -> None:
    """Bring an event to the system, about a customer that it does not know and has to ask Stripe for."""
    event = {
        "object": "event",
        "id": f"evt_{uuid4().hex}",
        "type": "customer.deleted",
        "created": int(time.time()),
        "livemode": False,
        "data": {"object": {"object": "customer", "id": f"cus_{uuid4().hex}"}},
    }
    payload = json.dumps(event).encode()
    headers = {"Content-Type": "application/json", "Stripe-Signature": sign(payload)}
    url = f"http://127.0.0.1:{system.port}/webhook/stripe"
    assert requests.post(url, payload, headers=headers, timeout=10).json() == {"received": True}


@pytest.mark.slow
def test_code_is_delivered_within_seconds_while_stripe_hangs_and_its_events_wait(
    system: System, gateway: Gateway, new_number: Callable[[], str]
) -> None:
    stripe = system.services.stripe
    stripe.forget_requests()
    stripe.add_fault(Fault("hang"))
    for _ in range(EVENTS):
        tell(system)
    wait_for(lambda: len(stripe.requests) >= 4)  # All threads of the billing process.

    number = new_number()
    assert system.client.post("/auth/send-otp", json={"mobile_number": number}).status_code == 200

    wait_for(lambda: gateway.received, seconds=5)
    otp = json.loads(gateway.received[0][1])["otp"]
    verified = system.client.post("/auth/verify-otp", json={"mobile_number": number, "otp": otp})
    assert verified.status_code == 200
    with redis.Redis.from_url(system.services.valkey.url) as queue:
        assert queue.llen("{dramatiq}:billing") >= EVENTS - 8
