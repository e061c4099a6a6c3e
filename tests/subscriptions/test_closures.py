"""Erasing an account ends what it pays for: by a job that knows Stripe's ids only, until Stripe confirms."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import pytest
from sqlalchemy import text

from chatapi.auth.models import User
from chatapi.dev.stripe.faults import Fault
from chatapi.extensions import db, in_transaction
from chatapi.subscriptions.claims import keep_customer, take_claim
from chatapi.subscriptions.closures import close_account, close_customer, end_customer, take_due_closures
from tests.subscriptions.support import Billing
from tests.support import Account, wait_for


def closure_of(billing: Billing, customer: str) -> list[object]:
    return billing.rows("SELECT * FROM billing_closures WHERE stripe_customer_id = :id", id=customer)


def erase(account: Account) -> None:
    assert account.call("DELETE", "/user/me").status_code == 204


def test_erasing_an_account_cancels_its_subscription(billing: Billing, subscriber: Account) -> None:
    customer, subscription_id = billing.customer_of(subscriber), billing.subscription_of(subscriber)

    erase(subscriber)

    (waiting,) = closure_of(billing, customer)
    assert (waiting.confirmed_at, waiting.attempts) == (None, 0)  # type: ignore[attr-defined]
    billing.work()
    assert billing.stripe.account.find("subscription", subscription_id)["status"] == "canceled"
    (done,) = closure_of(billing, customer)
    assert done.confirmed_at is not None  # type: ignore[attr-defined]
    assert done.due_at is None  # type: ignore[attr-defined]


def test_erasing_an_account_asks_stripe_nothing_itself(billing: Billing, subscriber: Account) -> None:
    billing.stripe.add_fault(Fault("hang"))
    billing.stripe.forget_requests()

    erase(subscriber)

    assert not billing.stripe.requests


def test_what_is_left_of_an_erased_account_are_stripes_ids(billing: Billing, subscriber: Account) -> None:
    customer = billing.customer_of(subscriber)
    erase(subscriber)
    billing.work()
    billing.tell_all()
    billing.work()

    for table in ("billing_customers", "subscriptions"):
        assert billing.rows(f"SELECT 1 FROM {table} WHERE user_id = :id", id=subscriber.id) == []  # noqa: S608
    for table in ("billing_closures", "stripe_events"):
        held = str(billing.rows(f"SELECT * FROM {table}"))  # noqa: S608
        assert subscriber.id not in held
        assert subscriber.mobile_number not in held
    assert closure_of(billing, customer)


@pytest.mark.parametrize("kind", ["429", "401", "lost_answer"])
def test_cancelling_is_retried_until_stripe_confirms(billing: Billing, subscriber: Account, kind: str) -> None:
    customer, subscription_id = billing.customer_of(subscriber), billing.subscription_of(subscriber)
    erase(subscriber)
    billing.stripe.add_fault(Fault(kind, method="DELETE"))

    for attempt in (1, 2):
        billing.work()
        (closure,) = closure_of(billing, customer)
        if kind == "lost_answer":
            break  # It is done, and Stripe says so when asked the next time.
        assert (closure.attempts, closure.last_error) == (attempt, "billing_unavailable")  # type: ignore[attr-defined]
        assert closure.due_at is not None  # type: ignore[attr-defined]
    billing.stripe.clear()
    billing.work()

    (closure,) = closure_of(billing, customer)
    assert (closure.due_at, closure.last_error) == (None, None)  # type: ignore[attr-defined]
    assert billing.stripe.account.find("subscription", subscription_id)["status"] == "canceled"


def test_later_events_of_an_erased_account_are_closed(billing: Billing, subscriber: Account) -> None:
    erase(subscriber)
    billing.work()

    events = [event for event in billing.news() if event["type"] == "customer.subscription.deleted"]
    assert len(events) == 1
    billing.tell_all(events)
    billing.work()

    row = billing.event_row(events[0]["id"])
    assert (row.status, row.reason) == ("handled", "account_erased")
    assert billing.rows("SELECT 1 FROM billing_closures WHERE due_at IS NOT NULL") == []


def test_open_page_to_pay_is_closed_with_the_account(billing: Billing, customer: Account) -> None:
    session_id = billing.check_out(customer)

    erase(customer)
    billing.work()

    assert billing.stripe.account.find("checkout.session", session_id)["status"] == "expired"


def test_payment_after_the_account_was_erased_is_ended_too(billing: Billing, customer: Account) -> None:
    session_id = billing.check_out(customer)
    erase(customer)
    session = billing.stripe.pay(session_id)  # Before the job came to it.
    billing.work()
    assert billing.stripe.account.find("subscription", session["subscription"])["status"] == "canceled"

    again = billing.stripe.subscribe(session["customer"], billing.price_id)
    billing.tell_all()
    billing.work()
    billing.work()
    assert billing.stripe.account.find("subscription", again["id"])["status"] == "canceled"


def test_erasing_while_an_event_is_handled_leaves_nothing_and_ends_the_subscription(
    billing: Billing, account: Account
) -> None:
    session = billing.stripe.pay(billing.check_out(account))
    billing.tell_all()
    billing.stripe.forget_requests()
    billing.stripe.add_fault(Fault(path="/v1/subscriptions", latency_ms=500, times=1))

    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(billing.work)
        wait_for(lambda: billing.stripe.requests, every=0.02)
        erase(account)
        working.result()
    billing.work()

    assert billing.rows("SELECT 1 FROM subscriptions WHERE user_id = :id", id=account.id) == []
    assert billing.stripe.account.find("subscription", session["subscription"])["status"] == "canceled"


def test_account_without_customer_leaves_nothing_to_do(billing: Billing, account: Account) -> None:
    before = len(billing.rows("SELECT 1 FROM billing_closures"))

    erase(account)

    assert len(billing.rows("SELECT 1 FROM billing_closures")) == before


@pytest.mark.parametrize("status", ["past_due", "unpaid", "paused", "trialing"])
def test_erasing_an_account_ends_whatever_is_not_over(billing: Billing, subscriber: Account, status: str) -> None:
    subscription_id = billing.subscription_of(subscriber)
    billing.stripe.set_status(subscription_id, status)

    erase(subscriber)
    billing.work()

    assert billing.stripe.account.find("subscription", subscription_id)["status"] == "canceled"


def test_closure_asked_for_again_while_it_is_done_stays_due(billing: Billing, subscriber: Account) -> None:
    customer = billing.customer_of(subscriber)
    erase(subscriber)
    (closure,) = closure_of(billing, customer)
    billing.stripe.forget_requests()
    billing.stripe.add_fault(Fault(path="/v1/subscriptions", latency_ms=500, times=1))

    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(billing.in_app, end_customer, closure.id)  # type: ignore[attr-defined]
        wait_for(lambda: [each for each in billing.stripe.requests if each.path == "/v1/subscriptions"], every=0.02)
        billing.in_app(in_transaction, lambda: close_customer(customer))
        working.result()

    (closure,) = closure_of(billing, customer)
    assert (closure.due_at is None, closure.confirmed_at) == (False, None)  # type: ignore[attr-defined]


def test_closure_stays_due_when_stripe_answers_what_nobody_understands(billing: Billing, subscriber: Account) -> None:
    customer, subscription_id = billing.customer_of(subscriber), billing.subscription_of(subscriber)
    erase(subscriber)
    (closure,) = closure_of(billing, customer)
    held = billing.stripe.account
    with held.changing():
        items = held.find("subscription", subscription_id).pop("items")
    billing.in_app(end_customer, closure.id)  # type: ignore[attr-defined]
    with held.changing():
        held.find("subscription", subscription_id)["items"] = items

    (closure,) = closure_of(billing, customer)
    assert closure.last_error == "billing_unavailable"  # type: ignore[attr-defined]
    billing.work()
    assert held.find("subscription", subscription_id)["status"] == "canceled"


def test_customer_made_while_the_account_is_being_erased_is_not_forgotten(billing: Billing, account: Account) -> None:
    """Erasing has read the row and not committed: who would note a customer in it waits, and learns that it is gone."""
    claim = billing.in_app(take_claim, UUID(account.id))

    def erase_slowly() -> None:
        close_account(db.session.get_one(User, UUID(account.id)))
        time.sleep(0.6)
        db.session.execute(text("DELETE FROM billing_customers WHERE user_id = :id"), {"id": account.id})

    with ThreadPoolExecutor(1) as pool:
        erasing = pool.submit(billing.in_app, in_transaction, erase_slowly)
        time.sleep(0.2)
        is_kept = billing.in_app(keep_customer, claim, "cus_late")
        erasing.result()

    assert not is_kept


def test_due_closures_are_rung_for_once(billing: Billing, subscriber: Account) -> None:
    customer = billing.customer_of(subscriber)
    erase(subscriber)
    (closure,) = closure_of(billing, customer)

    def due() -> bool:
        return closure.id in billing.in_app(in_transaction, lambda: take_due_closures(1000))  # type: ignore[attr-defined]

    assert [due(), due()] == [True, False]
