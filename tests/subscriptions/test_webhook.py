"""What Stripe sends: only what it has signed just now is believed, each event is stored once, and all are answered."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest
from flask import Flask

from chatapi.dev.stripe.faults import Fault
from chatapi.dev.stripe.standin import StripeStandin
from chatapi.extensions import in_transaction
from chatapi.subscriptions.events import handle_event, prune_events
from tests.subscriptions.support import Billing, Json, sign, tier_of
from tests.support import WEBHOOK_SECRET, Account, make_price, race, stripe_client


@pytest.fixture
def event(billing: Billing, account: Account) -> Json:
    """An event of a payment that nobody was told of yet."""
    session = billing.stripe.pay(billing.check_out(account))
    return next(
        event
        for event in billing.news()
        if event["type"] == "customer.subscription.created" and event["data"]["object"]["id"] == session["subscription"]
    )


def stored(billing: Billing, event_id: str) -> int:
    return len(billing.rows("SELECT id FROM stripe_events WHERE event_id = :id", id=event_id))


def payload_of(event: Json) -> bytes:
    return json.dumps(event).encode()


@pytest.mark.parametrize(
    "make_header",
    [
        lambda _payload: "",
        lambda payload: sign(payload, "whsec_somebody_elses"),
        lambda payload: sign(payload, timestamp=time.time() - 400),
        lambda payload: sign(payload, timestamp=time.time() + 400),
        lambda payload: sign(payload + b" "),
        lambda payload: sign(payload).replace("v1=", "v0="),
        lambda payload: sign(payload).split(",")[0],
        lambda payload: sign(payload).split(",")[1],
        lambda _payload: f"t={int(time.time())},v1=",
        lambda _payload: "t=soon,v1=abc",
        lambda payload: sign(payload).replace(",", "=x,", 1),
        lambda _payload: "t=" + "9" * 5000 + ",v1=abc",
        lambda _payload: f"t={int(time.time())},v1=\u00e9",
        lambda _payload: "garbage",
    ],
)
def test_message_is_refused_when_its_signature_is_not_good(
    billing: Billing, event: Json, make_header: Callable[[bytes], str]
) -> None:
    payload = payload_of(event)

    answer = billing.send(payload, make_header(payload))

    assert (answer.status_code, answer.get_json()["error"]) == (400, "invalid_signature")
    assert stored(billing, event["id"]) == 0


def test_message_without_signature_is_refused(billing: Billing, event: Json) -> None:
    answer = billing.app.test_client().post("/webhook/stripe", data=payload_of(event))

    assert answer.status_code == 400
    assert stored(billing, event["id"]) == 0


def test_one_good_signature_among_several_is_enough(billing: Billing, event: Json) -> None:
    payload = payload_of(event)
    good = sign(payload)

    answer = billing.send(payload, good.replace(",v1=", ",v0=old,v1=" + "0" * 64 + ",v1="))

    assert answer.get_json() == {"received": True}


def test_secrets_can_be_rotated(
    billing: Billing, event: Json, make_app: Callable[..., Flask], stripe: StripeStandin
) -> None:
    rotating = Billing(make_app(STRIPE_WEBHOOK_SECRET=f"whsec_the_new_one, {WEBHOOK_SECRET}"), stripe)
    payload = payload_of(event)

    assert rotating.send(payload, sign(payload)).status_code == 200
    assert rotating.send(payload, sign(payload, "whsec_the_new_one")).status_code == 200
    assert rotating.send(payload, sign(payload, "whsec_another")).status_code == 400
    assert stored(billing, event["id"]) == 1


def test_signature_is_of_the_bytes_as_they_came(billing: Billing, event: Json) -> None:
    spaced = json.dumps(event, indent=7, ensure_ascii=False).encode()

    assert billing.send(spaced).status_code == 200


def test_body_of_a_mebibyte_is_taken_and_a_longer_one_is_not(billing: Billing, event: Json) -> None:
    longest = payload_of(event).ljust(1024 * 1024)

    assert billing.send(longest + b" ").status_code == 413
    assert stored(billing, event["id"]) == 0
    assert billing.send(longest).status_code == 200


@pytest.mark.parametrize(
    "payload",
    [
        b"[]",
        b"null",
        b"1",
        b'"event"',
        b"{}",
        b"{",
        b"\xff",
        b'{"object": "event"}',
        b'{"object": "v2.core.event", "id": "evt_1", "type": "x"}',
        b'{"object": "event", "id": 1, "type": "x", "created": 1, "data": {"object": {}}}',
        b'{"object": "event", "id": "evt_\\u0000", "type": "x", "created": 1, "data": {"object": {}}}',
        b'{"object": "event", "id": "", "type": "x", "created": 1, "data": {"object": {}}}',
        b'{"object": "event", "id": "evt_1", "type": ["x"], "created": 1, "data": {"object": {}}}',
        b'{"object": "event", "id": "evt_1", "type": "x", "created": "now", "data": {"object": {}}}',
        b'{"object": "event", "id": "evt_1", "type": "x", "created": 1e300, "data": {"object": {}}}',
        b'{"object": "event", "id": "evt_1", "type": "x", "created": 1, "data": []}',
        b'{"object": "event", "id": "evt_1", "type": "x", "created": 1, "data": {"object": null}}',
        b'{"object": "event", "id": "' + b"e" * 300 + b'", "type": "x", "created": 1, "data": {"object": {}}}',
        b"[" * 60_000,
    ],
)
def test_signed_message_that_is_no_event_is_a_400(billing: Billing, payload: bytes) -> None:
    before = billing.rows("SELECT count(*) AS found FROM stripe_events")[0].found
    header = sign(payload) if payload != b"\xff" else "t=1,v1=0"

    answer = billing.send(payload, header)

    assert answer.status_code == 400, answer.get_json()
    assert billing.rows("SELECT count(*) AS found FROM stripe_events")[0].found == before


@pytest.mark.parametrize(
    "changes",
    [
        {"customer": 5},
        {"customer": {"id": 7}},
        {"customer": None},
        {"items": None},
        {"items": {"data": "none"}},
        {"items": {"data": 5}},
        {"customer": "cus_\ud800"},
        {"id": "sub_\ud800", "items": None},
        {"items": {"data": [None, {"price": 5}, {"price": {"id": []}}]}},
        {"object": "invoice", "parent": "nobody"},
        {"object": "invoice", "parent": {"subscription_details": {"subscription": 1}}},
        {"object": "checkout.session", "mode": "payment", "metadata": {"user_id": "somebody"}},
        {"object": "checkout.session", "mode": "subscription", "metadata": ["user_id"]},
    ],
)
def test_strange_object_is_stored_as_ignored(billing: Billing, event: Json, changes: Json) -> None:
    event["data"]["object"].update(changes)

    assert billing.tell(event).status_code == 200
    assert billing.event_row(event["id"]).status == "ignored"


def test_event_sent_fifty_times_at_once_is_stored_once_and_has_one_effect(
    billing: Billing, event: Json, account: Account
) -> None:
    answers = race(50, lambda _: billing.tell(event))

    assert [answer.get_json() for answer in answers] == [{"received": True}] * 50
    assert stored(billing, event["id"]) == 1
    row = billing.event_row(event["id"])
    race(10, lambda _: billing.in_app(handle_event, row.id))
    assert tier_of(account) == "pro"
    assert len(account.call("GET", "/subscription/history").get_json()["subscription_history"]) == 1
    handled = billing.event_row(event["id"])
    assert handled.status == "handled"
    assert billing.tell(event).get_json() == {"received": True}
    assert billing.event_row(event["id"]) == handled


def test_event_is_answered_without_asking_stripe(billing: Billing, event: Json) -> None:
    billing.stripe.add_fault(Fault("hang"))
    billing.stripe.forget_requests()

    began = time.monotonic()
    assert billing.tell(event).status_code == 200
    assert time.monotonic() - began < 2
    assert not billing.stripe.requests


def test_event_of_the_other_mode_is_stored_as_ignored(billing: Billing, event: Json, account: Account) -> None:
    event["livemode"] = True

    assert billing.tell(event).get_json() == {"received": True}
    billing.work()
    row = billing.event_row(event["id"])
    assert (row.status, row.reason, row.due_at) == ("ignored", "wrong_livemode", None)
    assert tier_of(account) == "basic"


def test_subscription_to_something_else_is_stored_as_ignored(
    billing: Billing, customer: Account, stripe: StripeStandin
) -> None:
    stripe.subscribe(billing.customer_of(customer), make_price(stripe))
    events = billing.news()
    made = next(event for event in events if event["type"] == "customer.subscription.created")

    assert billing.tell(made).get_json() == {"received": True}
    row = billing.event_row(made["id"])
    assert (row.status, row.reason) == ("ignored", "foreign_price")
    billing.tell_all(events)
    billing.work()
    assert {billing.event_row(event["id"]).status for event in events} <= {"ignored", "handled"}
    assert tier_of(customer) == "basic"
    assert customer.call("GET", "/subscription/history").get_json() == {"subscription_history": []}
    assert billing.check_out(customer)


def test_customer_of_something_else_is_nobody_to_look_for(billing: Billing, stripe: StripeStandin) -> None:
    stranger = stripe_client(stripe).v1.customers.create({})
    other = stripe.subscribe(stranger.id, make_price(stripe))
    stripe.fail_payment(other["id"])
    events = billing.news()

    billing.tell_all(events)
    billing.work()

    assert {billing.event_row(event["id"]).status for event in events} == {"ignored"}


def test_checkout_of_something_else_is_stored_as_ignored(billing: Billing, event: Json) -> None:
    session = {"object": "checkout.session", "mode": "subscription", "customer": "cus_other", "metadata": {}}
    billing.tell(event | {"type": "checkout.session.expired", "data": {"object": session}})

    assert billing.event_row(event["id"]).reason == "foreign_checkout"


def test_subscription_of_ours_that_becomes_something_else_gives_pro_no_more(
    billing: Billing, subscriber: Account, stripe: StripeStandin
) -> None:
    subscription_id = billing.subscription_of(subscriber)
    subscription = stripe.account.find("subscription", subscription_id)
    other = make_price(stripe)
    with stripe.account.changing(), stripe.account.updating(subscription, "customer.subscription.updated"):
        item = subscription["items"]["data"][0]
        item["price"] = stripe.account.find("price", other)

    billing.tell_all()
    billing.work()

    assert tier_of(subscriber) == "basic"


@pytest.mark.parametrize("kind", ["charge.succeeded", "customer.created", "payment_intent.created", "price.updated"])
def test_event_that_changes_no_tier_is_stored_as_ignored(billing: Billing, event: Json, kind: str) -> None:
    event["type"] = kind

    assert billing.tell(event).status_code == 200
    assert billing.event_row(event["id"]).reason == "not_watched"


def test_price_sold_before_is_still_honoured(
    billing: Billing, account: Account, make_app: Callable[..., Flask], stripe: StripeStandin
) -> None:
    dearer = make_price(stripe, unit_amount=1900)
    later = Billing(
        make_app(STRIPE_PRICE_ID=f"{dearer}, {billing.price_id}", JWT_SECRET=billing.app.config["JWT_SECRET"]), stripe
    )
    billing.subscribe(account)
    stripe.renew(billing.subscription_of(account))

    later.tell_all()
    later.work()

    assert tier_of(account) == "pro"


def test_webhook_is_no_part_of_anybodys_request_budget(make_app: Callable[..., Flask], stripe: StripeStandin) -> None:
    billing = Billing(make_app(RATE_LIMIT_MAX_REQUESTS="3"), stripe)

    assert {billing.send(b"{}", "none").status_code for _ in range(8)} == {400}


def test_closed_event_is_pruned_after_ninety_days(billing: Billing, event: Json) -> None:
    billing.tell_all([event])
    billing.work()
    for age, is_left in (("89 days", 1), ("91 days", 0)):
        aged = f"now() - interval '{age}'"
        billing.rows(f"UPDATE stripe_events SET closed_at = {aged} WHERE event_id = :id", id=event["id"])  # noqa: S608
        billing.in_app(in_transaction, prune_events)
        assert stored(billing, event["id"]) == is_left
