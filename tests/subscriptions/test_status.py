"""What a user sees and does: status, history, cancelling, resuming, the portal; and the quota that follows."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from flask import Flask

from chatapi.dev.stripe.faults import Fault
from chatapi.subscriptions import service
from tests.subscriptions.support import Billing, Json, age_open_invoice, tier_of
from tests.support import Account, make_price, race, stripe_client, wait_for

INACTIVE = {
    "tier": None,
    "status": "inactive",
    "started_at": None,
    "ended_at": None,
    "current_period_end": None,
    "cancel_at_period_end": None,
    "stripe_subscription_id": None,
}


def status_of(account: Account) -> Json:
    answer = account.call("GET", "/subscription/status")
    assert answer.status_code == 200, answer.get_json()
    status: Json = answer.get_json()
    return status


def history_of(account: Account) -> list[Json]:
    history: list[Json] = account.call("GET", "/subscription/history").get_json()["subscription_history"]
    return history


def test_status_without_subscription_is_inactive(account: Account) -> None:
    status = status_of(account)

    assert status["subscription"] == INACTIVE
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    assert datetime.fromisoformat(status["usage"].pop("resets_at")) == midnight
    assert status["usage"] == {"tier": "basic", "daily_usage_count": 0, "daily_limit": 5, "remaining": 5}
    assert status["features"].keys() == {"basic", "pro"}
    assert {tier: features["daily_prompts"] for tier, features in status["features"].items()} == {
        "basic": 5,
        "pro": "unlimited",
    }
    assert {name for features in status["features"].values() for name in features} == {
        "daily_prompts",
        "chatrooms",
        "support",
    }


def test_status_of_a_subscriber_is_stripes(billing: Billing, subscriber: Account) -> None:
    status = status_of(subscriber)

    remote = billing.stripe.account.find("subscription", status["subscription"]["stripe_subscription_id"])
    period_end = datetime.fromtimestamp(remote["items"]["data"][0]["current_period_end"], UTC)
    assert status["subscription"] == {
        "tier": "pro",
        "status": "active",
        "started_at": datetime.fromtimestamp(remote["start_date"], UTC).isoformat(timespec="microseconds")[:-6] + "Z",
        "ended_at": None,
        "current_period_end": period_end.isoformat(timespec="microseconds")[:-6] + "Z",
        "cancel_at_period_end": False,
        "stripe_subscription_id": remote["id"],
    }
    assert (status["usage"]["daily_limit"], status["usage"]["remaining"]) == ("unlimited", "unlimited")
    assert subscriber.call("GET", "/subscribe/status").get_json() == status
    me = subscriber.call("GET", "/user/me").get_json()["user"]
    assert (me["subscription_tier"], me["subscription_status"]) == ("pro", "active")


def test_me_has_no_status_without_subscription(account: Account) -> None:
    assert account.call("GET", "/user/me").get_json()["user"]["subscription_status"] is None


def test_upgrade_and_downgrade_act_on_the_next_prompt(billing: Billing, account: Account) -> None:
    room_id = account.open_room(title="room")
    assert [account.send(room_id, "hello").status_code for _ in range(6)] == [201] * 5 + [429]

    billing.subscribe(account)
    assert [account.send(room_id, "hello").status_code for _ in range(3)] == [201] * 3
    assert status_of(account)["usage"]["daily_usage_count"] == 5

    billing.stripe.cancel_now(billing.subscription_of(account))
    billing.tell_all()
    billing.work()
    refusal = account.send(room_id, "hello")
    assert (refusal.status_code, refusal.get_json()["error"]) == (429, "daily_limit_reached")
    usage = status_of(account)["usage"]
    assert (usage["tier"], usage["daily_usage_count"], usage["remaining"]) == ("basic", 5, 0)


def test_reply_remembers_the_day_it_was_charged_to_and_none_on_pro(billing: Billing, account: Account) -> None:
    room_id = account.open_room(title="room")
    on_basic = account.prompt(room_id, "hello")
    billing.subscribe(account)
    on_pro = account.prompt(room_id, "hello")

    days = {str(row.id): row.charged_day for row in billing.rows("SELECT id, charged_day FROM messages")}
    assert days[on_basic] == billing.rows("SELECT (now() AT TIME ZONE 'UTC')::date AS today")[0].today
    assert days[on_pro] is None


def test_prompts_left_are_never_negative_when_the_limit_was_lowered(
    account: Account, make_app: Callable[..., Flask], app: Flask
) -> None:
    room_id = account.open_room(title="room")
    for _ in range(3):
        account.prompt(room_id, "hello")
    account.client = make_app(BASIC_DAILY_PROMPTS="2", JWT_SECRET=app.config["JWT_SECRET"]).test_client()

    assert status_of(account)["usage"]["remaining"] == 0


def test_status_after_paying_is_pro_though_no_message_came(
    billing: Billing, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "HEAL_EVERY_SECONDS", 0.5)
    session_id = billing.check_out(account)
    assert status_of(account)["subscription"] == INACTIVE
    billing.stripe.pay(session_id)

    wait_for(lambda: status_of(account)["usage"]["tier"] == "pro", seconds=10)
    assert tier_of(account) == "pro"


def test_status_asks_stripe_once_in_a_few_seconds_at_the_most(billing: Billing, customer: Account) -> None:
    billing.stripe.forget_requests()
    began = time.monotonic()

    race(20, lambda _: status_of(customer))
    for _ in range(20):
        status_of(customer)

    assert len(billing.stripe.requests) <= 1 + (time.monotonic() - began) // 3


def test_status_asks_stripe_nothing_when_there_was_no_checkout_or_it_is_over(
    billing: Billing, account: Account, new_subscriber: Callable[[], Account]
) -> None:
    paid = new_subscriber()
    billing.stripe.forget_requests()

    for _ in range(3):
        status_of(account)
        status_of(paid)

    assert not billing.stripe.requests


@pytest.mark.parametrize("kind", ["500", "cut", "401"])
def test_status_is_shown_while_stripe_is_away(billing: Billing, customer: Account, kind: str) -> None:
    billing.stripe.add_fault(Fault(kind))

    assert status_of(customer)["subscription"] == INACTIVE


def test_status_is_shown_within_seconds_while_stripe_hangs(billing: Billing, customer: Account) -> None:
    billing.stripe.add_fault(Fault("hang"))
    began = time.monotonic()

    assert status_of(customer)["subscription"] == INACTIVE
    assert time.monotonic() - began < 6


@pytest.mark.parametrize("path", ["/subscription/success", "/subscribe/success", "/subscription/cancel"])
def test_success_page_grants_nothing(billing: Billing, account: Account, path: str) -> None:
    session_id = billing.check_out(account)

    account.call("GET", f"{path}?session_id={session_id}")
    account.client.get(f"/subscription/success?session_id={session_id}")

    assert (tier_of(account), status_of(account)["usage"]["tier"]) == ("basic", "basic")


def test_cancelling_ends_with_the_period_and_can_be_taken_back(billing: Billing, subscriber: Account) -> None:
    subscription_id = billing.subscription_of(subscriber)

    cancelled = subscriber.call("POST", "/subscription/cancel")
    assert (cancelled.status_code, cancelled.get_json()["usage"]["tier"]) == (200, "pro")
    assert cancelled.get_json()["subscription"]["cancel_at_period_end"] is True
    assert billing.stripe.account.find("subscription", subscription_id)["cancel_at_period_end"] is True
    assert subscriber.call("POST", "/subscription/cancel").get_json() == cancelled.get_json()

    resumed = subscriber.call("POST", "/subscription/resume")
    assert resumed.get_json()["subscription"]["cancel_at_period_end"] is False
    assert billing.stripe.account.find("subscription", subscription_id)["cancel_at_period_end"] is False
    assert subscriber.call("POST", "/subscription/resume").get_json() == resumed.get_json()


def test_cancelled_subscription_is_over_with_its_period(billing: Billing, subscriber: Account) -> None:
    subscription_id = billing.subscription_of(subscriber)
    subscriber.call("POST", "/subscription/cancel")
    billing.stripe.renew(subscription_id)
    billing.tell_all()
    billing.work()

    shown = status_of(subscriber)["subscription"]
    assert (shown["status"], shown["tier"]) == ("canceled", "basic")
    assert shown["ended_at"] is not None
    for route in ("cancel", "resume", "portal"):
        answer = subscriber.call("POST", f"/subscription/{route}")
        assert (answer.status_code, answer.get_json()["error"]) == (409, "not_subscribed"), route


def test_end_at_a_date_set_at_stripe_can_be_taken_back(billing: Billing, subscriber: Account) -> None:
    subscription_id = billing.subscription_of(subscriber)
    ends_at = billing.stripe.now() + 86_400
    stripe_client(billing.stripe).v1.subscriptions.update(subscription_id, {"cancel_at": ends_at})
    billing.tell_all()
    billing.work()
    assert status_of(subscriber)["subscription"]["cancel_at_period_end"] is True

    resumed = subscriber.call("POST", "/subscription/resume").get_json()

    assert resumed["subscription"]["cancel_at_period_end"] is False
    assert billing.stripe.account.find("subscription", subscription_id)["cancel_at"] is None


@pytest.mark.parametrize("route", ["cancel", "resume", "portal"])
def test_nothing_to_change_without_a_subscription(billing: Billing, customer: Account, route: str) -> None:
    answer = customer.call("POST", f"/subscription/{route}")

    assert (answer.status_code, answer.get_json()["error"]) == (409, "not_subscribed")


@pytest.mark.parametrize("route", ["cancel", "resume", "portal"])
@pytest.mark.parametrize("kind", ["500", "401", "cut"])
def test_trouble_at_stripe_is_a_503(billing: Billing, subscriber: Account, route: str, kind: str) -> None:
    billing.stripe.add_fault(Fault(kind))

    answer = subscriber.call("POST", f"/subscription/{route}")

    assert (answer.status_code, answer.get_json()["error"]) == (503, "billing_unavailable")
    assert int(answer.headers["Retry-After"]) >= 1
    assert tier_of(subscriber) == "pro"


def test_cancelling_works_though_the_payment_was_not_told_of(billing: Billing, account: Account) -> None:
    session = billing.stripe.pay(billing.check_out(account))

    assert account.call("POST", "/subscription/cancel").get_json()["usage"]["tier"] == "pro"
    assert billing.stripe.account.find("subscription", session["subscription"])["cancel_at_period_end"] is True


def test_subscription_that_is_not_ours_is_left_alone(billing: Billing, customer: Account) -> None:
    other = billing.stripe.subscribe(billing.customer_of(customer), make_price(billing.stripe))

    assert customer.call("POST", "/subscription/cancel").status_code == 409
    assert billing.stripe.account.find("subscription", other["id"])["cancel_at_period_end"] is False


def test_portal_is_stripes_and_leads_back_to_the_front_end(billing: Billing, subscriber: Account) -> None:
    answer = subscriber.call("POST", "/subscription/portal")

    assert answer.get_json()["portal_url"].startswith(billing.stripe.url)
    asked = next(request.params for request in billing.stripe.requests if "billing_portal" in request.path)
    assert asked == {"customer": billing.customer_of(subscriber), "return_url": "https://chat.example/subscription"}


def test_history_holds_every_subscription_newest_first(billing: Billing, subscriber: Account) -> None:
    first = billing.subscription_of(subscriber)
    billing.stripe.cancel_now(first)
    second = billing.subscribe(subscriber)

    history = history_of(subscriber)

    assert [(each["stripe_subscription_id"], each["status"], each["tier"]) for each in history] == [
        (second, "active", "pro"),
        (first, "canceled", "pro"),
    ]
    assert history[0].keys() == {
        "id",
        "status",
        "tier",
        "started_at",
        "ended_at",
        "stripe_subscription_id",
        "created_at",
    }
    ended_at = billing.stripe.account.find("subscription", first)["ended_at"]
    assert datetime.fromisoformat(history[1]["ended_at"]) == datetime.fromtimestamp(ended_at, UTC)


def test_subscriptions_of_others_are_not_shown(subscriber: Account, sign_in: Callable[..., Account]) -> None:
    stranger = sign_in()

    assert history_of(stranger) == []
    assert status_of(stranger)["subscription"] == INACTIVE


def test_grace_ends_by_itself(billing: Billing, subscriber: Account) -> None:
    """With no message, and nobody looking at Stripe: three days after the oldest unpaid invoice was made."""
    subscription_id = billing.subscription_of(subscriber)
    billing.stripe.fail_payment(subscription_id)
    age_open_invoice(billing.stripe, subscription_id, timedelta(days=3) - timedelta(seconds=3))
    billing.tell_all()
    billing.work()
    assert (tier_of(subscriber), status_of(subscriber)["subscription"]["status"]) == ("pro", "past_due")

    wait_for(lambda: tier_of(subscriber) == "basic", seconds=8)
    shown = status_of(subscriber)
    assert (shown["subscription"]["status"], shown["usage"]["tier"]) == ("past_due", "basic")

    billing.stripe.pay_open_invoice(subscription_id)
    billing.tell_all()
    billing.work()
    assert tier_of(subscriber) == "pro"


def test_grace_counts_from_the_oldest_of_several_unpaid_invoices(billing: Billing, subscriber: Account) -> None:
    subscription_id = billing.subscription_of(subscriber)
    billing.stripe.fail_payment(subscription_id)
    age_open_invoice(billing.stripe, subscription_id, timedelta(days=31))
    billing.stripe.renew(subscription_id)
    if billing.stripe.account.find("subscription", subscription_id)["status"] != "past_due":
        billing.stripe.set_status(subscription_id, "past_due")

    billing.tell_all()
    billing.work()

    assert tier_of(subscriber) == "basic"
