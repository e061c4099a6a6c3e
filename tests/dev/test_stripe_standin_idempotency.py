"""Idempotency keys at the Stripe stand-in, and the faults that they are for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import stripe

from chatapi.dev.stripe.faults import ERRORS, STATUS_KINDS, Fault
from tests.dev.stripe_support import DAY_SECONDS, Shop, open_shop, sdk
from tests.support import race, wait_for


@pytest.fixture
def shop() -> Iterator[Shop]:
    with open_shop() as opened:
        opened.standin.forget_requests()
        yield opened


def key(name: str) -> dict[str, str]:
    return {"idempotency_key": name}


def code_of(error: stripe.StripeError) -> str:
    """Return the code as sent: the SDK has it in `code` only for some classes, a 409 is a plain `APIError`."""
    body: Any = error.json_body
    return str(body["error"].get("code", ""))


def customers(shop: Shop) -> list[Any]:
    return list(shop.v1.customers.list({"limit": 100}).data)


def test_first_answer_comes_again_when_the_key_does(shop: Shop) -> None:
    first = shop.v1.customers.create({"name": "Ada"}, key("k"))
    shop.v1.customers.update(first.id, {"name": "Changed"})
    second = shop.v1.customers.create({"name": "Ada"}, key("k"))

    assert (second.id, second.name) == (first.id, "Ada")
    assert second.last_response.headers["Idempotent-Replayed"] == "true"
    assert second.last_response.headers["Idempotency-Key"] == "k"
    assert "Idempotent-Replayed" not in first.last_response.headers
    assert len(customers(shop)) == 1


@pytest.mark.parametrize("change", [{"name": "Eve"}, {"name": "Ada", "email": "ada@example.com"}])
def test_key_is_refused_when_the_parameters_are_others(shop: Shop, change: dict[str, str]) -> None:
    shop.v1.customers.create({"name": "Ada"}, key("k"))

    with pytest.raises(stripe.IdempotencyError, match="same parameters") as refused:
        shop.v1.customers.create(change, key("k"))
    assert refused.value.http_status == 400
    with pytest.raises(stripe.IdempotencyError):
        shop.v1.products.create({"name": "Ada"}, key("k"))
    assert len(customers(shop)) == 1


def test_refusal_is_not_kept_when_nothing_was_executed(shop: Shop) -> None:
    wrong = shop.session_params(line_items=[{"price": shop.price.id, "quantity": 0}])
    with pytest.raises(stripe.InvalidRequestError):
        shop.v1.checkout.sessions.create(wrong, key("k"))

    assert shop.v1.checkout.sessions.create(shop.session_params(), key("k")).status == "open"


def test_error_comes_again_when_it_came_of_executing(shop: Shop) -> None:
    params = shop.session_params()
    shop.v1.prices.update(shop.price.id, {"active": False})
    with pytest.raises(stripe.InvalidRequestError, match="inactive"):
        shop.v1.checkout.sessions.create(params, key("k"))
    shop.v1.prices.update(shop.price.id, {"active": True})

    with pytest.raises(stripe.InvalidRequestError, match="inactive") as again:
        shop.v1.checkout.sessions.create(params, key("k"))
    assert again.value.headers is not None
    assert again.value.headers["Idempotent-Replayed"] == "true"
    assert shop.v1.checkout.sessions.create(params, key("other")).status == "open"


def test_key_is_forgotten_when_a_day_has_passed(shop: Shop) -> None:
    first = shop.v1.customers.create({"name": "Ada"}, key("k"))
    shop.standin.advance(DAY_SECONDS - 60)
    same = shop.v1.customers.create({"name": "Ada"}, key("k"))
    shop.standin.advance(61)
    other = shop.v1.customers.create({"name": "Ada"}, key("k"))

    assert first.id == same.id != other.id


def test_key_is_refused_when_it_is_too_long(shop: Shop) -> None:
    with pytest.raises(stripe.InvalidRequestError, match="255 characters"):
        shop.v1.customers.create({"name": "Ada"}, key("k" * 256))


def test_one_session_is_made_when_fifty_ask_at_once_with_one_key(shop: Shop) -> None:
    params = shop.session_params()

    def create(_: int) -> tuple[str, str]:
        try:
            return "made", shop.v1.checkout.sessions.create(params, key("k")).id
        except stripe.APIError as error:
            return str(error.http_status), code_of(error)

    outcomes = set(race(50, create))

    assert len(shop.v1.checkout.sessions.list({"limit": 100}).data) == 1
    assert len({value for what, value in outcomes if what == "made"}) == 1
    assert {outcome for outcome in outcomes if outcome[0] != "made"} <= {("409", "idempotency_key_in_use")}


def test_second_request_is_told_to_wait_when_the_first_still_runs(shop: Shop) -> None:
    shop.standin.add_fault(Fault(method="POST", latency_ms=400))

    def create(_: int) -> str:
        try:
            return str(shop.v1.customers.create({"name": "Ada"}, key("k")).id[:4])
        except stripe.APIError as error:
            return f"{error.http_status} {code_of(error)}"

    assert sorted(race(2, create)) == ["409 idempotency_key_in_use", "cus_"]
    assert len(customers(shop)) == 1


def test_sdk_gets_the_answer_by_trying_again_when_it_was_lost(shop: Shop) -> None:
    shop.standin.add_fault(Fault("lost_answer", path="/v1/customers", method="POST", times=1))

    with sdk(shop.standin.url, retries=2) as client:
        made = client.v1.customers.create({"name": "Ada"})

    assert made.last_response is not None
    assert made.last_response.headers["Idempotent-Replayed"] == "true"
    assert [customer.id for customer in customers(shop)] == [made.id]
    first, second, _ = shop.standin.requests
    assert first.idempotency_key == second.idempotency_key is not None


@pytest.mark.parametrize("kind", sorted(STATUS_KINDS))
def test_status_is_answered_and_nothing_done_when_a_fault_asks_for_it(shop: Shop, kind: str) -> None:
    shop.standin.add_fault(Fault(kind, times=1))

    with pytest.raises(stripe.StripeError) as raised:
        shop.v1.customers.create({"name": "Ada"}, key("k"))

    assert raised.value.http_status == int(kind)
    assert code_of(raised.value) == (ERRORS[kind][1] or "")
    expected = {
        "400": stripe.InvalidRequestError,
        "401": stripe.AuthenticationError,
        "402": stripe.CardError,
        "403": stripe.PermissionError,
        "404": stripe.InvalidRequestError,
        "409": stripe.APIError,
        "429": stripe.RateLimitError,
        "500": stripe.APIError,
        "503": stripe.APIError,
    }[kind]
    assert type(raised.value) is expected
    assert customers(shop) == []
    assert shop.v1.customers.create({"name": "Ada"}, key("k")).name == "Ada"


def test_answer_is_lost_when_it_is_an_error_too(shop: Shop) -> None:
    shop.standin.add_fault(Fault("lost_answer", times=1))

    with pytest.raises(stripe.APIConnectionError):
        shop.v1.customers.retrieve("cus_x")


def test_error_comes_late_when_a_fault_asks_for_that(shop: Shop) -> None:
    shop.standin.add_fault(Fault("503", times=1, latency_ms=300))
    began = time.monotonic()

    with pytest.raises(stripe.APIError):
        shop.customer()

    assert time.monotonic() - began >= 0.3


def test_request_is_executed_when_the_error_shows_after_it(shop: Shop) -> None:
    shop.standin.add_fault(Fault("500", times=1, after=True))

    with pytest.raises(stripe.APIError):
        shop.v1.customers.create({"name": "Ada"}, key("k"))

    [made] = customers(shop)
    assert shop.v1.customers.create({"name": "Ada"}, key("k")).id == made.id


@pytest.mark.parametrize(("kind", "error"), [("cut", stripe.APIConnectionError), ("bad_json", stripe.APIError)])
def test_nothing_is_done_when_the_connection_fails_before(shop: Shop, kind: str, error: type[Exception]) -> None:
    shop.standin.add_fault(Fault(kind, times=1))

    with pytest.raises(error):
        shop.v1.customers.create({"name": "Ada"})
    assert customers(shop) == []


def test_client_gives_up_when_the_stand_in_hangs(shop: Shop) -> None:
    shop.standin.add_fault(Fault("hang", times=1))
    began = time.monotonic()

    with sdk(shop.standin.url, timeout=0.3) as impatient, pytest.raises(stripe.APIConnectionError):
        impatient.v1.customers.create({"name": "Ada"})
    assert time.monotonic() - began < 5
    assert customers(shop) == []


def test_late_request_is_executed_all_the_same_when_its_client_has_left(shop: Shop) -> None:
    shop.standin.add_fault(Fault(path="/v1/customers$", method="post", times=1, latency_ms=800))
    with sdk(shop.standin.url, timeout=0.1) as impatient, pytest.raises(stripe.APIConnectionError):
        impatient.v1.customers.create({"name": "Ada"})
    assert customers(shop) == []

    wait_for(lambda: len(customers(shop)) == 1, seconds=5)


def test_fault_shows_only_where_and_as_often_as_asked_for(shop: Shop) -> None:
    shop.standin.add_fault(Fault("503", path="/v1/checkout", times=2))

    shop.customer()
    for _ in range(2):
        with pytest.raises(stripe.APIError):
            shop.session()
    assert shop.session().status == "open"
    shop.standin.add_fault(Fault("503"))
    shop.standin.clear()
    assert shop.session().status == "open"


@pytest.mark.parametrize(
    "fields",
    [
        *({"kind": "418"}, {"kind": 500}, {"times": -1}, {"times": True}, {"latency_ms": None}, {"path": "("}),
        *({"path": 1}, {"method": 1}, {"after": 1}, {"unknown": 1}, "500"),
    ],
)
def test_fault_is_refused_when_its_fields_are_wrong(fields: Any) -> None:
    with pytest.raises(ValueError, match=r"must be|Unknown|JSON object"):
        Fault.from_fields(fields)
