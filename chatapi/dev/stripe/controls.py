"""What tests and people can make happen in the Stripe stand-in, in the process and over HTTP alike."""

from __future__ import annotations

import copy
import inspect
import json
import time
from pathlib import Path
from typing import Any

from chatapi.dev.stripe import checkout, invoices, life, notices, subscriptions
from chatapi.dev.stripe.account import Account, DunningRules
from chatapi.dev.stripe.billing import SUBSCRIPTION_STATUSES
from chatapi.dev.stripe.faults import Fault, FaultBook
from chatapi.dev.stripe.webhooks import BACKOFF_SECONDS, TIMEOUT_SECONDS, Attempt, Deliverer
from chatapi.dev.stripe.wire import ApiError, Json, signature_header

CONTROLS = frozenset(
    {
        *("pay", "decline", "expire", "set_card", "advance", "now", "renew", "fail_payment", "pay_open_invoice"),
        *("cancel_now", "set_status", "subscribe", "add_webhook", "rotate_secret", "events"),
        *("hold_deliveries", "release_deliveries", "drop_deliveries", "delay_deliveries", "redeliver"),
        "wait_until_delivered",
    }
)


class Controls:
    """The account behind the stand-in, and what can be done to it beside Stripe's own API."""

    def __init__(
        self,
        base_url: str,
        *,
        livemode: bool = False,
        dunning: DunningRules | None = None,
        state_file: Path | None = None,
        backoff_seconds: tuple[float, ...] = BACKOFF_SECONDS,
        delivery_timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        rules = dunning or DunningRules()
        self.account = Account(base_url, livemode=livemode, dunning=rules, state_file=state_file)
        self.account.load()
        self.deliverer = Deliverer(self.account, backoff_seconds, delivery_timeout_seconds)
        self.faults = FaultBook()

    def add_fault(self, fault: Fault) -> None:
        """Show `fault` to the requests it applies to."""
        self.faults.add(fault)

    def clear(self) -> None:
        """Behave well again: no faults, deliveries as they come. What was held is sent."""
        self.faults.clear()
        self.deliverer.drop(0)
        self.deliverer.delay(0)
        self.deliverer.release("as made", None, 0, 1)

    def now(self) -> int:
        """Return the stand-in's time, unix seconds."""
        return self.account.clock.now()

    def advance(self, seconds: int) -> int:
        """Move the clock forward, with all that happens meanwhile, in order; return the time then."""
        with self.account.changing():
            life.live_until(self.account, self.account.clock.now() + seconds)
            self.account.touch()
            return self.account.clock.now()

    def pay(self, session_id: str) -> Json:
        """Pay on a checkout session's page; return the session."""
        with self.account.changing():
            session = self.account.find("checkout.session", session_id)
            checkout.complete(self.account, session)
            return copy.deepcopy(session)

    def decline(self, session_id: str) -> Json:
        """Try to pay with a card that is declined; return the session, still open."""
        with self.account.changing():
            session = self.account.find("checkout.session", session_id)
            checkout.decline(session)
            return copy.deepcopy(session)

    def expire(self, session_id: str) -> Json:
        """End an open checkout session; return it."""
        with self.account.changing():
            return copy.deepcopy(checkout.expire(self.account, self.account.find("checkout.session", session_id)))

    def set_card(self, customer_id: str, card: str) -> None:
        """Have the customer's payments from now on be good, or declined."""
        if card not in invoices.CARDS:
            raise ApiError(400, f"card must be one of {', '.join(invoices.CARDS)}", param="card")
        with self.account.changing():
            self.account.secret_of(self.account.find("customer", customer_id)["id"])["card"] = card

    def subscribe(
        self,
        customer_id: str,
        price_id: str,
        *,
        quantity: int = 1,
        trial_period_days: int = 0,
        metadata: dict[str, str] | None = None,
    ) -> Json:
        """Begin a subscription as one does in the dashboard; a customer without a card gets a good one."""
        with self.account.changing():
            customer = self.account.find("customer", customer_id, param="customer")
            self.account.secret_of(customer["id"]).setdefault("card", invoices.GOOD_CARD)
            lines = checkout.line_prices(self.account, [{"price": price_id, "quantity": quantity}], "items")
            settings = {"trial_period_days": trial_period_days, "metadata": metadata}
            order = checkout.order_for(customer["id"], lines, settings)
            return copy.deepcopy(subscriptions.begin(self.account, order))

    def renew(self, subscription_id: str) -> Json:
        """Let a subscription, and nothing else, reach its period's end; return it as it is then."""
        with self.account.changing():
            subscription = self.account.find("subscription", subscription_id)
            life.renew_now(self.account, subscription)
            return copy.deepcopy(subscription)

    def fail_payment(self, subscription_id: str) -> Json:
        """Have the customer's card decline, then renew: the subscription is past due."""
        with self.account.changing():
            subscription = self.account.find("subscription", subscription_id)
            self.set_card(subscription["customer"], invoices.DECLINING_CARD)
            return self.renew(subscription_id)

    def pay_open_invoice(self, subscription_id: str) -> Json:
        """Give the customer a good card, pay all that the subscription owes; return the subscription."""
        with self.account.changing():
            subscription = self.account.find("subscription", subscription_id)
            self.set_card(subscription["customer"], invoices.GOOD_CARD)
            for invoice in invoices.invoices_of(self.account, subscription_id):
                invoices.pay(self.account, invoice)
            return copy.deepcopy(subscription)

    def cancel_now(self, subscription_id: str) -> Json:
        """End a subscription at once; return it."""
        with self.account.changing():
            subscription = self.account.find("subscription", subscription_id)
            if subscription["status"] not in invoices.ENDED:
                invoices.end_subscription(self.account, subscription)
            return copy.deepcopy(subscription)

    def set_status(self, subscription_id: str, status: str) -> Json:
        """Give a subscription a status, whatever led to it, with the event of that; return it."""
        if status not in SUBSCRIPTION_STATUSES:
            raise ApiError(400, f"status must be one of {', '.join(SUBSCRIPTION_STATUSES)}", param="status")
        if status == "canceled":
            return self.cancel_now(subscription_id)
        with self.account.changing():
            subscription = self.account.find("subscription", subscription_id)
            if status == "paused":
                subscriptions.pause(self.account, subscription, "pause_requested")
            with self.account.updating(subscription, "customer.subscription.updated"):
                subscription["status"] = status
                subscription["ended_at"] = self.now() if status in invoices.ENDED else None
            return copy.deepcopy(subscription)

    def add_webhook(self, url: str, secret: str | None = None, enabled_events: tuple[str, ...] = ("*",)) -> str:
        """Deliver to `url` from now on; return the secret that signatures are made with."""
        with self.account.changing():
            made = notices.create_endpoint(self.account, {"url": url, "enabled_events": list(enabled_events)}, secret)
            return str(made["secret"])

    def rotate_secret(self, url: str | None = None, secret: str | None = None, *, keep_old: bool = True) -> str:
        """Give the endpoint at `url`, or every one, a new secret and return it.

        With `keep_old` signatures are made with the old one too.
        """
        with self.account.changing():
            for endpoint in self.account.all_of("webhook_endpoint"):
                if url in {None, endpoint["url"]}:
                    secret = notices.rotate_secret(self.account, endpoint["id"], secret, keep_old=keep_old)
        if secret is None:
            raise ApiError(404, "There is no such endpoint.", code="resource_missing")
        return secret

    def sign(self, payload: bytes, secret: str | None = None, timestamp: int | None = None) -> str:
        """Return `Stripe-Signature` for `payload`, by default as the first endpoint's, at the real time."""
        if secret is not None:
            held = [secret]
        else:
            with self.account.changing():
                first = next(iter(self.account.all_of("webhook_endpoint")))
                held = list(self.account.private[first["id"]]["secrets"])
        return signature_header(payload, held, int(time.time()) if timestamp is None else timestamp)

    def hold_deliveries(self) -> None:
        """Keep events back from now on."""
        self.deliverer.hold()

    def release_deliveries(
        self, order: str = "as made", seed: int | None = None, drop: int = 0, copies: int = 1
    ) -> int:
        """Send what was kept back, one after the other, and keep nothing back any more; return how many were sent.

        `order` is "as made", "reversed" or "shuffled"; `drop` of them are lost, the others sent `copies` times each.
        Who wants them in this order at the receiver gets it: the next is sent when the one before was answered.
        """
        return self.deliverer.release(order, seed, drop, copies)

    def drop_deliveries(self, count: int | None = None) -> None:
        """Lose the next `count` deliveries; None: all from now on, 0: none any more."""
        self.deliverer.drop(count)

    def delay_deliveries(self, seconds: float) -> None:
        """Deliver what happens from now on so much later."""
        self.deliverer.delay(seconds)

    def redeliver(self, event_id: str, copies: int = 1) -> None:
        """Send an event again, `copies` times at once, to every endpoint."""
        with self.account.changing():
            event = self.account.find("event", event_id)
            for endpoint in self.account.all_of("webhook_endpoint"):
                for _ in range(copies):
                    self.account.deliver(event, endpoint)

    def wait_until_delivered(self, timeout: float = 10) -> bool:
        """Return whether, within `timeout` seconds, every event was taken that is not held or lost."""
        return self.deliverer.wait_until_delivered(timeout)

    @property
    def deliveries(self) -> list[Attempt]:
        """The attempts to deliver so far, oldest first."""
        return self.deliverer.attempts

    def events(self, type: str | None = None) -> list[Json]:  # noqa: A002 - Stripe's name for it.
        """Return the events so far, oldest first."""
        with self.account.changing():
            held = self.account.all_of("event")
            return copy.deepcopy([event for event in held if type in {None, event["type"]}])

    def call(self, name: str, arguments: object) -> Any:
        """Do what `POST /_control/{name}` asks for; `ApiError` when that cannot be."""
        if name not in CONTROLS:
            raise ApiError(404, f"There is no control {name}; known: {', '.join(sorted(CONTROLS))}")
        control = getattr(self, name)
        try:
            bound = inspect.signature(control).bind(**(arguments if isinstance(arguments, dict) else {"": arguments}))
            return control(*bound.args, **bound.kwargs)
        except TypeError as error:
            raise ApiError(400, f"Wrong arguments of {name}: {error}") from error


def from_json(raw: bytes) -> Any:
    """Read a control's arguments; none are none."""
    try:
        return json.loads(raw or b"{}")
    except ValueError as error:
        raise ApiError(400, "The body is not JSON.") from error


def read_fault(raw: bytes) -> Fault:
    """Read a fault; `ApiError` says what is wrong with it."""
    try:
        return Fault.from_fields(from_json(raw))
    except ValueError as error:
        raise ApiError(400, str(error)) from error
