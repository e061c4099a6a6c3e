"""The Stripe stand-in's wire, with the real SDK in front: keys, errors, lists, expanding."""

from __future__ import annotations

import base64
import http.client
import json
import random
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
import stripe

from chatapi.dev.stripe import billing, catalogue, notices, wire
from tests.dev.stripe_support import KEY, Shop, open_shop, sdk


@pytest.fixture(scope="module")
def shop() -> Iterator[Shop]:
    with open_shop() as opened:
        yield opened


def ask(shop: Shop, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, Any]:
    """Ask without the SDK, which would not send this."""
    parts = urlsplit(shop.standin.url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=10)
    sent = urlencode(body) if isinstance(body, dict) else body
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if sent is not None:
        named.setdefault("Content-Type", "application/x-www-form-urlencoded")
    connection.request(method, path, sent, {"Authorization": f"Bearer {KEY}", **named})
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    return response.status, answer, response.headers


@pytest.mark.parametrize("authorization", ["", "Bearer ", "Basic !", "Digest x"])
def test_request_is_refused_when_it_has_no_key(shop: Shop, authorization: str) -> None:
    status, answer, _ = ask(shop, "GET", "/v1/customers", Authorization=authorization)

    assert status == 401
    assert answer["error"]["type"] == "invalid_request_error"
    assert "did not provide an API key" in answer["error"]["message"]


@pytest.mark.parametrize("key", ["sk_live_x", "pk_test_x", "nonsense"])
def test_sdk_raises_authentication_error_when_the_key_is_not_of_test_mode(shop: Shop, key: str) -> None:
    with sdk(shop.standin.url, key) as client, pytest.raises(stripe.AuthenticationError, match="Invalid API Key"):
        client.v1.customers.list()


def test_key_may_come_as_basic_user_when_that_is_how_curl_sends_it(shop: Shop) -> None:
    encoded = base64.b64encode(b"rk_test_x:").decode()

    assert ask(shop, "GET", "/v1/account", Authorization=f"Basic {encoded}")[0] == 200


def test_live_account_shows_live_objects_when_made_live() -> None:
    with open_shop(livemode=True) as live, sdk(live.standin.url, "sk_live_x") as client:
        session = live.session()

        assert session.livemode
        assert session.id.startswith("cs_live_")
        assert live.standin.pay(session.id)["livemode"]
        assert {event.livemode for event in client.v1.events.list({"limit": 100}).data} == {True}


def test_version_is_echoed_when_sane_and_refused_when_not(shop: Shop) -> None:
    _, _, headers = ask(shop, "GET", "/v1/customers", Stripe_Version="2026-10-28.endive")
    status, answer, _ = ask(shop, "GET", "/v1/customers", Stripe_Version="latest")

    assert headers["Stripe-Version"] == "2026-10-28.endive"
    assert headers["Request-Id"].startswith("req_")
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")


def test_stand_in_speaks_the_version_of_the_sdk_when_that_is_upgraded() -> None:
    assert stripe.api_version == wire.API_VERSION


def test_key_is_recorded_only_as_sent_when_requests_are_kept(shop: Shop) -> None:
    shop.standin.forget_requests()
    shop.v1.customers.create({"name": "Ada"}, {"idempotency_key": "recorded"})

    [request] = shop.standin.requests
    assert (request.method, request.path, request.params) == ("POST", "/v1/customers", {"name": "Ada"})
    assert request.idempotency_key == "recorded"
    assert request.headers["authorization"] == "(sent)"
    assert KEY not in repr(request)


def test_every_request_is_answered_when_it_makes_no_sense(shop: Shop) -> None:
    chance = random.Random(5)  # noqa: S311 - the same nonsense each time.
    routes = (*catalogue.ROUTES, *billing.ROUTES, *notices.ROUTES)
    values = ["", "x", "1", "-1", "true", "\ud800", "\0", "9" * 30, "http://x/", "month", shop.price.id, "subscription"]
    tails = ["", "[]", "[0]", "[a]", "[0][price]", "[interval]", "[end_behavior]", "[]][", "[0][0]", "[created][gte]"]
    statuses = set()

    for _ in range(1500):
        route = chance.choice(routes)
        names = [*route.params.known, "expand", "other"]
        pairs = [
            (chance.choice(names) + chance.choice(tails), chance.choice(values)) for _ in range(chance.randrange(5))
        ]
        path = route.path.replace("{id}", chance.choice(["x", shop.price.id, shop.product.id]))
        form = urlencode(pairs, errors="surrogatepass")
        if route.method == "POST":
            statuses.add(ask(shop, "POST", path, form)[0])
        else:
            statuses.add(ask(shop, route.method, f"{path}?{form}")[0])

    assert statuses == {200, 400, 404}


def test_unknown_path_is_not_found_when_asked(shop: Shop) -> None:
    status, answer, _ = ask(shop, "GET", "/v1/charges")

    assert status == 404
    assert "Unrecognized request URL (GET: /v1/charges)" in answer["error"]["message"]


def test_json_body_is_refused_when_v1_wants_forms(shop: Shop) -> None:
    status, answer, _ = ask(shop, "POST", "/v1/customers", b"{}", Content_Type="application/json")

    assert status == 400
    assert "x-www-form-urlencoded" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("params", "code", "param"),
    [
        ({"nickname": "x"}, "parameter_unknown", "nickname"),
        ({"email": "x" * 513}, None, "email"),
        ({"email[a]": "x"}, None, "email"),
        ({"metadata": "x"}, None, "metadata"),
        ({"metadata[" + "k" * 41 + "]": "x"}, None, "metadata[" + "k" * 41 + "]"),
        ({"email": "x", "email[a]": "y"}, None, None),
        ({"a" + "[b]" * 9: "x"}, None, None),
        ({"email]": "x"}, None, None),
        ({"expand[0]": "nothing"}, None, "expand"),
    ],
)
def test_customer_is_refused_when_a_parameter_is_wrong(
    shop: Shop, params: dict[str, str], code: str | None, param: str | None
) -> None:
    status, answer, _ = ask(shop, "POST", "/v1/customers", params)

    assert status == 400
    assert answer["error"]["type"] == "invalid_request_error"
    assert answer["error"].get("code") == code
    assert answer["error"].get("param") == param


@pytest.mark.parametrize(
    ("params", "code", "param"),
    [
        ({"unit_amount": "1"}, "parameter_missing", "currency"),
        ({"currency": "usd", "unit_amount": "", "product": "p"}, "parameter_invalid_empty", "unit_amount"),
        ({"currency": "usd", "unit_amount": "1.5", "product": "p"}, "parameter_invalid_integer", "unit_amount"),
        ({"currency": "usd", "unit_amount": "-1", "product": "p"}, "parameter_invalid_integer", "unit_amount"),
        ({"currency": "usd", "unit_amount": "٣", "product": "p"}, "parameter_invalid_integer", "unit_amount"),
        ({"currency": "usd", "unit_amount": "1", "product": "p", "active": "1"}, None, "active"),
        ({"currency": "usd", "unit_amount": "1"}, "parameter_missing", "product"),
        ({"currency": "usd", "unit_amount": "1", "product": "prod_x"}, "resource_missing", "product"),
        ({"currency": "usd", "unit_amount": "1", "recurring[interval]": "hour"}, None, "recurring[interval]"),
        ({"currency": "usd", "unit_amount": "1", "recurring[x]": "1"}, "parameter_unknown", "recurring[x]"),
        ({"currency": "usd", "unit_amount": "1", "recurring": "month"}, None, "recurring"),
    ],
)
def test_price_is_refused_when_a_parameter_is_wrong(
    shop: Shop, params: dict[str, str], code: str | None, param: str
) -> None:
    status, answer, _ = ask(shop, "POST", "/v1/prices", params)

    assert status == 400
    assert (answer["error"].get("code"), answer["error"]["param"]) == (code, param)


def test_sdk_raises_invalid_request_when_the_object_is_unknown(shop: Shop) -> None:
    with pytest.raises(stripe.InvalidRequestError, match="No such customer: 'cus_x'") as by_path:
        shop.v1.customers.retrieve("cus_x")
    with pytest.raises(stripe.InvalidRequestError, match="No such customer: 'cus_x'") as by_param:
        shop.session(customer="cus_x")

    assert (by_path.value.http_status, by_path.value.code, by_path.value.param) == (404, "resource_missing", "id")
    assert (by_param.value.http_status, by_param.value.code) == (400, "resource_missing")
    assert by_param.value.param == "customer"
    assert by_param.value.request_id.startswith("req_")


def test_list_pages_through_all_when_iterated_in_both_directions(shop: Shop) -> None:
    made = [shop.customer("pages@example.com").id for _ in range(7)]
    listing = {"email": "pages@example.com", "limit": 3}

    newest_first = [customer.id for customer in shop.v1.customers.list(listing).auto_paging_iter()]
    back = shop.v1.customers.list({**listing, "ending_before": made[0]})
    backwards = [customer.id for customer in back.auto_paging_iter()]

    assert newest_first == made[::-1]
    assert [customer.id for customer in back.data] == [made[3], made[2], made[1]]
    assert back.has_more
    assert backwards == made[1:]


def test_list_has_no_more_when_it_fits_its_page(shop: Shop) -> None:
    made = [shop.customer("fits@example.com").id for _ in range(3)]

    for limit, has_more in ((2, True), (3, False), (4, False)):
        listed = shop.v1.customers.list({"email": "fits@example.com", "limit": limit})
        assert [customer.id for customer in listed.data] == made[::-1][:limit]
        assert listed.has_more == has_more


@pytest.mark.parametrize(
    ("bounds", "is_found"),
    [
        (lambda moment: moment, True),
        (lambda moment: moment + 1, False),
        (lambda moment: {"gte": moment}, True),
        (lambda moment: {"gt": moment}, False),
        (lambda moment: {"gt": moment - 1, "lt": moment + 1}, True),
        (lambda moment: {"lte": moment}, True),
        (lambda moment: {"lt": moment}, False),
        (lambda moment: {"lte": moment - 1}, False),
    ],
)
def test_objects_are_found_by_their_time_when_listed(shop: Shop, bounds: Callable[[int], Any], is_found: bool) -> None:
    customer = shop.customer("timed@example.com")

    listed = shop.v1.customers.list({"email": "timed@example.com", "created": bounds(customer.created)})

    assert (customer.id in [held.id for held in listed.data]) == is_found


def test_list_is_refused_when_it_is_of_an_unknown_object(shop: Shop) -> None:
    for listing, name in (
        (shop.v1.subscriptions, "customer"),
        (shop.v1.subscriptions, "price"),
        (shop.v1.invoices, "customer"),
        (shop.v1.invoices, "subscription"),
        (shop.v1.checkout.sessions, "customer"),
        (shop.v1.checkout.sessions, "subscription"),
        (shop.v1.prices, "product"),
    ):
        with pytest.raises(stripe.InvalidRequestError, match=f"No such {name}: 'x'") as refused:
            listing.list({name: "x"})
        assert (refused.value.http_status, refused.value.code, refused.value.param) == (400, "resource_missing", name)


@pytest.mark.parametrize("params", [{"limit": 0}, {"limit": 101}, {"starting_after": "cus_x"}])
def test_list_is_refused_when_its_paging_is_wrong(shop: Shop, params: dict[str, Any]) -> None:
    with pytest.raises(stripe.InvalidRequestError):
        shop.v1.customers.list(params)


def test_ids_become_objects_when_expanded(shop: Shop) -> None:
    subscription = shop.subscription()

    one = shop.v1.subscriptions.retrieve(
        subscription.id, {"expand": ["customer", "latest_invoice.customer", "items.data.price.product"]}
    )
    many = shop.v1.subscriptions.list(
        {"customer": subscription.customer, "expand": ["data.latest_invoice", "data.items.data.price.product"]}
    )

    assert one.customer.email == "ada@example.com"
    assert one.latest_invoice.customer.id == one.customer.id
    assert one["items"].data[0].price.product.name == "Pro"
    assert many.data[0].latest_invoice.status == "paid"
    assert many.data[0]["items"].data[0].price.product.id == shop.product.id
    assert subscription.customer == one.customer.id


@pytest.mark.parametrize("path", ["status", "nothing", "default_payment_method", "customer.a.b.c.d", "items.data.x"])
def test_expanding_is_refused_when_there_is_nothing_to_expand(shop: Shop, path: str) -> None:
    session = shop.session(customer=shop.customer().id)
    subscription_id = shop.standin.pay(session.id)["subscription"]

    with pytest.raises(stripe.InvalidRequestError):
        shop.v1.subscriptions.retrieve(subscription_id, {"expand": [path]})


def test_customer_shows_subscriptions_when_expanded(shop: Shop) -> None:
    subscription = shop.subscription()

    customer = shop.v1.customers.retrieve(subscription.customer, {"expand": ["subscriptions"]})

    assert [held.id for held in customer.subscriptions.data] == [subscription.id]
