"""Stripe seen from both sides: what is done there, and what the application is told of it and does."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterable
from datetime import timedelta
from itertools import takewhile
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import text
from stripe import WebhookSignature
from werkzeug.test import TestResponse

from chatapi.dev.stripe.standin import StripeStandin
from chatapi.extensions import db
from chatapi.subscriptions.closures import end_customer
from chatapi.subscriptions.events import handle_event
from tests.support import WEBHOOK_SECRET, Account

Json = dict[str, Any]


class Billing:
    """What happens at Stripe's stand-in, and what comes of it in the application, step by step."""

    def __init__(self, app: Flask, stripe: StripeStandin) -> None:
        self.app = app
        self.stripe = stripe
        # Not `news`, which copies what it returns: of all that earlier tests did, that takes a second.
        with stripe.account.changing():
            self._last_told = next((event["id"] for event in reversed(stripe.account.all_of("event"))), "")
        # What earlier tests have left open is not looked at again.
        self.rows("UPDATE stripe_events SET due_at = NULL, status = 'ignored' WHERE due_at IS NOT NULL")
        self.rows("UPDATE billing_closures SET due_at = NULL WHERE due_at IS NOT NULL")

    @property
    def price_id(self) -> str:
        price_id: str = self.app.config["STRIPE_PRICE_ID"][0]
        return price_id

    def check_out(self, account: Account) -> str:
        """Begin to pay; return the session's id."""
        answer = account.call("POST", "/subscribe/pro")
        assert answer.status_code == 200, answer.get_json()
        session_id: str = answer.get_json()["session_id"]
        return session_id

    def subscribe(self, account: Account) -> str:
        """Pay, and have the application know of it; return the subscription's id."""
        session = self.stripe.pay(self.check_out(account))
        self.tell_all()
        self.work()
        assert tier_of(account) == "pro"
        subscription_id: str = session["subscription"]
        return subscription_id

    def customer_of(self, account: Account) -> str:
        found = self.rows("SELECT stripe_customer_id FROM billing_customers WHERE user_id = :id", id=account.id)
        customer_id: str = found[0].stripe_customer_id
        return customer_id

    def subscription_of(self, account: Account) -> str:
        subscription = account.call("GET", "/subscription/status").get_json()["subscription"]
        subscription_id: str = subscription["stripe_subscription_id"]
        return subscription_id

    def news(self) -> list[Json]:
        """Return the events that nobody was told of yet, oldest first."""
        account = self.stripe.account
        with account.changing():
            newest_first = takewhile(lambda event: event["id"] != self._last_told, reversed(account.all_of("event")))
            events = copy.deepcopy(list(newest_first))[::-1]
        if events:
            self._last_told = events[-1]["id"]
        return events

    def tell(self, event: Json, **headers: str) -> TestResponse:
        """Bring an event to the application, signed as Stripe signs."""
        return self.send(json.dumps(event, indent=2).encode(), **headers)

    def send(self, payload: bytes, signature: str | None = None) -> TestResponse:
        header = sign(payload) if signature is None else signature
        return self.app.test_client().post(
            "/webhook/stripe", data=payload, headers={"Stripe-Signature": header}, content_type="application/json"
        )

    def tell_all(self, events: Iterable[Json] | None = None) -> None:
        """Bring all news to the application, or these events."""
        for event in self.news() if events is None else events:
            assert self.tell(event).get_json() == {"received": True}

    def work(self) -> None:
        """Do all that is open, whether it is time or not, as the billing process would."""
        for table in ("stripe_events", "billing_closures"):
            self.rows(f"UPDATE {table} SET not_before = NULL")  # noqa: S608 - of our own
        for row in self.rows("SELECT id FROM stripe_events WHERE due_at IS NOT NULL ORDER BY received_at, id"):
            self.in_app(handle_event, row.id)
        for row in self.rows("SELECT id FROM billing_closures WHERE due_at IS NOT NULL ORDER BY due_at"):
            self.in_app(end_customer, row.id)

    def in_app(self, work: Any, *arguments: Any) -> Any:
        """Call what needs the application's context."""
        with self.app.app_context():
            return work(*arguments)

    def rows(self, statement: str, **values: Any) -> list[Any]:
        """Return what a statement yields."""
        with self.app.app_context():
            found = db.session.execute(text(statement), values)
            rows = list(found.all()) if found.returns_rows else []
            db.session.commit()
            return rows

    def event_row(self, event_id: str) -> Any:
        return self.rows("SELECT * FROM stripe_events WHERE event_id = :id", id=event_id)[0]


def sign(payload: bytes, secret: str = WEBHOOK_SECRET, timestamp: float | None = None) -> str:
    """Return `Stripe-Signature` of a payload."""
    return WebhookSignature.generate_signature_header(
        payload.decode(), secret, int(time.time() if timestamp is None else timestamp)
    )


def tier_of(account: Account) -> str:
    tier: str = account.call("GET", "/user/me").get_json()["user"]["subscription_tier"]
    return tier


def age_open_invoice(stripe: StripeStandin, subscription_id: str, by: timedelta) -> None:
    """Have the one unpaid invoice of a subscription be there for longer, as if time had passed; and say it changed."""
    account = stripe.account
    with account.changing():
        unpaid = [
            invoice
            for invoice in account.all_of("invoice")
            if invoice["status"] == "open"
            and invoice["parent"]["subscription_details"]["subscription"] == subscription_id
        ]
        assert len(unpaid) == 1
        with account.updating(unpaid[0], "invoice.updated"):
            unpaid[0]["created"] -= int(by.total_seconds())


def logged(caplog: pytest.LogCaptureFixture, event: str) -> list[Json]:
    """Return what was logged of an event, each as its fields."""
    said = [record.msg for record in caplog.records if isinstance(record.msg, dict)]
    return [fields for fields in said if fields["event"] == event]
