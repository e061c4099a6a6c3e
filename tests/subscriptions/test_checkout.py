"""Buying Pro: one customer, one session, whatever is sent, however often, and whatever Stripe does meanwhile."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from flask import Flask

from chatapi.dev.stripe.faults import Fault
from chatapi.dev.stripe.standin import StripeStandin
from tests.subscriptions.support import Billing, Json, tier_of
from tests.support import Account, race, stripe_client, wait_for


def test_payment_makes_pro(billing: Billing, account: Account) -> None:
    answer = account.call("POST", "/subscribe/pro")

    assert answer.status_code == 200
    assert answer.get_json().keys() == {"message", "checkout_url", "session_id"}
    billing.stripe.pay(answer.get_json()["session_id"])
    assert tier_of(account) == "basic"
    billing.tell_all()
    billing.work()
    assert tier_of(account) == "pro"


def test_fifty_checkouts_at_once_make_one_session(billing: Billing, stripe: StripeStandin, account: Account) -> None:
    stripe.add_fault(Fault(path="/v1/checkout/sessions", method="POST", latency_ms=500))

    answers = race(50, lambda _: account.call("POST", "/subscribe/pro"))

    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.get_json()["session_id"] for answer in answers}) == 1
    made = [request.path for request in stripe.requests if request.method == "POST"]
    assert sorted(made) == ["/v1/checkout/sessions", "/v1/customers"]
    assert len(stripe.requests) < 20, "those who waited take what came of it"


def test_second_checkout_is_the_first_one_under_either_name(billing: Billing, account: Account) -> None:
    first = billing.check_out(account)

    again = account.call("POST", "/subscription/pro").get_json()

    assert again["session_id"] == first
    assert again["checkout_url"] == billing.stripe.account.find("checkout.session", first)["url"]


@pytest.mark.parametrize(
    ("body", "media_type"),
    [
        (b'{"price": "price_cheap", "quantity": 100, "user_id": "somebody"}', "application/json"),
        (b'{"success_url": "https://evil.example", "priceId":', "application/json"),
        (b"price=price_cheap", "application/x-www-form-urlencoded"),
        (b"\xff\xfe", "text/plain"),
        (b"", "application/json"),
    ],
)
def test_body_is_ignored(billing: Billing, account: Account, body: bytes, media_type: str) -> None:
    headers = {**account.headers, "Origin": "https://evil.example", "Host": "evil.example"}

    answer = account.client.post("/subscribe/pro", data=body, content_type=media_type, headers=headers)

    assert answer.status_code == 200, answer.get_json()
    asked = next(request.params for request in billing.stripe.requests if request.path == "/v1/checkout/sessions")
    assert asked["line_items"] == [{"price": billing.price_id, "quantity": "1"}]
    assert asked["client_reference_id"] == asked["metadata"]["user_id"] == account.id
    assert asked["success_url"] == "https://chat.example/subscription/success?session_id={CHECKOUT_SESSION_ID}"
    assert asked["cancel_url"] == "https://chat.example/subscription/cancel"
    assert asked["mode"] == "subscription"


def test_stripe_learns_no_number_and_no_name(billing: Billing, account: Account) -> None:
    account.call("PUT", "/user/me", {"name": "Ada", "email": "ada@example.org"})

    billing.check_out(account)

    sent = json.dumps([request.params for request in billing.stripe.requests])
    assert account.id in sent
    assert not any(text in sent for text in (account.mobile_number[1:], "Ada", "ada@"))


def test_subscriber_is_refused_a_second_subscription(billing: Billing, subscriber: Account) -> None:
    billing.stripe.forget_requests()

    answer = subscriber.call("POST", "/subscribe/pro")

    assert (answer.status_code, answer.get_json()["error"]) == (409, "already_subscribed")
    assert not [request for request in billing.stripe.requests if request.method == "POST"]


@pytest.mark.parametrize("status", ["past_due", "unpaid", "paused", "trialing"])
def test_subscription_that_is_not_over_is_in_the_way_of_another(
    billing: Billing, subscriber: Account, status: str
) -> None:
    billing.stripe.set_status(billing.subscription_of(subscriber), status)

    assert subscriber.call("POST", "/subscribe/pro").status_code == 409


def test_payment_that_nobody_told_of_is_in_the_way_of_another(billing: Billing, account: Account) -> None:
    billing.stripe.pay(billing.check_out(account))

    answer = account.call("POST", "/subscribe/pro")

    assert answer.status_code == 409
    assert tier_of(account) == "pro"


def test_payment_while_stripe_is_asked_is_in_the_way_of_another(billing: Billing, account: Account) -> None:
    session_id = billing.check_out(account)
    billing.stripe.forget_requests()
    billing.stripe.add_fault(Fault(path="/v1/customers/cus_", method="GET", latency_ms=700))
    with ThreadPoolExecutor(1) as pool:
        buying = pool.submit(account.call, "POST", "/subscribe/pro")
        wait_for(lambda: any("/v1/customers/" in request.path for request in billing.stripe.requests))
        billing.stripe.pay(session_id)
        answer = buying.result()

    assert (answer.status_code, tier_of(account)) == (409, "pro")


def test_canceled_subscription_is_not_in_the_way_of_a_new_one(billing: Billing, subscriber: Account) -> None:
    billing.stripe.cancel_now(billing.subscription_of(subscriber))

    billing.subscribe(subscriber)

    assert tier_of(subscriber) == "pro"
    assert len(subscriber.call("GET", "/subscription/history").get_json()["subscription_history"]) == 2


def test_expired_session_gives_way_to_a_new_one(billing: Billing, account: Account) -> None:
    first = billing.check_out(account)
    billing.stripe.expire(first)

    assert billing.check_out(account) != first


def test_session_unknown_to_stripe_gives_way_to_a_new_one(billing: Billing, account: Account) -> None:
    billing.check_out(account)
    billing.rows("UPDATE billing_customers SET checkout_session_id = 'cs_test_gone' WHERE user_id = :id", id=account.id)

    session_id = billing.check_out(account)

    assert billing.stripe.account.find("checkout.session", session_id)["status"] == "open"


def test_declined_card_leaves_the_session_open(billing: Billing, account: Account) -> None:
    session_id = billing.check_out(account)
    billing.stripe.decline(session_id)

    assert billing.check_out(account) == session_id
    assert tier_of(account) == "basic"


def test_customer_deleted_at_stripe_is_made_anew(billing: Billing, account: Account) -> None:
    first = billing.check_out(account)
    gone = billing.customer_of(account)
    stripe_client(billing.stripe).v1.customers.delete(gone)

    second = billing.check_out(account)

    assert second != first
    assert billing.customer_of(account) != gone
    billing.stripe.pay(second)
    billing.tell_all()
    billing.work()
    assert tier_of(account) == "pro"


def test_changed_terms_make_a_new_session_and_close_the_old(
    billing: Billing, account: Account, make_app: Callable[..., Flask]
) -> None:
    first = billing.check_out(account)
    # As when the answer to making it was lost, and its terms changed before it was asked for again.
    billing.rows("UPDATE billing_customers SET checkout_session_id = NULL WHERE user_id = :id", id=account.id)
    elsewhere = make_app(FRONTEND_URL="https://new.example/", JWT_SECRET=billing.app.config["JWT_SECRET"])
    account.client = elsewhere.test_client()

    second = billing.check_out(account)

    assert billing.stripe.account.find("checkout.session", first)["status"] == "expired"
    session = billing.stripe.account.find("checkout.session", second)
    assert session["cancel_url"] == "https://new.example/subscription/cancel"


@pytest.mark.parametrize("path", ["/v1/customers", "/v1/checkout/sessions"])
def test_lost_answer_makes_nothing_twice(billing: Billing, account: Account, path: str) -> None:
    billing.stripe.add_fault(Fault("lost_answer", path=path, method="POST", times=1))

    session_id = billing.check_out(account)

    customer = billing.customer_of(account)
    sessions = stripe_client(billing.stripe).v1.checkout.sessions.list({"customer": customer})
    assert [session.id for session in sessions.data] == [session_id]
    made = [event for event in billing.stripe.events("customer.created") if _user_of(event) == account.id]
    assert len(made) == 1


@pytest.mark.parametrize("path", ["/v1/customers", "/v1/checkout/sessions"])
def test_process_that_died_half_way_leaves_nothing_twice(billing: Billing, account: Account, path: str) -> None:
    billing.stripe.add_fault(Fault("500", path=path, method="POST", after=True))
    assert account.call("POST", "/subscribe/pro").status_code == 503
    billing.stripe.clear()

    session_id = billing.check_out(account)

    sessions = stripe_client(billing.stripe).v1.checkout.sessions.list({"customer": billing.customer_of(account)})
    assert [session.id for session in sessions.data] == [session_id]
    made = [event for event in billing.stripe.events("customer.created") if _user_of(event) == account.id]
    assert len(made) == 1


@pytest.mark.parametrize("kind", ["401", "403", "429", "500", "503", "cut", "bad_json", "400"])
@pytest.mark.parametrize("path", ["/v1/customers", "/v1/checkout/sessions"])
def test_trouble_at_stripe_is_a_503_and_leaves_nothing_half_made(
    billing: Billing, account: Account, kind: str, path: str
) -> None:
    billing.stripe.add_fault(Fault(kind, path=path, method="POST"))

    answer = account.call("POST", "/subscribe/pro")

    assert (answer.status_code, answer.get_json()["error"]) == (503, "billing_unavailable")
    assert int(answer.headers["Retry-After"]) >= 1
    billing.stripe.clear()
    billing.stripe.pay(billing.check_out(account))


@pytest.mark.slow
def test_hanging_stripe_is_a_503_in_seconds(billing: Billing, account: Account) -> None:
    billing.stripe.add_fault(Fault("hang"))
    began = time.monotonic()

    answer = account.call("POST", "/subscribe/pro")

    assert answer.status_code == 503
    assert time.monotonic() - began < 15
    billing.stripe.clear()
    assert billing.check_out(account)


def test_claim_of_somebody_who_died_lapses(billing: Billing, account: Account) -> None:
    first = billing.check_out(account)
    until = "clock_timestamp() + interval '1 second'"
    billing.rows(f"UPDATE billing_customers SET checkout_claimed_until = {until} WHERE user_id = :id", id=account.id)  # noqa: S608

    assert billing.check_out(account) == first


@pytest.mark.parametrize("path", ["/v1/customers", "/v1/checkout/sessions"])
def test_account_erased_meanwhile_leaves_nobody_to_pay(billing: Billing, account: Account, path: str) -> None:
    billing.stripe.add_fault(Fault(path=path, method="POST", latency_ms=700))
    with ThreadPoolExecutor(1) as pool:
        buying = pool.submit(account.call, "POST", "/subscribe/pro")
        wait_for(lambda: any(request.path == path for request in billing.stripe.requests))
        assert account.call("DELETE", "/user/me").status_code == 204
        answer = buying.result()

    assert answer.status_code == 401
    made = next(event for event in billing.stripe.events("customer.created") if _user_of(event) == account.id)
    customer = made["data"]["object"]["id"]
    assert billing.rows("SELECT 1 FROM billing_closures WHERE stripe_customer_id = :id", id=customer)
    billing.work()
    sessions = stripe_client(billing.stripe).v1.checkout.sessions.list({"customer": customer})
    assert {session.status for session in sessions.data} <= {"expired"}


def test_nothing_can_be_bought_without_a_stripe_account(
    account: Account, make_app: Callable[..., Flask], app: Flask
) -> None:
    names = ("STRIPE_SECRET_KEY", "STRIPE_PRICE_ID", "STRIPE_WEBHOOK_SECRET")
    account.client = make_app(**dict.fromkeys(names, ""), JWT_SECRET=app.config["JWT_SECRET"]).test_client()

    for path in ("/subscribe/pro", "/subscription/cancel", "/subscription/resume", "/subscription/portal"):
        answer = account.call("POST", path)
        assert (answer.status_code, answer.get_json()["error"]) == (503, "billing_not_configured"), path
    status = account.call("GET", "/subscription/status")
    assert (status.status_code, status.get_json()["subscription"]["status"]) == (200, "inactive")
    assert account.client.post("/webhook/stripe", data=b"{}").status_code == 503


def _user_of(event: Json) -> str | None:
    user_id: str | None = event["data"]["object"]["metadata"].get("user_id")
    return user_id
