"""Handling events: what Stripe has now counts, what cannot be handled yet is kept and tried again, nothing is lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

import pytest
from flask import Flask

from chatapi.dev.stripe.faults import Fault
from chatapi.extensions import in_transaction
from chatapi.subscriptions.events import handle_event, take_due_events
from chatapi.subscriptions.gateway import gateway
from chatapi.subscriptions.sync import sync_customer
from tests.subscriptions.support import Billing, Json, logged, tier_of
from tests.support import Account, race, stripe_client


def age(billing: Billing, event: Json, by: timedelta) -> None:
    """Have an event be there for longer."""
    billing.rows("UPDATE stripe_events SET received_at = now() - :by WHERE event_id = :id", by=by, id=event["id"])


def due_in(billing: Billing, event: Json) -> float:
    """Return in how many seconds an event is looked at next."""
    row = billing.rows(
        "SELECT extract(epoch FROM due_at - clock_timestamp()) AS wait FROM stripe_events WHERE event_id = :id",
        id=event["id"],
    )[0]
    return float(row.wait)


def test_old_event_that_comes_late_changes_nothing(billing: Billing, subscriber: Account) -> None:
    subscription_id = billing.subscription_of(subscriber)
    started = next(
        event
        for event in billing.stripe.events("customer.subscription.created")
        if event["data"]["object"]["id"] == subscription_id
    )
    billing.stripe.cancel_now(subscription_id)
    billing.tell_all()
    billing.work()
    assert tier_of(subscriber) == "basic"

    billing.rows("DELETE FROM stripe_events WHERE event_id = :id", id=started["id"])
    billing.tell(started)
    billing.work()

    assert tier_of(subscriber) == "basic"


def test_event_that_lies_grants_nothing(billing: Billing, customer: Account) -> None:
    """As one would whose content was changed by somebody who has the secret: only Stripe's own answer counts."""
    other = billing.stripe.subscribe(billing.customer_of(customer), billing.price_id)
    event = next(each for each in billing.news() if each["type"] == "customer.subscription.created")
    billing.stripe.cancel_now(other["id"])

    billing.tell(event)
    billing.work()

    assert tier_of(customer) == "basic"


def test_event_is_kept_and_retried_while_stripe_is_away(billing: Billing, account: Account) -> None:
    billing.stripe.pay(billing.check_out(account))
    event = billing.news()[-1]
    billing.stripe.add_fault(Fault("429"))
    billing.tell(event)

    waits = []
    for attempt in (1, 2, 3, 4):
        billing.work()
        row = billing.event_row(event["id"])
        assert (row.status, row.reason, row.attempts) == ("retrying", "billing_unavailable", attempt)
        waits.append(due_in(billing, event))
    for wait, most in zip(waits, (5, 10, 20, 40), strict=True):
        assert most * 0.4 <= wait <= most
    assert tier_of(account) == "basic"

    billing.stripe.clear()
    billing.work()
    assert (tier_of(account), billing.event_row(event["id"]).status) == ("pro", "handled")


def test_event_before_its_checkout_row_finds_its_user_by_what_stripe_holds(billing: Billing, account: Account) -> None:
    """It came before the answer to making the customer, or the answer was lost."""
    session = billing.stripe.pay(billing.check_out(account))
    billing.rows("DELETE FROM billing_customers WHERE user_id = :id", id=account.id)

    billing.tell(billing.news()[-1])
    billing.work()

    assert tier_of(account) == "pro"
    assert billing.subscription_of(account) == session["subscription"]


def test_event_of_a_customer_nobody_knows_is_kept_retried_and_at_last_reported(
    billing: Billing, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = stripe_client(billing.stripe).v1.customers.create({})
    billing.stripe.subscribe(stranger.id, billing.price_id)
    event = next(each for each in billing.news() if each["type"] == "customer.subscription.created")

    assert billing.tell(event).status_code == 200
    billing.work()
    row = billing.event_row(event["id"])
    assert (row.status, row.reason) == ("retrying", "unknown_customer")
    assert due_in(billing, event) > 0

    age(billing, event, timedelta(days=2, hours=23))
    billing.work()
    assert billing.event_row(event["id"]).status == "retrying"
    age(billing, event, timedelta(days=3, hours=1))
    billing.work()
    row = billing.event_row(event["id"])
    assert (row.status, row.reason, row.due_at) == ("unmatched", "unknown_customer", None)
    reported = [said for said in logged(caplog, "stripe_event_closed") if said["level"] == "error"]
    assert [said["stripe_event"] for said in reported] == [event["id"]]


@pytest.mark.parametrize("user_id", ["not-an-id", "", "01a20550-0000-7000-8000-000000000000"])
def test_customer_that_is_noted_to_be_nobody_here_is_not_taken_for_anybody(billing: Billing, user_id: str) -> None:
    stranger = stripe_client(billing.stripe).v1.customers.create({"metadata": {"user_id": user_id}})
    billing.stripe.subscribe(stranger.id, billing.price_id)
    event = next(each for each in billing.news() if each["type"] == "customer.subscription.created")

    billing.tell(event)
    billing.work()

    assert billing.event_row(event["id"]).reason == "unknown_customer"


def test_second_customer_noted_to_be_a_user_takes_nobodys_place(billing: Billing, subscriber: Account) -> None:
    first = billing.customer_of(subscriber)
    second = stripe_client(billing.stripe).v1.customers.create({"metadata": {"user_id": subscriber.id}})
    billing.stripe.subscribe(second.id, billing.price_id)
    event = next(each for each in billing.news() if each["type"] == "customer.subscription.created")

    billing.tell(event)
    billing.work()

    assert billing.customer_of(subscriber) == first
    assert billing.event_row(event["id"]).reason == "unknown_customer"
    assert len(subscriber.call("GET", "/subscription/history").get_json()["subscription_history"]) == 1


def test_second_subscription_is_noticed_and_reported(
    billing: Billing, subscriber: Account, caplog: pytest.LogCaptureFixture
) -> None:
    first, customer = billing.subscription_of(subscriber), billing.customer_of(subscriber)
    second = billing.stripe.subscribe(customer, billing.price_id)["id"]

    billing.tell_all()
    billing.work()

    reports = logged(caplog, "second_subscription")
    assert reports
    assert reports[0]["level"] == "error"
    assert (reports[0]["customer"], set(reports[0]["subscriptions"])) == (customer, {first, second})
    assert tier_of(subscriber) == "pro"
    v1 = stripe_client(billing.stripe).v1
    v1.subscriptions.update(second, {"cancel_at_period_end": True})
    billing.tell_all()
    billing.work()
    untils = [
        row.pro_until
        for row in billing.rows("SELECT pro_until FROM subscriptions WHERE user_id = :id", id=subscriber.id)
    ]
    (user,) = billing.rows("SELECT pro_until FROM users WHERE id = :id", id=subscriber.id)
    assert user.pro_until == max(untils) > min(untils)
    billing.stripe.cancel_now(first)
    billing.tell_all()
    billing.work()
    assert tier_of(subscriber) == "pro"
    billing.stripe.cancel_now(second)
    billing.tell_all()
    billing.work()
    assert tier_of(subscriber) == "basic"


def test_page_to_pay_is_closed_when_a_subscription_was_made_otherwise(billing: Billing, customer: Account) -> None:
    session_id = billing.check_out(customer)
    billing.stripe.subscribe(billing.customer_of(customer), billing.price_id)

    billing.tell_all()
    billing.work()

    assert tier_of(customer) == "pro"
    assert billing.stripe.account.find("checkout.session", session_id)["status"] == "expired"


def test_slow_answer_does_not_overwrite_a_newer_one(billing: Billing, subscriber: Account) -> None:
    """The answer of who asked first is on its way while somebody asks again, after a change, and writes."""
    customer, subscription_id = billing.customer_of(subscriber), billing.subscription_of(subscriber)

    class Slow:
        def subscriptions_of(self, customer_id: str) -> object:
            found = gateway().subscriptions_of(customer_id)
            billing.stripe.cancel_now(subscription_id)
            assert sync_customer(gateway(), customer_id).value == "changed"
            return found

    outcome = billing.in_app(sync_customer, Slow(), customer)

    assert outcome.value == "superseded"
    assert tier_of(subscriber) == "basic"


def test_answer_about_a_former_customer_is_not_written(billing: Billing, subscriber: Account) -> None:
    """The user has become another customer while the answer was on its way."""
    customer = billing.customer_of(subscriber)

    class Slow:
        def subscriptions_of(self, _customer_id: str) -> list[object]:
            anew = "UPDATE billing_customers SET stripe_customer_id = :new WHERE user_id = :id"
            billing.rows(anew, new=f"{customer}_new", id=subscriber.id)
            return []

    assert billing.in_app(sync_customer, Slow(), customer).value == "superseded"
    assert tier_of(subscriber) == "pro"


@pytest.mark.parametrize("is_refused", [False, True])
def test_customer_that_is_deleted_at_stripe_is_basic(billing: Billing, subscriber: Account, is_refused: bool) -> None:
    """Whether their subscriptions can still be asked for or not."""
    customer, subscription_id = billing.customer_of(subscriber), billing.subscription_of(subscriber)
    stripe_client(billing.stripe).v1.customers.delete(customer)
    with billing.stripe.account.changing():
        del billing.stripe.account.kinds["subscription"][subscription_id]
    if is_refused:
        billing.stripe.add_fault(Fault("404", path="/v1/subscriptions", times=1))

    assert billing.in_app(lambda: sync_customer(gateway(), customer)).value == "changed"
    assert tier_of(subscriber) == "basic"


def test_events_that_came_before_stripe_was_read_ask_it_nothing_more(billing: Billing, account: Account) -> None:
    billing.stripe.pay(billing.check_out(account))
    events = [event for event in billing.news() if event["type"].startswith(("customer.sub", "invoice", "checkout"))]
    assert len(events) >= 4
    billing.tell_all(events)
    billing.stripe.forget_requests()

    billing.work()

    read = [request for request in billing.stripe.requests if request.path == "/v1/subscriptions"]
    assert len(read) == 1
    rows = [billing.event_row(event["id"]) for event in events]
    assert {(row.status, row.due_at, row.attempts) for row in rows} == {("handled", None, 1)}
    assert all(row.closed_at is not None for row in rows)


def test_closed_event_is_not_handled_again(billing: Billing, account: Account) -> None:
    billing.stripe.pay(billing.check_out(account))
    event = billing.news()[-1]
    billing.tell(event)
    billing.work()
    closed = billing.event_row(event["id"])
    billing.rows("UPDATE billing_customers SET sync_began_at = NULL WHERE user_id = :id", id=account.id)
    billing.stripe.forget_requests()

    billing.in_app(handle_event, closed.id)

    assert not billing.stripe.requests
    assert billing.event_row(event["id"]) == closed


def test_event_handled_in_many_places_at_once_has_one_effect(billing: Billing, account: Account) -> None:
    billing.stripe.pay(billing.check_out(account))
    events = billing.news()
    billing.tell_all(events)
    rows = billing.rows("SELECT id FROM stripe_events WHERE due_at IS NOT NULL")

    race(20, lambda index: billing.in_app(handle_event, rows[index % len(rows)].id))
    billing.work()

    assert tier_of(account) == "pro"
    assert len(account.call("GET", "/subscription/history").get_json()["subscription_history"]) == 1


def test_broken_answer_of_stripes_is_retried_and_does_not_show_what_it_was(
    billing: Billing, account: Account, caplog: pytest.LogCaptureFixture
) -> None:
    session = billing.stripe.pay(billing.check_out(account))
    event = billing.news()[-1]
    billing.tell(event)
    with billing.stripe.account.changing():
        item = billing.stripe.account.find("subscription", session["subscription"])["items"]["data"][0]
        price = item.pop("price")
    try:
        billing.work()
        assert billing.event_row(event["id"]).reason == "billing_unavailable"
        assert [said["reason"] for said in logged(caplog, "stripe_not_understood")] == ["KeyError"]
    finally:
        with billing.stripe.account.changing():
            item["price"] = price
    billing.work()
    assert tier_of(account) == "pro"


def test_due_events_are_rung_for_once(billing: Billing, account: Account) -> None:
    billing.stripe.pay(billing.check_out(account))
    event = billing.news()[-1]
    billing.tell(event)
    row_id = billing.event_row(event["id"]).id

    def due() -> list[object]:
        return [found for found in billing.in_app(in_transaction, lambda: take_due_events(1000)) if found == row_id]

    assert due() == []  # The ring after commit is given its time.
    billing.rows("UPDATE stripe_events SET due_at = now() WHERE id = :id", id=row_id)
    assert due() == [row_id]
    assert due() == []
    assert 25 < due_in(billing, event) <= 30
    billing.work()
    billing.rows("UPDATE stripe_events SET due_at = due_at - interval '1 day' WHERE id = :id", id=row_id)
    assert due() == []


def test_nothing_open_waits_for_stripe_in_a_transaction(
    billing: Billing, account: Account, make_app: Callable[..., Flask]
) -> None:
    billing.stripe.pay(billing.check_out(account))
    billing.tell_all()
    billing.stripe.add_fault(Fault(latency_ms=800))
    rows = billing.rows("SELECT id FROM stripe_events WHERE due_at IS NOT NULL LIMIT 1")

    def look() -> list[str]:
        time.sleep(0.4)
        query = "SELECT state FROM pg_stat_activity WHERE application_name = 'chatapi' AND pid <> pg_backend_pid()"
        return [row.state for row in billing.rows(query) if row.state.startswith("idle in transaction")]

    states = race(2, lambda index: look() if index else billing.in_app(handle_event, rows[0].id))

    assert states[1] == []
