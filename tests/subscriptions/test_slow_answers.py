"""Answers of Stripe's that trickle in: given up as a whole, and nothing made twice by asking again."""

from __future__ import annotations

import time
from uuid import uuid4

import pytest
import requests

from chatapi.dev.stripe.faults import Fault
from chatapi.dev.stripe.standin import StripeStandin
from chatapi.subscriptions import gateway
from chatapi.subscriptions.gateway import BillingUnavailableError, Patience, StripeGateway, make_client
from chatapi.subscriptions.transport import bounded_session
from tests.subscriptions.support import Billing
from tests.support import STRIPE_KEY, Account, race

BOUND_SECONDS = 0.7
DRIPS = ["drip", "drip_head"]


@pytest.fixture
def impatient(stripe: StripeStandin, monkeypatch: pytest.MonkeyPatch) -> StripeGateway:
    """The gateway, with less time for an answer than it takes to test a lot."""
    monkeypatch.setattr(gateway, "bounded_session", lambda _: bounded_session(BOUND_SECONDS))
    return StripeGateway(make_client(STRIPE_KEY, stripe.url, Patience.REQUEST), Patience.REQUEST)


@pytest.mark.parametrize("kind", DRIPS)
def test_answer_that_trickles_is_given_up_when_its_time_is_over(stripe: StripeStandin, kind: str) -> None:
    stripe.add_fault(Fault(kind))
    began_at = time.monotonic()

    with pytest.raises(requests.Timeout):
        bounded_session(BOUND_SECONDS).get(
            f"{stripe.url}/v1/prices", headers={"Authorization": f"Bearer {STRIPE_KEY}"}, timeout=10
        )

    assert BOUND_SECONDS * 0.9 < time.monotonic() - began_at < BOUND_SECONDS + 1


@pytest.mark.parametrize("kind", DRIPS)
def test_stripe_is_unavailable_when_all_its_answers_trickle(
    impatient: StripeGateway, stripe: StripeStandin, kind: str
) -> None:
    stripe.add_fault(Fault(kind))
    began_at = time.monotonic()

    with pytest.raises(BillingUnavailableError) as caught:
        impatient.has_price("price_any")

    assert caught.value.reason == "APIConnectionError"
    assert len(stripe.requests) == 2
    assert time.monotonic() - began_at < 2 * BOUND_SECONDS + 2


@pytest.mark.parametrize("kind", DRIPS)
def test_customer_is_made_once_when_the_answer_to_it_trickled(
    impatient: StripeGateway, stripe: StripeStandin, kind: str
) -> None:
    user_id = uuid4()
    stripe.add_fault(Fault(kind, path="/v1/customers", method="POST", times=1, after=True))

    customer_id = impatient.create_customer(user_id, 0)

    assert [each.idempotency_key for each in stripe.requests] == [f"customer:{user_id}:0"] * 2
    with stripe.account.changing():
        made = [each for each in stripe.account.all_of("customer") if each["metadata"].get("user_id") == str(user_id)]
    assert [each["id"] for each in made] == [customer_id]


def test_answers_to_many_threads_are_their_own(impatient: StripeGateway, stripe: StripeStandin) -> None:
    users = [uuid4() for _ in range(30)]
    stripe.add_fault(Fault("drip", times=3))

    made = race(len(users), lambda index: impatient.create_customer(users[index], 0))

    assert [impatient.read_customer(customer_id).user_id for customer_id in made] == [str(user) for user in users]


@pytest.mark.slow
@pytest.mark.parametrize("kind", DRIPS)
def test_buying_is_503_in_seconds_and_makes_one_session_later_when_stripe_trickled(
    billing: Billing, account: Account, kind: str
) -> None:
    billing.stripe.add_fault(Fault(kind, after=True))
    began_at = time.monotonic()

    assert account.call("POST", "/subscribe/pro").status_code == 503

    assert time.monotonic() - began_at < 18
    billing.stripe.clear()
    sessions = {billing.check_out(account) for _ in range(3)}
    assert len(sessions) == 1
