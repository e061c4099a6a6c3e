"""The life of subscriptions at the Stripe stand-in: renewals, dunning, trials, ends, and the clock."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

import pytest
import stripe

from chatapi.dev.stripe.calendar import add_intervals, period_after
from chatapi.dev.stripe.wire import ApiError
from tests.dev.stripe_support import DAY_SECONDS, MONTH, SLACK_SECONDS, Shop, event_types, open_shop


@pytest.fixture
def shop() -> Iterator[Shop]:
    with open_shop() as opened:
        yield opened


def moment(text: str) -> int:
    return int(dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC).timestamp())


def period_end(subscription: Any) -> int:
    return int(subscription["items"].data[0].current_period_end)


def advance_to(shop: Shop, when: int) -> None:
    shop.standin.advance(when - shop.standin.now())


@pytest.mark.parametrize(
    ("anchor", "ends"),
    [
        ("2026-12-31 10:00", ["2027-01-31 10:00", "2027-02-28 10:00", "2027-03-31 10:00", "2027-04-30 10:00"]),
        ("2028-01-30 00:00", ["2028-02-29 00:00", "2028-03-30 00:00"]),
        ("2026-12-01 00:00", ["2027-01-01 00:00", "2027-02-01 00:00"]),
    ],
)
def test_periods_keep_to_the_anchors_day_when_months_are_short(anchor: str, ends: list[str]) -> None:
    now = moment(anchor)
    found = []
    for _ in ends:
        now = period_after(moment(anchor), "month", 1, now)
        found.append(now)

    assert found == [moment(end) for end in ends]


@pytest.mark.parametrize(
    ("interval", "count", "end"),
    [
        ("day", 3, "2028-03-03 00:00"),
        ("week", 1, "2028-03-07 00:00"),
        ("month", 12, "2029-02-28 00:00"),
        ("year", 1, "2029-02-28 00:00"),
    ],
)
def test_interval_ends_where_stripe_ends_it_when_added_to_a_leap_day(interval: str, count: int, end: str) -> None:
    assert add_intervals(moment("2028-02-29 00:00"), interval, count) == moment(end)


def test_subscription_renews_over_month_ends_when_time_passes(shop: Shop) -> None:
    # The clock only goes forward: to the next 31 January.
    year = dt.datetime.fromtimestamp(shop.standin.now(), dt.UTC).year + 1
    advance_to(shop, moment(f"{year}-01-31 12:00"))
    subscription = shop.subscription()
    began = shop.standin.now()

    shop.standin.advance(100 * DAY_SECONDS)

    listed = shop.v1.invoices.list({"subscription": subscription.id}).data
    february = 29 if year % 4 == 0 else 28
    second = began - moment(f"{year}-01-31 12:00")
    ends = [moment(f"{year}-0{month}-{day} 12:00") + second for month, day in ((4, 30), (3, 31), (2, february))]
    assert [invoice.created for invoice in listed] == [*ends, subscription.created]
    assert [invoice.billing_reason for invoice in listed] == [*["subscription_cycle"] * 3, "subscription_create"]
    assert {invoice.status for invoice in listed} == {"paid"}
    assert period_end(shop.reload(subscription)) == moment(f"{year}-05-31 12:00") + second


def test_renewal_tells_what_stripe_tells_when_it_is_paid(shop: Shop) -> None:
    subscription = shop.subscription()
    before = len(event_types(shop.standin))

    shop.standin.renew(subscription.id)

    assert event_types(shop.standin, before) == [
        *("customer.subscription.updated", "invoice.created", "invoice.finalized", "invoice.updated"),
        *("invoice.paid", "invoice.payment_succeeded"),
    ]
    updated, created, finalised, *_ = shop.standin.events()[before:]
    assert set(updated["data"]["previous_attributes"]) == {"items", "latest_invoice"}
    # Each shows the object as it was then, though one object is behind all.
    assert (created["data"]["object"]["status"], finalised["data"]["object"]["status"]) == ("draft", "open")
    assert updated["request"] == {"id": None, "idempotency_key": None}


def test_invoice_looks_back_and_its_line_ahead_when_renewed(shop: Shop) -> None:
    subscription = shop.subscription()
    passed = subscription["items"].data[0]

    advance_to(shop, passed.current_period_end + 60)

    renewed = shop.reload(subscription)
    invoice, line = renewed.latest_invoice, renewed.latest_invoice.lines.data[0]
    assert (invoice.period_start, invoice.period_end) == (passed.current_period_start, passed.current_period_end)
    assert (line.period.start, line.period.end) == (passed.current_period_end, period_end(renewed))
    assert line.parent.subscription_item_details.subscription_item == passed.id
    assert line.pricing.price_details.price == shop.price.id


def test_subscriptions_of_every_rhythm_renew_when_a_year_passes(shop: Shop) -> None:
    rhythms = {("day", 30): 12, ("week", 2): 26, ("month", 1): 12, ("month", 5): 2, ("year", 1): 1}
    made = {}
    for interval, count in rhythms:
        recurring = {"interval": interval, "interval_count": count}
        price = shop.v1.prices.create(
            {"product": shop.product.id, "currency": "usd", "unit_amount": 1, "recurring": recurring}
        )
        made[interval, count] = shop.standin.subscribe(shop.customer().id, price.id)["id"]
    before = len(event_types(shop.standin))

    advance_to(shop, add_intervals(shop.standin.now(), "year", 1) + DAY_SECONDS)

    for rhythm, subscription_id in made.items():
        listed = shop.v1.invoices.list({"subscription": subscription_id, "limit": 100}).data
        assert len(listed) - 1 == rhythms[rhythm], rhythm
    times = [event["created"] for event in shop.standin.events()[before:]]
    assert times == sorted(times)


def test_only_one_subscription_renews_when_it_is_asked_to(shop: Shop) -> None:
    one, other = shop.subscription(), shop.subscription()
    began = shop.standin.now()

    renewed = shop.standin.renew(one.id)

    item = renewed["items"]["data"][0]
    assert abs(item["current_period_start"] - began) <= SLACK_SECONDS
    assert item["current_period_end"] == add_intervals(item["current_period_start"], "month", 1)
    assert period_end(shop.reload(other)) == period_end(other)
    assert shop.standin.now() - began <= SLACK_SECONDS


@pytest.mark.parametrize("changes", [{"cancel_at_period_end": True}, {"cancel_at": "min_period_end"}])
def test_subscription_ends_with_its_period_when_that_is_scheduled(shop: Shop, changes: dict[str, Any]) -> None:
    subscription = shop.subscription()
    ends_at = period_end(subscription)

    scheduled = shop.v1.subscriptions.update(subscription.id, changes)
    advance_to(shop, ends_at - 10)
    assert shop.status(subscription) == "active"
    shop.standin.advance(20)

    ended = shop.reload(subscription)
    assert (scheduled.status, scheduled.cancel_at, scheduled.canceled_at is not None) == ("active", ends_at, True)
    assert scheduled.cancel_at_period_end == ("cancel_at_period_end" in changes)
    assert (ended.status, ended.ended_at, ended.canceled_at) == ("canceled", ends_at, scheduled.canceled_at)
    assert len(shop.v1.invoices.list({"subscription": subscription.id}).data) == 1
    assert event_types(shop.standin)[-1] == "customer.subscription.deleted"


def test_subscription_renews_when_its_scheduled_end_was_taken_back(shop: Shop) -> None:
    subscription = shop.subscription()
    shop.v1.subscriptions.update(subscription.id, {"cancel_at_period_end": True})

    taken_back = shop.v1.subscriptions.update(subscription.id, {"cancel_at_period_end": False})

    assert (taken_back.cancel_at, taken_back.canceled_at, taken_back.cancel_at_period_end) == (None, None, False)
    assert shop.standin.renew(subscription.id)["status"] == "active"


def test_end_at_a_date_stays_when_only_the_period_end_is_taken_back(shop: Shop) -> None:
    subscription = shop.subscription()
    ends_at = shop.standin.now() + 5 * DAY_SECONDS
    shop.v1.subscriptions.update(subscription.id, {"cancel_at": ends_at})

    kept = shop.v1.subscriptions.update(subscription.id, {"cancel_at_period_end": False})
    cleared = shop.v1.subscriptions.update(subscription.id, {"cancel_at": ""})

    assert (kept.cancel_at, cleared.cancel_at) == (ends_at, None)
    with pytest.raises(stripe.InvalidRequestError, match="only one"):
        shop.v1.subscriptions.update(subscription.id, {"cancel_at": "", "cancel_at_period_end": False})
    with pytest.raises(stripe.InvalidRequestError, match="future"):
        shop.v1.subscriptions.update(subscription.id, {"cancel_at": 1})


def test_subscription_ends_at_once_when_canceled(shop: Shop) -> None:
    subscription = shop.subscription()

    canceled = shop.v1.subscriptions.cancel(subscription.id, {"cancellation_details": {"comment": "gone"}})

    assert (canceled.status, canceled.ended_at) == ("canceled", canceled.canceled_at)
    assert canceled.cancellation_details.to_dict()["comment"] == "gone"
    [event] = shop.standin.events("customer.subscription.deleted")
    assert event["data"]["object"]["status"] == "canceled"
    assert event["request"]["id"] == canceled.last_response.request_id
    with pytest.raises(stripe.InvalidRequestError) as again:
        shop.v1.subscriptions.cancel(subscription.id)
    assert (again.value.http_status, again.value.code) == (404, "resource_missing")


def test_ended_subscription_takes_only_metadata_when_updated(shop: Shop) -> None:
    subscription = shop.subscription()
    shop.standin.cancel_now(subscription.id)

    with pytest.raises(stripe.InvalidRequestError) as refused:
        shop.v1.subscriptions.update(subscription.id, {"cancel_at_period_end": True})
    noted = shop.v1.subscriptions.update(subscription.id, {"metadata": {"why": "gone"}})

    assert (refused.value.http_status, refused.value.code) == (400, "invalid_canceled_subscription_fields")
    assert noted.metadata.to_dict() == {"why": "gone"}


def test_subscriptions_are_found_by_status_when_listed(shop: Shop) -> None:
    active, canceled, past_due = (shop.subscription() for _ in range(3))
    shop.standin.cancel_now(canceled.id)
    shop.standin.fail_payment(past_due.id)
    other = shop.v1.prices.create({"product": shop.product.id, "currency": "usd", "unit_amount": 1, "recurring": MONTH})

    def listed(**params: str) -> list[str]:
        return [subscription.id for subscription in shop.v1.subscriptions.list(params).data]

    assert listed() == [past_due.id, active.id]
    assert listed(status="all") == [past_due.id, canceled.id, active.id]
    assert listed(status="ended") == listed(status="canceled") == [canceled.id]
    assert listed(status="past_due") == [past_due.id]
    assert listed(customer=active.customer) == listed(customer=active.customer, price=shop.price.id) == [active.id]
    assert listed(price=other.id) == []


def test_trial_turns_into_a_paid_period_when_it_ends(shop: Shop) -> None:
    subscription = shop.subscription(trial_period_days=10)
    assert subscription.status == "trialing"

    shop.standin.advance(7 * DAY_SECONDS + 5)
    assert event_types(shop.standin).count("customer.subscription.trial_will_end") == 1
    shop.standin.advance(3 * DAY_SECONDS)

    paid = shop.reload(subscription)
    assert (paid.status, paid.latest_invoice.total, paid.latest_invoice.status) == ("active", 900, "paid")
    assert period_end(paid) == add_intervals(subscription.trial_end, "month", 1)
    assert event_types(shop.standin).count("customer.subscription.trial_will_end") == 1


def test_trial_ends_now_when_it_is_renewed(shop: Shop) -> None:
    subscription = shop.subscription(trial_period_days=10)

    assert shop.standin.renew(subscription.id)["status"] == "active"


@pytest.mark.parametrize(
    ("behaviour", "status"), [("create_invoice", "past_due"), ("cancel", "canceled"), ("pause", "paused")]
)
def test_trial_ends_as_its_settings_say_when_there_is_no_card(shop: Shop, behaviour: str, status: str) -> None:
    subscription = shop.v1.subscriptions.create(
        {
            "customer": shop.customer().id,
            "items": [{"price": shop.price.id}],
            "trial_period_days": 1,
            "trial_settings": {"end_behavior": {"missing_payment_method": behaviour}},
        }
    )
    shop.standin.advance(DAY_SECONDS + 5)

    assert shop.status(subscription) == status


def test_paused_subscription_begins_anew_when_resumed(shop: Shop) -> None:
    subscription = shop.subscription()
    paused = shop.standin.set_status(subscription.id, "paused")
    shop.standin.advance(60 * DAY_SECONDS)
    assert len(shop.v1.invoices.list({"subscription": subscription.id}).data) == 1

    resumed = shop.v1.subscriptions.resume(subscription.id)

    assert paused["status_details"]["paused"]["type"] == "subscription"
    assert resumed.status == "active"
    assert shop.reload(subscription).latest_invoice.status == "paid"
    assert abs(period_end(resumed) - add_intervals(shop.standin.now(), "month", 1)) <= SLACK_SECONDS
    assert {"customer.subscription.paused", "customer.subscription.resumed"} <= set(event_types(shop.standin))
    with pytest.raises(stripe.InvalidRequestError, match="paused"):
        shop.v1.subscriptions.resume(subscription.id)


def test_status_is_forced_and_told_when_asked_for(shop: Shop) -> None:
    subscription = shop.subscription()

    for status in ("past_due", "unpaid", "incomplete_expired"):
        assert shop.standin.set_status(subscription.id, status)["status"] == status
        event = shop.standin.events("customer.subscription.updated")[-1]
        assert event["data"]["object"]["status"] == status
        assert "status" in event["data"]["previous_attributes"]
    with pytest.raises(ApiError, match="status must be"):
        shop.standin.set_status(subscription.id, "dead")


def test_things_happen_in_order_when_much_time_passes_at_once(shop: Shop) -> None:
    ending, failing = shop.subscription(), shop.subscription()
    shop.v1.subscriptions.update(ending.id, {"cancel_at_period_end": True})
    session = shop.session()
    before = len(event_types(shop.standin))

    shop.standin.set_card(failing.customer, "declines")
    now = shop.standin.advance(60 * DAY_SECONDS)

    made = shop.standin.events()[before:]
    times = [event["created"] for event in made]
    assert times == sorted(times)
    assert made[0]["data"]["object"]["id"] == session.id
    assert (shop.status(ending), shop.status(failing)) == ("canceled", "canceled")
    assert abs(now - ending.created - 60 * DAY_SECONDS) <= SLACK_SECONDS


def test_events_are_found_when_listed_by_type_and_time(shop: Shop) -> None:
    subscription = shop.subscription()
    shop.standin.advance(DAY_SECONDS)
    since = shop.standin.now()
    shop.standin.renew(subscription.id)

    renewal = shop.v1.events.list({"created": {"gte": since}, "limit": 100}).data
    paid = shop.v1.events.list({"type": "invoice.paid"}).data
    invoices = shop.v1.events.list({"type": "invoice.*", "limit": 100}).data
    two = shop.v1.events.list({"types": ["price.created", "product.created"]}).data

    assert [event.type for event in renewal][-1] == "customer.subscription.updated"
    assert len(renewal) == 6
    assert len(paid) == 2
    assert {event.type.partition(".")[0] for event in invoices} == {"invoice"}
    assert [event.type for event in two] == ["price.created", "product.created"]
    assert shop.v1.events.retrieve(paid[0].id).data.object["id"] == paid[0].data.object["id"]
