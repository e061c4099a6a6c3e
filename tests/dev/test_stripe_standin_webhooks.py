"""Delivery of the Stripe stand-in's events: signatures, retries, and what tests can do to it."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator

import pytest
import stripe

from chatapi.dev.stripe.wire import ApiError
from tests.dev.stripe_support import Receiver, Shop, open_shop
from tests.support import wait_for

FAST = (0.05, 0.05, 0.1)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    running = Receiver()
    yield running
    running.stop()


@pytest.fixture
def shop() -> Iterator[Shop]:
    with open_shop(backoff_seconds=FAST) as opened:
        yield opened


def names(receiver: Receiver, secret: str) -> list[str]:
    """Return the names of the customers that events were taken of."""
    return [event.data.object["name"] for event in receiver.events(secret)]


def make_customers(shop: Shop, count: int) -> list[str]:
    made = [f"customer {number}" for number in range(count)]
    for name in made:
        shop.v1.customers.create({"name": name})
    return made


def test_events_arrive_signed_when_an_endpoint_wants_them(shop: Shop, receiver: Receiver) -> None:
    secret = shop.standin.add_webhook(receiver.url)
    session = shop.session(customer=shop.customer().id)
    shop.standin.pay(session.id)

    assert shop.standin.wait_until_delivered()
    taken = {event.id: event for event in receiver.events(secret)}
    made = shop.standin.events()[2:]  # The product and the price came before the endpoint.
    assert set(taken) == {event["id"] for event in made}
    completed = next(event for event in taken.values() if event.type == "checkout.session.completed")
    assert completed.data.object["id"] == session.id
    assert completed.api_version == stripe.api_version
    assert completed.request is not None
    assert [event["pending_webhooks"] for event in made] == [0] * len(made)
    with pytest.raises(stripe.SignatureVerificationError):
        receiver.events("whsec_other")


def test_payload_is_json_over_many_lines_when_sent(shop: Shop, receiver: Receiver) -> None:
    shop.standin.add_webhook(receiver.url)
    make_customers(shop, 1)
    assert shop.standin.wait_until_delivered()

    [(payload, _)] = receiver.taken
    assert payload.startswith(b"{\n  ")
    assert json.loads(payload)["object"] == "event"


def test_whole_address_is_used_when_it_has_a_query(shop: Shop, receiver: Receiver) -> None:
    shop.standin.add_webhook(receiver.url + "?from=stripe")
    shop.standin.add_webhook(receiver.url.removesuffix("/webhook/stripe"))
    make_customers(shop, 1)

    assert shop.standin.wait_until_delivered()
    assert sorted(receiver.paths) == ["/", "/webhook/stripe?from=stripe"]


def test_only_wanted_events_arrive_when_an_endpoint_names_types(shop: Shop, receiver: Receiver) -> None:
    made = shop.v1.webhook_endpoints.create({"url": receiver.url, "enabled_events": ["customer.deleted", "price.*"]})
    customer = shop.customer()
    shop.v1.customers.delete(customer.id)
    shop.v1.prices.update(shop.price.id, {"nickname": "x"})

    assert shop.standin.wait_until_delivered()
    assert {event.type for event in receiver.events(made.secret)} == {"customer.deleted", "price.updated"}


def test_endpoint_shows_its_secret_only_when_made(shop: Shop, receiver: Receiver) -> None:
    made = shop.v1.webhook_endpoints.create(
        {"url": receiver.url, "enabled_events": ["*"], "description": "Ours", "metadata": {"a": "b"}}
    )
    shown = shop.v1.webhook_endpoints.retrieve(made.id)
    changed = shop.v1.webhook_endpoints.update(made.id, {"disabled": True, "url": receiver.url + "/2"})
    listed = shop.v1.webhook_endpoints.list().data
    make_customers(shop, 1)

    assert made.secret.startswith("whsec_")
    assert "secret" not in {**shown.to_dict(), **listed[0].to_dict()}
    assert (shown.status, shown.description, shown.metadata.to_dict()) == ("enabled", "Ours", {"a": "b"})
    assert (changed.status, changed.url) == ("disabled", receiver.url + "/2")
    assert shop.standin.wait_until_delivered()
    assert receiver.taken == []
    assert shop.v1.webhook_endpoints.delete(made.id).deleted
    with pytest.raises(stripe.InvalidRequestError):
        shop.v1.webhook_endpoints.retrieve(made.id)


def test_event_is_sent_again_when_it_was_not_taken(shop: Shop, receiver: Receiver) -> None:
    secret = shop.standin.add_webhook(receiver.url)
    receiver.statuses = [500, 302, 404]
    make_customers(shop, 1)

    assert shop.standin.wait_until_delivered()
    assert [attempt.status for attempt in shop.standin.deliveries] == [500, 302, 404, 200]
    assert [attempt.number for attempt in shop.standin.deliveries] == [1, 2, 3, 4]
    assert len({event.id for event in receiver.events(secret)}) == 1


def test_event_is_sent_again_when_nobody_answers(shop: Shop, receiver: Receiver) -> None:
    receiver.stop()
    shop.standin.add_webhook(receiver.url)
    make_customers(shop, 1)

    assert not shop.standin.wait_until_delivered(0.3)
    [event] = shop.v1.events.list({"delivery_success": False}).data
    assert event.pending_webhooks == 1
    assert {attempt.status for attempt in shop.standin.deliveries} == {None}
    assert len(shop.standin.deliveries) > 1


def test_both_secrets_sign_when_one_was_rotated(shop: Shop, receiver: Receiver) -> None:
    old = shop.standin.add_webhook(receiver.url, "whsec_old")
    new = shop.standin.rotate_secret(receiver.url)
    make_customers(shop, 1)
    assert shop.standin.wait_until_delivered()

    assert (old, len(receiver.events(old)), len(receiver.events(new))) == ("whsec_old", 1, 1)
    newest = shop.standin.rotate_secret(keep_old=False)
    make_customers(shop, 1)
    assert shop.standin.wait_until_delivered()
    payload, signature = receiver.taken[-1]
    stripe.Webhook.construct_event(payload, signature, newest)
    with pytest.raises(stripe.SignatureVerificationError):
        stripe.Webhook.construct_event(payload, signature, new)


def test_signature_is_good_for_its_time_when_made_for_a_test(shop: Shop) -> None:
    payload = json.dumps(shop.standin.events()[0]).encode()
    secret = shop.standin.add_webhook("http://127.0.0.1:9/")

    stripe.Webhook.construct_event(payload, shop.standin.sign(payload), secret)
    stripe.Webhook.construct_event(payload, shop.standin.sign(payload, "whsec_x"), "whsec_x")
    old = shop.standin.sign(payload, secret, timestamp=int(time.time()) - 301)
    with pytest.raises(stripe.SignatureVerificationError, match="tolerance"):
        stripe.Webhook.construct_event(payload, old, secret)


@pytest.mark.parametrize("order", ["as made", "reversed", "shuffled"])
def test_held_events_arrive_in_the_order_asked_for_when_released(shop: Shop, receiver: Receiver, order: str) -> None:
    secret = shop.standin.add_webhook(receiver.url)
    shop.standin.hold_deliveries()
    made = make_customers(shop, 8)
    assert shop.standin.wait_until_delivered(1)
    assert receiver.taken == []

    assert shop.standin.release_deliveries(order, seed=1) == 8

    taken = names(receiver, secret)
    assert sorted(taken) == made
    assert (taken == made) == (order == "as made")
    assert (taken == made[::-1]) == (order == "reversed")
    make_customers(shop, 1)
    assert shop.standin.wait_until_delivered()
    assert len(receiver.taken) == 9


def test_held_events_are_lost_and_repeated_when_asked_for(shop: Shop, receiver: Receiver) -> None:
    secret = shop.standin.add_webhook(receiver.url)
    shop.standin.hold_deliveries()
    make_customers(shop, 6)

    assert shop.standin.release_deliveries("shuffled", seed=7, drop=2, copies=3) == 12

    assert sorted(Counter(names(receiver, secret)).values()) == [3, 3, 3, 3]
    assert shop.standin.wait_until_delivered()
    assert len(receiver.taken) == 12
    with pytest.raises(ApiError, match="order must be"):
        shop.standin.release_deliveries("random")


def test_next_events_are_lost_when_dropped(shop: Shop, receiver: Receiver) -> None:
    secret = shop.standin.add_webhook(receiver.url)
    shop.standin.drop_deliveries(2)
    made = make_customers(shop, 3)
    assert shop.standin.wait_until_delivered()
    assert names(receiver, secret) == made[2:]

    shop.standin.drop_deliveries()
    make_customers(shop, 3)
    shop.standin.drop_deliveries(0)
    make_customers(shop, 1)
    assert shop.standin.wait_until_delivered()
    assert len(receiver.taken) == 2
    assert len(shop.standin.events("customer.created")) == 7


def test_events_come_late_when_delayed(shop: Shop, receiver: Receiver) -> None:
    shop.standin.add_webhook(receiver.url)
    shop.standin.delay_deliveries(0.4)
    began = time.monotonic()
    make_customers(shop, 2)

    assert not shop.standin.wait_until_delivered(0.1)
    assert receiver.taken == []
    assert shop.standin.wait_until_delivered()
    assert time.monotonic() - began >= 0.4
    assert len(receiver.taken) == 2


def test_event_comes_again_when_redelivered(shop: Shop, receiver: Receiver) -> None:
    secret = shop.standin.add_webhook(receiver.url)
    make_customers(shop, 1)
    assert shop.standin.wait_until_delivered()
    [event] = receiver.events(secret)

    shop.standin.redeliver(event.id, copies=50)

    assert shop.standin.wait_until_delivered()
    assert {taken.id for taken in receiver.events(secret)} == {event.id}
    assert len(receiver.taken) == 51


def test_held_events_are_sent_when_all_is_to_be_well_again(shop: Shop, receiver: Receiver) -> None:
    shop.standin.add_webhook(receiver.url)
    shop.standin.hold_deliveries()
    make_customers(shop, 2)
    shop.standin.drop_deliveries(5)

    shop.standin.clear()
    make_customers(shop, 1)

    wait_for(lambda: len(receiver.taken) == 3, seconds=5, every=0.02)
