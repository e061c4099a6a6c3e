"""Checkout and portal at the Stripe stand-in: through the SDK, and as a browser sees their pages."""

from __future__ import annotations

import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
import stripe

from tests.dev.stripe_support import CANCEL_URL, MONTH, Shop, event_types, open_shop

PAID_TYPES = [
    *("customer.subscription.created", "invoice.created", "invoice.finalized", "invoice.updated"),
    *("invoice.paid", "invoice.payment_succeeded", "checkout.session.completed"),
]


@pytest.fixture
def shop() -> Iterator[Shop]:
    with open_shop() as opened:
        yield opened


class _Staying(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Show a redirect instead of following it."""


def browse(url: str, **form: str) -> tuple[int, str, str | None]:
    """Return status, page and the address it leads on to; with `form` a button was pressed."""
    request = urllib.request.Request(url, urlencode(form).encode() if form else None)  # noqa: S310 - the stand-in's.
    try:
        with urllib.request.build_opener(_Staying).open(request, timeout=5) as answer:
            return answer.status, answer.read().decode(), None
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), error.headers["Location"]


def buttons(page: str) -> list[dict[str, str]]:
    """Return the fields that each button of a page sends."""
    forms = re.findall(r"<form method=\"post\">(.*?)</form>", page)
    return [dict(re.findall(r'name="(\w+)" value="([^"]*)"', form)) for form in forms]


def test_session_is_open_for_a_day_when_made(shop: Shop) -> None:
    customer = shop.customer()
    session = shop.session(customer=customer.id, client_reference_id="user-1", metadata={"intent": "i"})

    assert (session.status, session.payment_status, session.mode) == ("open", "unpaid", "subscription")
    assert (session.amount_total, session.currency) == (900, "usd")
    assert session.id.startswith("cs_test_")
    assert session.expires_at == session.created + 86400
    assert (session.client_reference_id, session.metadata.to_dict()) == ("user-1", {"intent": "i"})
    assert session.customer_details.email == "ada@example.com"
    assert session.url == f"{shop.standin.url}/checkout/{session.id}"
    assert (session.subscription, session.invoice) == (None, None)
    assert not session.livemode


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"success_url": "/paid"}, "success_url"),
        ({"success_url": "javascript:alert(1)"}, "success_url"),
        ({"success_url": ""}, "success_url"),
        ({"success_url": "http://front.example/\nX: y"}, "success_url"),
        ({"success_url": "http://[front.example/"}, "success_url"),
        ({"cancel_url": "front.example"}, "cancel_url"),
        ({"mode": "payment"}, "mode"),
        ({"line_items": []}, "line_items"),
        ({"line_items": [{"price": "price_x", "quantity": 1}]}, "line_items[0][price]"),
        ({"line_items": [{"quantity": 1}]}, "line_items[0][price]"),
        ({"expires_at": 1}, "expires_at"),
        ({"customer_email": "a@example.com", "customer": "cus_x"}, "customer_email"),
        ({"price": "price_x"}, "price"),
        ({"subscription_data": {"trial_period_days": 0}}, "subscription_data[trial_period_days]"),
    ],
)
def test_session_is_refused_when_a_parameter_is_wrong(shop: Shop, change: dict[str, Any], param: str) -> None:
    with pytest.raises(stripe.InvalidRequestError) as refused:
        shop.session(**change)

    assert (refused.value.http_status, refused.value.param) == (400, param)
    assert shop.v1.checkout.sessions.list().data == []


@pytest.mark.parametrize("seconds", [29 * 60, 24 * 3600 + 60])
def test_session_is_refused_when_it_would_expire_too_soon_or_too_late(shop: Shop, seconds: int) -> None:
    with pytest.raises(stripe.InvalidRequestError, match="between 30 minutes and 24 hours"):
        shop.session(expires_at=shop.standin.now() + seconds)


def test_session_is_refused_when_its_price_cannot_be_subscribed_to(shop: Shop) -> None:
    once = shop.v1.prices.create({"product": shop.product.id, "currency": "usd", "unit_amount": 1})
    shop.v1.prices.update(shop.price.id, {"active": False})

    with pytest.raises(stripe.InvalidRequestError, match="not recurring"):
        shop.session(line_items=[{"price": once.id, "quantity": 1}])
    with pytest.raises(stripe.InvalidRequestError, match="inactive"):
        shop.session()


def test_subscription_begins_and_events_tell_of_it_when_paid(shop: Shop) -> None:
    session = shop.session(
        customer=shop.customer().id,
        subscription_data={"metadata": {"user": "1"}},
        line_items=[{"price": shop.price.id}],
    )
    before = len(event_types(shop.standin))

    shop.standin.pay(session.id)

    session = shop.v1.checkout.sessions.retrieve(session.id, {"expand": ["subscription", "invoice", "line_items"]})
    assert (session.status, session.payment_status, session.url) == ("complete", "paid", None)
    subscription, invoice = session.subscription, session.invoice
    assert (subscription.status, subscription.metadata.to_dict()) == ("active", {"user": "1"})
    assert subscription["items"].data[0].price.id == session.line_items.data[0].price.id == shop.price.id
    assert (invoice.status, invoice.amount_paid, invoice.billing_reason) == ("paid", 900, "subscription_create")
    assert subscription.latest_invoice == invoice.id
    assert event_types(shop.standin, before) == PAID_TYPES
    created, *_, completed = shop.standin.events()[before:]
    assert created["data"]["object"]["status"] == "active"
    assert completed["data"]["object"]["subscription"] == subscription.id


def test_session_begins_with_a_trial_when_asked_for(shop: Shop) -> None:
    session = shop.session(customer=shop.customer().id, subscription_data={"trial_period_days": 7})

    paid = shop.standin.pay(session.id)

    subscription = shop.v1.subscriptions.retrieve(paid["subscription"], {"expand": ["latest_invoice"]})
    assert (session.amount_total, paid["payment_status"]) == (0, "no_payment_required")
    assert subscription.status == "trialing"
    assert (
        subscription.trial_end == subscription.created + 7 * 86400 == subscription["items"].data[0].current_period_end
    )
    assert (subscription.latest_invoice.total, subscription.latest_invoice.status) == (0, "paid")


def test_customer_is_made_when_a_session_without_one_is_paid(shop: Shop) -> None:
    session = shop.session(customer_email="new@example.com")
    paid = shop.standin.pay(session.id)

    assert session.customer is None
    assert session.customer_details.email == "new@example.com"
    assert shop.v1.customers.retrieve(paid["customer"]).email == "new@example.com"


def test_session_stays_open_when_the_card_is_declined(shop: Shop) -> None:
    session = shop.session(customer=shop.customer().id)
    before = len(event_types(shop.standin))

    assert shop.standin.decline(session.id)["status"] == "open"
    assert event_types(shop.standin, before) == []
    assert shop.standin.pay(session.id)["status"] == "complete"


def test_session_cannot_be_paid_or_expired_when_it_is_no_longer_open(shop: Shop) -> None:
    paid, expired = shop.session(), shop.session()
    shop.standin.pay(paid.id)
    assert shop.v1.checkout.sessions.expire(expired.id).status == "expired"

    for session in (paid, expired):
        with pytest.raises(stripe.InvalidRequestError, match="open"):
            shop.v1.checkout.sessions.expire(session.id)
        with pytest.raises(Exception, match="can be paid"):
            shop.standin.pay(session.id)
    assert event_types(shop.standin).count("checkout.session.expired") == 1
    assert len(shop.v1.subscriptions.list().data) == 1


def test_session_expires_when_its_time_is_over(shop: Shop) -> None:
    session = shop.session(expires_at=shop.standin.now() + 1900)
    later = shop.session()

    shop.standin.advance(1901)

    assert shop.v1.checkout.sessions.retrieve(session.id).status == "expired"
    assert shop.v1.checkout.sessions.retrieve(later.id).status == "open"
    [event] = shop.standin.events("checkout.session.expired")
    assert event["created"] == session.expires_at


def test_sessions_are_found_by_what_describes_them_when_listed(shop: Shop) -> None:
    customer = shop.customer()
    paid, open_one, _ = shop.session(customer=customer.id), shop.session(customer=customer.id), shop.session()
    subscription_id = shop.standin.pay(paid.id)["subscription"]

    def listed(**params: str) -> list[str]:
        return [session.id for session in shop.v1.checkout.sessions.list(params).data]

    assert listed(customer=customer.id) == [open_one.id, paid.id]
    assert listed(customer=customer.id, status="open") == [open_one.id]
    assert listed(subscription=subscription_id) == [paid.id]


def test_page_shows_what_is_sold_when_opened(shop: Shop) -> None:
    shop.v1.products.update(shop.product.id, {"name": "Pro <b>& more"})
    yen = shop.v1.prices.create(
        {
            "product": shop.product.id,
            "currency": "jpy",
            "unit_amount": 900,
            "recurring": {**MONTH, "interval_count": 3},
        }
    )

    status, page, _ = browse(shop.session().url)
    _, yen_page, _ = browse(shop.session(line_items=[{"price": yen.id, "quantity": 2}], cancel_url=CANCEL_URL).url)

    assert status == 200
    assert "1 x Pro &lt;b&gt;&amp; more" in page
    assert "9.00 USD per month" in page
    assert "<script" not in page
    assert [button["action"] for button in buttons(page)] == ["pay", "decline", "cancel"]
    assert "1800 JPY every 3 months" in yen_page


def test_browser_comes_back_with_the_session_when_paid(shop: Shop) -> None:
    session = shop.session(customer=shop.customer().id)

    status, _, location = browse(session.url, action="pay")

    assert (status, location) == (303, f"http://front.example/paid?session={session.id}")
    assert shop.v1.checkout.sessions.retrieve(session.id).status == "complete"
    _, page, _ = browse(f"{shop.standin.url}/checkout/{session.id}")
    assert "has been paid" in page
    assert browse(f"{shop.standin.url}/checkout/{session.id}", action="pay")[0] == 409
    assert len(shop.v1.subscriptions.list().data) == 1


def test_browser_comes_back_when_the_address_has_letters_of_all_kinds(shop: Shop) -> None:
    session = shop.session(success_url="http://front.example/gezahlt/é?ß=%20&s={CHECKOUT_SESSION_ID}")

    _, _, location = browse(session.url, action="pay")

    assert location == f"http://front.example/gezahlt/%C3%A9?%C3%9F=%20&s={session.id}"


def test_page_says_why_and_stays_when_the_card_is_declined_or_payment_is_left(shop: Shop) -> None:
    session = shop.session()

    status, page, _ = browse(session.url, action="decline")
    left = browse(session.url, action="cancel")

    assert (status, "Your card was declined" in page) == (402, True)
    assert [button["action"] for button in buttons(page)] == ["pay", "decline", "cancel"]
    assert (left[0], left[2]) == (303, CANCEL_URL)
    assert shop.v1.checkout.sessions.retrieve(session.id).status == "open"


def test_page_says_so_when_the_session_has_expired(shop: Shop) -> None:
    session = shop.session()
    shop.standin.expire(session.id)

    assert "has expired" in browse(session.url)[1]


@pytest.mark.parametrize("path", ["/checkout/cs_test_x", "/portal/x", "/x", "/checkout/", "/portal/"])
def test_nothing_is_there_when_the_address_is_wrong(shop: Shop, path: str) -> None:
    assert browse(shop.standin.url + path)[0] == 404
    assert browse(shop.standin.url + path, action="pay")[0] == 404


def test_there_is_a_last_page_when_no_front_end_is_configured(shop: Shop) -> None:
    status, page, _ = browse(f"{shop.standin.url}/frontend/billing/success?session_id=x")

    assert (status, "Payment page closed" in page) == (200, True)


def test_portal_shows_and_cancels_and_resumes_when_its_buttons_are_pressed(shop: Shop) -> None:
    subscription = shop.subscription()
    portal = shop.v1.billing_portal.sessions.create(
        {"customer": subscription.customer, "return_url": "http://front.example/back"}
    )
    _, page, _ = browse(portal.url)
    cancel = next(button for button in buttons(page) if button["action"] == "cancel")
    status, _, location = browse(portal.url, **cancel)
    ending = shop.v1.subscriptions.retrieve(subscription.id)
    _, ending_page, _ = browse(portal.url)
    browse(portal.url, **next(button for button in buttons(ending_page) if button["action"] == "resume"))
    resumed = shop.v1.subscriptions.retrieve(subscription.id)

    assert "<b>active</b>" in page
    assert 'href="http://front.example/back"' in page
    assert "9.00 USD" in page
    assert (status, location) == (303, portal.url)
    # With flexible billing the portal sets a date, and leaves this false.
    assert not ending.cancel_at_period_end
    assert ending.cancel_at == subscription["items"].data[0].current_period_end
    assert (resumed.cancel_at, resumed.canceled_at) == (None, None)
    assert [event["data"]["previous_attributes"]["cancel_at"] for event in updates(shop)] == [None, ending.cancel_at]


def updates(shop: Shop) -> list[dict[str, Any]]:
    """Return the newest two updates of subscriptions."""
    return shop.standin.events("customer.subscription.updated")[-2:]


def test_portal_takes_another_card_and_pays_when_a_renewal_has_failed(shop: Shop) -> None:
    subscription = shop.subscription()
    portal = shop.v1.billing_portal.sessions.create({"customer": subscription.customer})

    assert [button.get("card") for button in buttons(browse(portal.url)[1])] == [None, "good", "declines"]
    browse(portal.url, action="card", card="declines")
    assert "Now: declines." in browse(portal.url)[1]
    shop.standin.renew(subscription.id)
    assert shop.status(subscription) == "past_due"
    pay = next(button for button in buttons(browse(portal.url)[1]) if button["action"] == "pay")
    browse(portal.url, **pay)
    assert shop.status(subscription) == "past_due"
    browse(portal.url, action="card", card="good")
    browse(portal.url, **pay)

    assert shop.status(subscription) == "active"


def test_portal_does_nothing_when_the_thing_is_somebody_elses(shop: Shop) -> None:
    mine, other = shop.subscription(), shop.subscription()
    portal = shop.v1.billing_portal.sessions.create({"customer": mine.customer})

    assert other.id not in browse(portal.url)[1]
    assert browse(portal.url, action="cancel", subscription=other.id)[0] == 400
    assert browse(portal.url, action="pay", invoice=other.latest_invoice)[0] == 400
    assert browse(portal.url, action="card", card="stolen")[0] == 404
    assert shop.v1.subscriptions.retrieve(other.id).cancel_at is None


def test_portal_address_cannot_be_guessed_when_the_session_is_known(shop: Shop) -> None:
    portal = shop.v1.billing_portal.sessions.create({"customer": shop.customer().id})

    token = portal.url.rpartition("/")[2]
    assert len(token) >= 40
    assert token not in portal.id
    assert time.time() - portal.created < 60
