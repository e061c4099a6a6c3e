"""What goes wrong halfway, and what is set wrongly and put right again: nobody loses what they have paid for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from flask import Flask
from sqlalchemy import text

from chatapi.dev.stripe.faults import Fault
from chatapi.dev.stripe.standin import StripeStandin
from chatapi.extensions import db
from chatapi.subscriptions.closures import end_customer
from chatapi.subscriptions.events import handle_event
from chatapi.subscriptions.gateway import BillingUnavailableError, Patience, StripeGateway, gateway
from chatapi.subscriptions.reconcile import RECONCILIATION_ID, reconcile, run_reconciliation
from chatapi.subscriptions.remote import RemoteSubscription
from tests.subscriptions.support import Billing, Json, logged, tier_of
from tests.support import Account, make_price, race, stripe_client


@pytest.fixture
def _nothing_left_over(billing: Billing) -> None:
    """Begin with what earlier tests have left set right."""
    billing.in_app(reconcile)


def open_sessions(billing: Billing, account: Account) -> list[str]:
    customer = billing.customer_of(account)
    sessions = billing.stripe.account.all_of("checkout.session")
    return [each["id"] for each in sessions if each["customer"] == customer and each["status"] == "open"]


def readings(billing: Billing) -> int:
    return len([request for request in billing.stripe.requests if request.path == "/v1/subscriptions"])


ALL_OF_IT = ("customer", "subscription", "checkout.session")


@contextmanager
def unknown_at_stripe(stripe: StripeStandin, customer: str, kinds: tuple[str, ...] = ALL_OF_IT) -> Iterator[None]:
    """Let Stripe know nothing of a customer, as when it is asked with the key of another account."""
    held = stripe.account
    with held.changing():
        kept = {
            kind: {key: each for key, each in held.kinds[kind].items() if customer in (key, each.get("customer"))}
            for kind in kinds
        }
        for kind, objects in kept.items():
            for key in objects:
                del held.kinds[kind][key]
    try:
        yield
    finally:
        with held.changing():
            for kind, objects in kept.items():
                held.kinds[kind].update(objects)


def paid_event(billing: Billing, account: Account) -> Json:
    """Pay, and bring the last of its events; it is not handled."""
    billing.stripe.pay(billing.check_out(account))
    event = billing.news()[-1]
    billing.tell(event)
    return event


def test_event_in_work_is_not_handled_by_those_who_are_rung_for_too(billing: Billing, account: Account) -> None:
    row = billing.event_row(paid_event(billing, account)["id"])
    billing.stripe.forget_requests()
    billing.stripe.add_fault(Fault(path="/v1/subscriptions", latency_ms=500))

    race(5, lambda _: billing.in_app(handle_event, row.id))

    assert readings(billing) == 1
    assert billing.event_row(row.event_id).attempts == 1


def test_event_that_failed_is_left_alone_until_its_time_has_come(billing: Billing, account: Account) -> None:
    row = billing.event_row(paid_event(billing, account)["id"])
    billing.stripe.add_fault(Fault("429"))
    for _ in range(4):
        billing.in_app(handle_event, row.id)
    failed = billing.event_row(row.event_id)
    assert (failed.attempts, failed.not_before) == (1, failed.due_at)

    billing.rows("UPDATE stripe_events SET not_before = now() WHERE id = :id", id=row.id)
    billing.in_app(handle_event, row.id)
    assert billing.event_row(row.event_id).attempts == 2


def test_closure_in_work_or_backing_off_is_left_alone(billing: Billing, subscriber: Account) -> None:
    customer = billing.customer_of(subscriber)
    assert subscriber.call("DELETE", "/user/me").status_code == 204
    query = "SELECT * FROM billing_closures WHERE stripe_customer_id = :id"
    (closure,) = billing.rows(query, id=customer)
    billing.stripe.add_fault(Fault("429", latency_ms=500))

    race(3, lambda _: billing.in_app(end_customer, closure.id))
    billing.in_app(end_customer, closure.id)

    assert billing.rows(query, id=customer)[0].attempts == 1


def test_reconciliation_is_run_once_by_many_rings_and_at_once_when_asked_for(billing: Billing) -> None:
    billing.rows("UPDATE billing_reconciliation SET not_before = NULL")
    billing.stripe.forget_requests()
    race(4, lambda _: billing.in_app(run_reconciliation, RECONCILIATION_ID))
    billing.in_app(run_reconciliation, RECONCILIATION_ID)
    everybody = [request for request in billing.stripe.requests if request.path == "/v1/subscriptions"]
    assert len([request for request in everybody if "customer" not in request.params]) == 1

    billing.stripe.forget_requests()
    billing.in_app(reconcile)
    assert readings(billing) >= 1


@pytest.mark.usefixtures("_nothing_left_over")
def test_reconciliation_sees_a_price_that_was_changed_at_stripe(billing: Billing, subscriber: Account) -> None:
    foreign, held = make_price(billing.stripe), billing.stripe.account
    with held.changing():
        item = held.find("subscription", billing.subscription_of(subscriber))["items"]["data"][0]
        item["price"] = held.find("price", foreign)

    assert billing.in_app(reconcile).drifted == 1
    assert tier_of(subscriber) == "basic"


@pytest.mark.usefixtures("_nothing_left_over")
def test_reconciliation_gives_back_what_a_wrong_price_in_the_settings_took(
    billing: Billing, new_subscriber: Callable[[], Account], monkeypatch: pytest.MonkeyPatch
) -> None:
    people, right, other = [new_subscriber() for _ in range(2)], billing.price_id, make_price(billing.stripe)
    monkeypatch.setitem(billing.app.config, "STRIPE_PRICE_ID", (other,))
    billing.in_app(reconcile)
    assert [tier_of(each) for each in people] == ["basic", "basic"]
    for each in people:
        billing.stripe.renew(billing.subscription_of(each))
    billing.tell_all()
    billing.work()

    monkeypatch.setitem(billing.app.config, "STRIPE_PRICE_ID", (other, right))
    assert billing.in_app(reconcile).drifted >= 2
    assert [tier_of(each) for each in people] == ["pro", "pro"]


@pytest.mark.usefixtures("_nothing_left_over")
def test_customer_who_cannot_be_read_keeps_nobody_else_from_being_repaired(
    billing: Billing, new_subscriber: Callable[[], Account], caplog: pytest.LogCaptureFixture
) -> None:
    people = [new_subscriber() for _ in range(3)]
    for each in people:
        billing.stripe.set_status(billing.subscription_of(each), "unpaid")

    with unknown_at_stripe(billing.stripe, billing.customer_of(people[1])):
        report = billing.in_app(reconcile)

    assert (report.failed, report.drifted) == (1, 2)
    assert [tier_of(each) for each in people] == ["basic", "pro", "basic"]
    assert [said["reason"] for said in logged(caplog, "customer_failed")] == ["customer_missing"]
    assert billing.rows("SELECT failed FROM billing_reconciliation")[0].failed == 1


@pytest.mark.usefixtures("_nothing_left_over")
@pytest.mark.parametrize("most", [1, 2])
def test_reconciliation_gives_up_when_several_in_a_row_cannot_be_read(
    billing: Billing, new_subscriber: Callable[[], Account], monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """Of five customers, newest first, every other one cannot be read."""
    monkeypatch.setattr("chatapi.subscriptions.reconcile.GIVE_UP_AFTER", most)
    people = [new_subscriber() for _ in range(5)]
    for each in people:
        billing.stripe.set_status(billing.subscription_of(each), "unpaid")
    unreadable, read = {billing.customer_of(each) for each in people[::2]}, StripeGateway.subscriptions_of

    def read_some(stripe: StripeGateway, customer_id: str) -> list[RemoteSubscription]:
        if customer_id in unreadable:
            raise BillingUnavailableError("unreadable")
        return read(stripe, customer_id)

    monkeypatch.setattr(StripeGateway, "subscriptions_of", read_some)
    if most == 1:
        with pytest.raises(BillingUnavailableError):
            billing.in_app(reconcile)
    else:
        report = billing.in_app(reconcile)
        assert (report.failed, report.drifted) == (3, 2)

    assert [tier_of(each) for each in people[1::2]] == (["pro", "pro"] if most == 1 else ["basic", "basic"])
    row = billing.rows(
        "SELECT due_at = not_before AS is_same, due_at - now() < interval '301 s' AS is_soon FROM "
        "billing_reconciliation"
    )[0]
    assert (row.is_same, row.is_soon) == (True, most == 1)


@pytest.mark.usefixtures("_nothing_left_over")
def test_key_of_another_account_takes_nothing_from_anybody(
    billing: Billing,
    new_subscriber: Callable[[], Account],
    make_app: Callable[..., Flask],
) -> None:
    people = [new_subscriber() for _ in range(4)]
    with StripeStandin() as empty:
        prices = f"{make_price(empty)},{billing.price_id}"
        secret = billing.app.config["JWT_SECRET"]
        elsewhere = make_app(STRIPE_API_BASE=empty.url, STRIPE_PRICE_ID=prices, JWT_SECRET=secret)
        with elsewhere.app_context():
            assert reconcile().failed >= 4
        people[0].client = elsewhere.test_client()
        assert people[0].call("POST", "/subscribe/pro").get_json()["error"] == "already_subscribed"
        assert people[0].call("POST", "/subscription/cancel").get_json()["error"] == "billing_unavailable"

    assert [tier_of(each) for each in people] == ["pro"] * 4
    assert billing.in_app(reconcile).drifted == 0


def test_event_waits_while_stripe_does_not_know_its_customer(billing: Billing, subscriber: Account) -> None:
    billing.stripe.cancel_now(billing.subscription_of(subscriber))
    event = billing.news()[-1]

    with unknown_at_stripe(billing.stripe, billing.customer_of(subscriber)):
        billing.tell(event)
        billing.work()
        row = billing.event_row(event["id"])
        assert (row.status, row.reason) == ("retrying", "customer_missing")
        assert tier_of(subscriber) == "pro"

    billing.work()
    assert billing.event_row(event["id"]).status == "handled"
    assert tier_of(subscriber) == "basic"


def test_closure_waits_while_stripe_does_not_know_its_customer(billing: Billing, subscriber: Account) -> None:
    customer, subscription_id = billing.customer_of(subscriber), billing.subscription_of(subscriber)
    with unknown_at_stripe(billing.stripe, customer):
        subscriber.call("DELETE", "/user/me")
        billing.work()
    (closure,) = billing.rows("SELECT * FROM billing_closures WHERE stripe_customer_id = :id", id=customer)
    assert (closure.last_error, closure.confirmed_at) == ("customer_missing", None)

    billing.work()
    assert billing.stripe.account.find("subscription", subscription_id)["status"] == "canceled"


def test_checkout_makes_a_new_customer_when_stripe_does_not_know_the_old(billing: Billing, customer: Account) -> None:
    before = billing.customer_of(customer)
    with unknown_at_stripe(billing.stripe, before):
        session_id = billing.check_out(customer)
        assert billing.customer_of(customer) != before
        billing.stripe.pay(session_id)
        billing.tell_all()
        billing.work()

    assert tier_of(customer) == "pro"


@pytest.mark.parametrize("name", ["STRIPE_PRICE_ID", "FRONTEND_URL"])
def test_open_checkout_is_replaced_when_its_terms_are_not_those_of_now(
    billing: Billing, account: Account, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    first = billing.check_out(account)
    assert billing.check_out(account) == first
    value = (make_price(billing.stripe), billing.price_id) if name == "STRIPE_PRICE_ID" else "https://new.example"
    monkeypatch.setitem(billing.app.config, name, value)

    second = billing.check_out(account)

    assert second != first
    assert open_sessions(billing, account) == [second]
    assert billing.check_out(account) == second


def test_checkout_that_could_not_be_closed_is_closed_later(billing: Billing, customer: Account) -> None:
    """Something runs that was made elsewhere, and Stripe fails just as the page is to be closed."""
    assert len(open_sessions(billing, customer)) == 1
    billing.stripe.subscribe(billing.customer_of(customer), billing.price_id)
    billing.stripe.add_fault(Fault("500", path="/v1/checkout/sessions"))
    billing.tell_all()
    billing.work()
    billing.stripe.clear()
    assert tier_of(customer) == "pro"
    assert len(open_sessions(billing, customer)) == 1

    billing.in_app(reconcile)

    assert open_sessions(billing, customer) == []


def test_checkout_goes_on_when_the_session_to_be_closed_is_gone(
    billing: Billing, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    billing.check_out(account)
    monkeypatch.setitem(billing.app.config, "FRONTEND_URL", "https://new.example")
    billing.stripe.add_fault(Fault("404", path="/v1/checkout/sessions/.*/expire", times=1))

    assert account.call("POST", "/subscribe/pro").status_code == 200


def test_checkout_of_an_account_that_is_being_erased_is_401(billing: Billing, account: Account) -> None:
    """Erasing has the user's row, and is not done yet."""
    with ThreadPoolExecutor(1) as pool:
        with billing.app.app_context():
            db.session.execute(text("SELECT 1 FROM users WHERE id = :id FOR UPDATE"), {"id": account.id})
            answer = pool.submit(account.call, "POST", "/subscribe/pro")
            time.sleep(0.5)
            db.session.execute(text("DELETE FROM users WHERE id = :id"), {"id": account.id})
            db.session.commit()
        began = time.monotonic()
        assert answer.result().status_code == 401
    assert time.monotonic() - began < 3  # It does not wait for a claim that nobody has.


def test_dated_end_beyond_the_period_gives_way_to_cancelling_and_is_taken_back_by_resuming(
    billing: Billing, subscriber: Account
) -> None:
    subscription_id = billing.subscription_of(subscriber)
    remote = billing.stripe.account.find("subscription", subscription_id)
    late = int(time.time()) + 100 * 86400
    stripe_client(billing.stripe).v1.subscriptions.update(subscription_id, {"cancel_at": late})
    billing.tell_all()
    billing.work()
    shown = subscriber.call("GET", "/subscription/status").get_json()["subscription"]
    assert shown["cancel_at_period_end"] is False  # There is another payment to come.

    cancelled = subscriber.call("POST", "/subscription/cancel").get_json()["subscription"]
    assert cancelled["cancel_at_period_end"] is True
    assert remote["cancel_at"] == remote["items"]["data"][0]["current_period_end"]

    stripe_client(billing.stripe).v1.subscriptions.update(subscription_id, {"cancel_at_period_end": False})
    stripe_client(billing.stripe).v1.subscriptions.update(subscription_id, {"cancel_at": late})
    assert subscriber.call("POST", "/subscription/resume").status_code == 200
    assert remote["cancel_at"] is None


def test_cancelling_goes_on_when_one_of_two_has_ended_meanwhile(billing: Billing, subscriber: Account) -> None:
    first = billing.subscription_of(subscriber)
    second = billing.stripe.subscribe(billing.customer_of(subscriber), billing.price_id)["id"]
    billing.stripe.add_fault(Fault("404", path=f"/v1/subscriptions/{second}", method="POST", times=1))

    assert subscriber.call("POST", "/subscription/cancel").status_code == 200
    assert billing.stripe.account.find("subscription", first)["cancel_at_period_end"] is True


def test_cancelling_what_has_ended_meanwhile_is_409(billing: Billing, subscriber: Account) -> None:
    billing.stripe.add_fault(Fault("404", path="/v1/subscriptions/", method="POST", times=1))

    answer = subscriber.call("POST", "/subscription/cancel")
    assert (answer.status_code, answer.get_json()["error"]) == (409, "not_subscribed")


def test_portal_of_a_customer_who_is_deleted_just_then_is_409(billing: Billing, subscriber: Account) -> None:
    billing.stripe.add_fault(Fault("404", path="/v1/billing_portal", times=1))

    answer = subscriber.call("POST", "/subscription/portal")
    assert (answer.status_code, answer.get_json()["error"]) == (409, "not_subscribed")


def test_slow_stripe_is_given_up_after_some_seconds_in_all(billing: Billing, customer: Account) -> None:
    """Each answer would come in time; together they would not."""
    stripe = billing.in_app(gateway, Patience.GLANCE)
    assert stripe.read_customer(billing.customer_of(customer)).id == billing.customer_of(customer)
    time.sleep(2)

    with pytest.raises(BillingUnavailableError):
        stripe.read_customer(billing.customer_of(customer))


def test_events_of_foreign_customers_who_are_deleted_alert_nobody(billing: Billing) -> None:
    client = stripe_client(billing.stripe).v1
    plain, other = client.customers.create({}), client.customers.create({})
    billing.stripe.subscribe(other.id, make_price(billing.stripe))
    for each in (plain, other):
        client.customers.delete(each.id)
    events = billing.news()
    billing.tell_all(events)
    billing.work()

    rows = [billing.event_row(event["id"]) for event in events]
    assert {row.status for row in rows} == {"ignored"}
    assert "customer_deleted" in {row.reason for row in rows}
