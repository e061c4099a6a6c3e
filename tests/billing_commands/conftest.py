"""The commands, Stripe from both sides, and events at any point of their life."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask

from chatapi.dev.stripe.standin import StripeStandin
from chatapi.ids import uuid7
from tests.billing_commands.support import Flasks
from tests.subscriptions.support import Billing


@pytest.fixture
def billing(app: Flask, stripe: StripeStandin) -> Billing:
    """Stripe from both sides, with no event left by other tests, and nothing to be ended."""
    billing = Billing(app, stripe)
    billing.rows("DELETE FROM stripe_events")
    billing.rows("UPDATE billing_closures SET due_at = NULL, confirmed_at = now()")
    return billing


@pytest.fixture
def flask(app: Flask, billing: Billing) -> Flasks:
    """Return what runs a `flask billing` command."""
    return lambda *arguments: app.test_cli_runner().invoke(args=["billing", *arguments])


@pytest.fixture
def store_event(billing: Billing) -> Callable[..., str]:
    """Return what stores an event as it is after some attempts; it returns Stripe's id of it."""

    def store_event(status: str, customer_id: str = "cus_nobody", age: str = "1 hour", **values: Any) -> str:
        event_id = f"evt_{uuid7().hex}"
        is_open = status in ("received", "retrying")
        billing.rows(
            "INSERT INTO stripe_events (id, event_id, type, customer_id, status, reason, attempts, due_at, not_before, "
            "    stripe_created_at, received_at, closed_at) "
            "VALUES (:id, :event_id, 'invoice.paid', :customer_id, :status, :reason, :attempts, "
            "    CASE WHEN :is_open THEN now() + interval '50 min' END, "
            "    CASE WHEN :is_open THEN now() + interval '50 min' END, now(), now() - CAST(:age AS interval), "
            "    CASE WHEN NOT :is_open THEN now() END)",
            id=uuid7(),
            event_id=event_id,
            customer_id=customer_id,
            status=status,
            age=age,
            **{"is_open": is_open, "reason": None, "attempts": 3, **values},
        )
        return event_id

    return store_event
