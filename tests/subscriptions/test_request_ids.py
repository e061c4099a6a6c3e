"""A request's id in what is asked of Stripe for it, and a webhook's in what is done about its event."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from chatapi.dev.stripe.faults import Fault
from tests.subscriptions.support import Billing, logged, tier_of
from tests.support import Account


@pytest.fixture(autouse=True)
def _nobodys_thread() -> Iterator[None]:
    """Leave to later tests a thread that works for nobody."""
    yield
    structlog.contextvars.clear_contextvars()


def call(account: Account, method: str, path: str, request_id: str) -> int:
    headers = {**account.headers, "X-Request-ID": request_id}
    status = account.client.open(path, method=method, headers=headers).status_code
    structlog.contextvars.clear_contextvars()
    return status


def ids_sent(billing: Billing) -> set[str | None]:
    """Return which requests Stripe was asked for since."""
    sent = {each.headers.get("x-request-id") for each in billing.stripe.requests}
    billing.stripe.forget_requests()
    return sent


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/subscription/portal"), ("POST", "/subscription/cancel"), ("POST", "/subscription/resume")],
)
def test_what_a_request_asks_of_stripe_names_it(billing: Billing, subscriber: Account, method: str, path: str) -> None:
    billing.stripe.forget_requests()

    assert call(subscriber, method, path, "on-the-way-to-stripe") == 200

    assert ids_sent(billing) == {"on-the-way-to-stripe"}


def test_refusal_is_logged_with_both_sides_names_of_the_request(
    billing: Billing, subscriber: Account, caplog: pytest.LogCaptureFixture
) -> None:
    billing.stripe.add_fault(Fault("403"))

    assert call(subscriber, "POST", "/subscription/portal", "refused-there") == 503

    (refusal,) = logged(caplog, "stripe_refused")
    assert refusal["request_id"] == "refused-there"
    assert refusal["stripe_request_id"].startswith("req_")


def test_event_is_handled_under_the_request_that_brought_it(
    billing: Billing, account: Account, caplog: pytest.LogCaptureFixture
) -> None:
    billing.stripe.pay(billing.check_out(account))
    billing.tell_all()
    structlog.contextvars.clear_contextvars()
    billing.stripe.forget_requests()

    billing.work()

    assert tier_of(account) == "pro"
    received = {line["stripe_event"]: line["request_id"] for line in logged(caplog, "stripe_event_received")}
    closed = {line["stripe_event"]: line["request_id"] for line in logged(caplog, "stripe_event_closed")}
    assert closed
    assert closed.items() <= received.items()
    assert len(set(closed.values())) == len(closed)
    sent = ids_sent(billing)
    assert sent
    assert sent <= set(closed.values())


def closures(billing: Billing, customer_id: str) -> Any:
    (closure,) = billing.rows("SELECT * FROM billing_closures WHERE stripe_customer_id = :id", id=customer_id)
    return closure


def test_closure_names_the_request_that_erased_the_account_until_it_is_done(
    billing: Billing, subscriber: Account, caplog: pytest.LogCaptureFixture
) -> None:
    customer_id = billing.customer_of(subscriber)
    assert call(subscriber, "DELETE", "/user/me", "erases-all") == 204
    billing.stripe.forget_requests()
    billing.stripe.add_fault(Fault("503", times=4))

    billing.work()
    structlog.contextvars.clear_contextvars()
    assert closures(billing, customer_id).request_id == "erases-all"
    assert [line["request_id"] for line in logged(caplog, "closure_failed")] == ["erases-all"]
    billing.stripe.clear()
    billing.work()

    assert [line["request_id"] for line in logged(caplog, "subscription_cancelled")] == ["erases-all"]
    assert ids_sent(billing) == {"erases-all"}
    done = closures(billing, customer_id)
    assert (done.confirmed_at is not None, done.request_id) == (True, None)
