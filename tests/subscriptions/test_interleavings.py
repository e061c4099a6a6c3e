"""What happens between two steps: a payment, a message that is handled, a key that was wrong for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

import pytest
from flask import Flask

from chatapi.dev.stripe.faults import Fault
from chatapi.dev.stripe.standin import StripeStandin
from chatapi.subscriptions.gateway import StripeGateway
from chatapi.subscriptions.reconcile import reconcile
from tests.subscriptions.support import Billing, tier_of
from tests.support import Account, stripe_client


def open_sessions(billing: Billing, account: Account) -> list[str]:
    customer = billing.customer_of(account)
    sessions = billing.stripe.account.all_of("checkout.session")
    return [each["id"] for each in sessions if each["customer"] == customer and each["status"] == "open"]


def hear(billing: Billing) -> None:
    billing.tell_all()
    billing.work()


@pytest.fixture
def ask_with_wrong_key(billing: Billing, make_app: Callable[..., Flask]) -> Iterator[Callable[[Account], None]]:
    """Return what has somebody subscribe while the key is another account's, and nothing else is."""
    with StripeStandin() as empty:
        secret = billing.app.config["JWT_SECRET"]
        app = make_app(STRIPE_API_BASE=empty.url, STRIPE_PRICE_ID=billing.price_id, JWT_SECRET=secret)

        def ask(account: Account) -> None:
            here, account.client = account.client, app.test_client()
            assert account.call("POST", "/subscribe/pro").status_code == 503
            account.client = here

        yield ask


Ask = Callable[[Account], None]


def test_page_that_was_open_is_paid_for_when_the_key_was_wrong_for_a_while(
    billing: Billing, account: Account, ask_with_wrong_key: Ask
) -> None:
    session_id = billing.check_out(account)
    ask_with_wrong_key(account)

    billing.stripe.pay(session_id)
    hear(billing)

    assert tier_of(account) == "pro"


def test_unpaid_subscription_is_known_still_when_the_key_was_wrong_for_a_while(
    billing: Billing, subscriber: Account, ask_with_wrong_key: Ask
) -> None:
    subscription_id = billing.subscription_of(subscriber)
    billing.stripe.set_status(subscription_id, "unpaid")
    hear(billing)
    ask_with_wrong_key(subscriber)

    billing.stripe.set_status(subscription_id, "active")
    hear(billing)

    assert tier_of(subscriber) == "pro"
    assert subscriber.call("POST", "/subscribe/pro").status_code == 409


def test_erased_account_is_charged_no_more_when_the_key_was_wrong_for_a_while(
    billing: Billing, account: Account, ask_with_wrong_key: Ask
) -> None:
    session_id = billing.check_out(account)
    ask_with_wrong_key(account)
    subscription_id = billing.stripe.pay(session_id)["subscription"]

    assert account.call("DELETE", "/user/me").status_code == 204
    billing.work()

    assert billing.stripe.account.find("subscription", subscription_id)["status"] == "canceled"


def test_checkout_is_409_when_the_page_is_paid_just_before_it_is_closed(
    billing: Billing, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its terms have changed, so it is to be replaced."""
    first = billing.check_out(account)
    monkeypatch.setitem(billing.app.config, "FRONTEND_URL", "https://new.example")
    expire = StripeGateway.expire_checkouts

    def pay_first(stripe: StripeGateway, customer_id: str) -> None:
        monkeypatch.setattr(StripeGateway, "expire_checkouts", expire)
        billing.stripe.pay(first)
        expire(stripe, customer_id)

    monkeypatch.setattr(StripeGateway, "expire_checkouts", pay_first)

    assert account.call("POST", "/subscribe/pro").status_code == 409
    assert open_sessions(billing, account) == []


def subscribe_elsewhere(billing: Billing, account: Account) -> None:
    """Have a subscription made in the dashboard, and its messages handled: in a thread, as another process would."""
    billing.stripe.subscribe(billing.customer_of(account), billing.price_id)
    worker = Thread(target=hear, args=(billing,))
    worker.start()
    worker.join()


def test_page_is_closed_later_when_something_begins_to_run_while_it_is_made(
    billing: Billing, customer: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = StripeGateway.open_checkout

    def be_late(stripe: StripeGateway, *terms: Any) -> Any:
        subscribe_elsewhere(billing, customer)
        return make(stripe, *terms)

    with monkeypatch.context() as patch:
        patch.setitem(billing.app.config, "FRONTEND_URL", "https://new.example")
        patch.setattr(StripeGateway, "open_checkout", be_late)
        assert customer.call("POST", "/subscribe/pro").status_code == 200
    assert tier_of(customer) == "pro"
    assert len(open_sessions(billing, customer)) == 1

    billing.in_app(reconcile)

    assert open_sessions(billing, customer) == []


def test_page_is_closed_later_when_it_was_made_while_others_were_closed(
    billing: Billing, customer: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message is being handled: it has listed the open pages, and another is made before it goes on."""
    listed, made = Event(), Event()
    expire = StripeGateway.expire_checkouts

    def be_slow(stripe: StripeGateway, customer_id: str) -> None:
        expire(stripe, customer_id)
        listed.set()
        assert made.wait(10)

    make = StripeGateway.open_checkout

    def be_late(stripe: StripeGateway, *terms: Any) -> Any:
        monkeypatch.setattr(StripeGateway, "expire_checkouts", be_slow)
        billing.stripe.subscribe(billing.customer_of(customer), billing.price_id)
        worker.start()
        assert listed.wait(10)
        return make(stripe, *terms)

    worker = Thread(target=hear, args=(billing,))
    monkeypatch.setitem(billing.app.config, "FRONTEND_URL", "https://new.example")
    monkeypatch.setattr(StripeGateway, "open_checkout", be_late)
    assert customer.call("POST", "/subscribe/pro").status_code == 200
    made.set()
    worker.join()
    monkeypatch.undo()
    assert len(open_sessions(billing, customer)) == 1

    billing.in_app(reconcile)

    assert open_sessions(billing, customer) == []


def test_reading_of_a_former_customer_is_not_taken_for_one_of_the_next(billing: Billing, account: Account) -> None:
    billing.check_out(account)
    client = stripe_client(billing.stripe).v1
    client.customers.delete(billing.customer_of(account))
    other = client.customers.create({"metadata": {"user_id": account.id}}).id
    billing.stripe.subscribe(other, billing.price_id)
    event = [each for each in billing.news() if each["type"] == "customer.subscription.created"][-1]
    billing.tell(event)
    billing.stripe.add_fault(Fault("500", path="/v1/customers$", method="POST"))
    assert account.call("POST", "/subscribe/pro").status_code == 503  # It has read the former one.
    billing.stripe.clear()
    billing.stripe.add_fault(Fault("429", path="/v1/subscriptions"))
    billing.work()
    billing.stripe.clear()

    billing.work()

    row = billing.event_row(event["id"])
    assert (row.status, row.reason, tier_of(account)) == ("handled", "changed", "pro")


@contextmanager
def somebody_else() -> Iterator[str]:
    """A server that is not Stripe and answers everything with an empty object."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(b"{}")

        do_POST = do_GET  # noqa: N815 - the base class looks it up by this name.

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_answers_that_are_not_stripes_are_503_and_do_not_fail_the_status(
    billing: Billing, customer: Account, make_app: Callable[..., Flask]
) -> None:
    secret = billing.app.config["JWT_SECRET"]
    with somebody_else() as url:
        app = make_app(STRIPE_API_BASE=url, STRIPE_PRICE_ID=billing.price_id, JWT_SECRET=secret)
        customer.client = app.test_client()
        assert customer.call("POST", "/subscribe/pro").get_json()["error"] == "billing_unavailable"
        assert customer.call("GET", "/subscription/status").status_code == 200
