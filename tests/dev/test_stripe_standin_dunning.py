"""Money that does not come, at the Stripe stand-in: retries, invoices left open, collection that is paused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import stripe

from chatapi.dev.stripe.account import DunningRules
from tests.dev.stripe_support import DAY_SECONDS, SLACK_SECONDS, Shop, event_types, open_shop


@pytest.fixture
def shop() -> Iterator[Shop]:
    with open_shop() as opened:
        yield opened


@pytest.mark.parametrize("final_status", ["canceled", "unpaid", "past_due"])
def test_retries_follow_the_schedule_and_end_as_set_when_the_card_declines(final_status: str) -> None:
    with open_shop(dunning=DunningRules(retry_days=(3, 5, 7), final_status=final_status)) as shop:
        subscription = shop.subscription()
        failed_at = shop.standin.now()
        assert shop.standin.fail_payment(subscription.id)["status"] == "past_due"
        invoice = shop.reload(subscription).latest_invoice
        assert (invoice.status, invoice.attempt_count) == ("open", 1)
        assert abs(invoice.next_payment_attempt - failed_at - 3 * DAY_SECONDS) <= SLACK_SECONDS
        assert shop.v1.customers.retrieve(subscription.customer).delinquent

        shop.standin.advance(7 * DAY_SECONDS - 60)
        assert shop.status(subscription) == "past_due"
        shop.standin.advance(120)

        ended = shop.reload(subscription)
        assert ended.status == final_status
        assert (ended.latest_invoice.attempt_count, ended.latest_invoice.next_payment_attempt) == (4, None)
        assert ended.latest_invoice.status == "open"
        failures = [event["created"] - failed_at for event in shop.standin.events("invoice.payment_failed")]
        assert [round(seconds / DAY_SECONDS, 2) for seconds in failures] == [0, 3, 5, 7]
        if final_status == "canceled":
            assert ended.cancellation_details.reason == "payment_failed"
            assert event_types(shop.standin)[-1] == "customer.subscription.deleted"


def test_subscription_is_active_again_when_a_retry_succeeds(shop: Shop) -> None:
    subscription = shop.subscription()
    shop.standin.fail_payment(subscription.id)
    before = len(event_types(shop.standin))

    shop.standin.set_card(subscription.customer, "good")
    shop.standin.advance(3 * DAY_SECONDS + 5)

    assert shop.status(subscription) == "active"
    assert event_types(shop.standin, before) == [
        *("invoice.updated", "invoice.paid", "invoice.payment_succeeded"),
        *("customer.subscription.updated", "customer.updated"),
    ]
    assert not shop.v1.customers.retrieve(subscription.customer).delinquent


def test_unpaid_subscription_gets_drafts_until_the_open_invoice_is_paid() -> None:
    with open_shop(dunning=DunningRules(retry_days=(), final_status="unpaid")) as shop:
        subscription = shop.subscription()
        assert shop.standin.fail_payment(subscription.id)["status"] == "unpaid"
        shop.standin.renew(subscription.id)

        statuses = [invoice.status for invoice in shop.v1.invoices.list({"subscription": subscription.id}).data]
        assert statuses == ["draft", "open", "paid"]
        assert shop.standin.pay_open_invoice(subscription.id)["status"] == "active"


def test_invoice_is_paid_or_declined_when_the_sdk_asks(shop: Shop) -> None:
    subscription = shop.subscription()
    shop.standin.fail_payment(subscription.id)
    invoice_id = shop.reload(subscription).latest_invoice.id

    with pytest.raises(stripe.CardError) as declined:
        shop.v1.invoices.pay(invoice_id)
    after = shop.v1.invoices.retrieve(invoice_id)
    shop.standin.set_card(subscription.customer, "good")
    paid = shop.v1.invoices.pay(invoice_id)

    assert (declined.value.code, declined.value.http_status) == ("card_declined", 402)
    assert after.attempt_count == 2
    assert after.next_payment_attempt is not None
    assert (paid.status, paid.amount_remaining) == ("paid", 0)
    assert (paid.next_payment_attempt, paid.auto_advance) == (None, False)
    assert shop.status(subscription) == "active"
    with pytest.raises(stripe.InvalidRequestError, match="already paid"):
        shop.v1.invoices.pay(invoice_id)


def test_subscription_is_active_again_when_its_open_invoice_is_voided(shop: Shop) -> None:
    subscription = shop.subscription()
    shop.standin.fail_payment(subscription.id)
    [invoice] = shop.v1.invoices.list({"customer": subscription.customer, "status": "open"}).data

    voided = shop.v1.invoices.void_invoice(invoice.id)

    assert (voided.status, shop.status(subscription)) == ("void", "active")
    assert "invoice.voided" in event_types(shop.standin)
    with pytest.raises(stripe.InvalidRequestError):
        shop.v1.invoices.void_invoice(invoice.id)


def test_open_invoice_is_left_alone_when_its_subscription_has_ended(shop: Shop) -> None:
    subscription = shop.subscription()
    shop.standin.fail_payment(subscription.id)
    shop.v1.subscriptions.cancel(subscription.id)
    invoice_id = shop.reload(subscription).latest_invoice.id

    shop.standin.advance(60 * DAY_SECONDS)

    invoice = shop.v1.invoices.retrieve(invoice_id)
    assert (invoice.status, invoice.attempt_count) == ("open", 1)
    assert (invoice.auto_advance, invoice.next_payment_attempt) == (False, None)
    assert shop.status(subscription) == "canceled"
    assert len(shop.v1.invoices.list({"subscription": subscription.id}).data) == 2


@pytest.mark.parametrize(
    ("behaviour", "status"), [("void", "void"), ("mark_uncollectible", "uncollectible"), ("keep_as_draft", "draft")]
)
def test_renewal_is_not_collected_when_collection_is_paused(shop: Shop, behaviour: str, status: str) -> None:
    subscription = shop.subscription()
    shop.v1.subscriptions.update(subscription.id, {"pause_collection": {"behavior": behaviour}})

    shop.standin.renew(subscription.id)

    assert (shop.reload(subscription).latest_invoice.status, shop.status(subscription)) == (status, "active")
    cleared = shop.v1.subscriptions.update(subscription.id, {"pause_collection": ""})
    assert cleared.pause_collection is None


def test_collection_goes_on_when_its_pause_is_over(shop: Shop) -> None:
    subscription = shop.subscription()
    pause = {"behavior": "void", "resumes_at": shop.standin.now() + DAY_SECONDS}
    shop.v1.subscriptions.update(subscription.id, {"pause_collection": pause})

    shop.standin.advance(DAY_SECONDS + 5)

    assert shop.reload(subscription).pause_collection is None


def test_retry_does_not_happen_when_the_subscription_ends_before_it(shop: Shop) -> None:
    subscription = shop.subscription()
    shop.standin.fail_payment(subscription.id)
    shop.v1.subscriptions.update(subscription.id, {"cancel_at": shop.standin.now() + DAY_SECONDS})

    shop.standin.advance(30 * DAY_SECONDS)

    ended = shop.reload(subscription)
    assert (ended.status, ended.latest_invoice.attempt_count) == ("canceled", 1)


def test_subscription_made_by_the_api_depends_on_the_card(shop: Shop) -> None:
    def subscribe(card: str | None) -> Any:
        customer = shop.customer(card=card)
        return shop.v1.subscriptions.create({"customer": customer.id, "items": [{"price": shop.price.id}]})

    assert subscribe("good").status == "active"
    with pytest.raises(stripe.InvalidRequestError, match="no attached payment source"):
        subscribe(None)
    incomplete = subscribe("declines")
    other = subscribe("declines")
    assert incomplete.status == "incomplete"
    assert shop.standin.pay_open_invoice(other.id)["status"] == "active"

    shop.standin.advance(23 * 3600 + 5)

    expired = shop.reload(incomplete)
    assert (expired.status, expired.latest_invoice.status) == ("incomplete_expired", "void")
    assert shop.status(other) == "active"
