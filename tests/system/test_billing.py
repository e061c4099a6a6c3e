"""From Basic to Pro and back in the running system: the real SDK, real signatures, messages delivered over HTTP."""

from __future__ import annotations

import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import requests

from chatapi.dev.stripe.faults import Fault
from chatapi.dev.stripe.standin import StripeStandin
from tests.subscriptions.support import age_open_invoice, tier_of
from tests.support import Account, race, wait_for
from tests.system.support import System, finish, wait_all_ended

SETTINGS = {"WEB_CONCURRENCY": "4", "BASIC_DAILY_PROMPTS": "5"}


@pytest.fixture
def stripe(system: System) -> StripeStandin:
    system.services.stripe.forget_requests()
    return system.services.stripe


def check_out(account: Account) -> dict[str, Any]:
    answer = account.call("POST", "/subscribe/pro")
    assert answer.status_code == 200, answer.get_json()
    checkout: dict[str, Any] = answer.get_json()
    return checkout


def press(url: str, button: str) -> requests.Response:
    """Open a page of Stripe's and press a button on it, as a browser without scripts does."""
    page = requests.get(url, timeout=10)
    form = next(form for form in re.findall(r"<form.*?</form>", page.text, re.DOTALL) if f">{button}<" in form)
    fields = dict(re.findall(r'name="([^"]+)" value="([^"]*)"', form))
    return requests.post(url, data=fields, allow_redirects=False, timeout=10)


def become_pro(system: System, account: Account) -> str:
    """Pay, and wait until that is known; return the subscription's id."""
    session = system.services.stripe.pay(check_out(account)["session_id"])
    wait_for(lambda: tier_of(account) == "pro")
    subscription_id: str = session["subscription"]
    return subscription_id


def subscription_of(account: Account) -> dict[str, Any]:
    status: dict[str, Any] = account.call("GET", "/subscription/status").get_json()["subscription"]
    return status


def open_events(system: System) -> int:
    return int(system.rows("SELECT count(*) AS open FROM stripe_events WHERE due_at IS NOT NULL")[0].open)


def test_the_way_from_basic_to_pro_and_back(system: System, someone: Account, stripe: StripeStandin) -> None:
    room_id = someone.open_room(title="billing")
    for number in range(5):
        reply = finish(someone, room_id, someone.prompt(room_id, f"prompt {number}"))
        assert reply["status"] == "completed"
    refusal = someone.send(room_id, "a sixth")
    assert (refusal.status_code, refusal.get_json()["error"]) == (429, "daily_limit_reached")

    checkout = check_out(someone)
    back = press(checkout["checkout_url"], "Pay")
    assert back.status_code == 303
    assert back.headers["Location"] == (
        f"https://chat.example/subscription/success?session_id={checkout['session_id']}"
    )
    wait_for(lambda: tier_of(someone) == "pro", seconds=10)
    assert finish(someone, room_id, someone.prompt(room_id, "a sixth"))["status"] == "completed"
    assert someone.daily_usage() == 5

    subscription_id = subscription_of(someone)["stripe_subscription_id"]
    stripe.fail_payment(subscription_id)
    wait_for(lambda: subscription_of(someone)["status"] == "past_due", seconds=10)
    assert someone.send(room_id, "within the grace").status_code == 201

    age_open_invoice(stripe, subscription_id, timedelta(days=3) - timedelta(seconds=2))
    wait_for(lambda: someone.send(room_id, "after the grace").status_code == 429, seconds=15)
    assert (subscription_of(someone)["status"], tier_of(someone)) == ("past_due", "basic")
    wait_all_ended(system, 60)
    assert stripe.wait_until_delivered()


def test_quota_is_exact_when_two_hundred_prompts_arrive_at_four_processes(system: System, someone: Account) -> None:
    room_id = someone.open_room(title="race")

    answers = race(200, lambda index: someone.send(room_id, f"prompt {index}"))

    assert Counter(answer.status_code for answer in answers) == {201: 5, 429: 195}
    assert someone.daily_usage() == 5
    used = system.rows(
        "SELECT used FROM daily_usage WHERE number_hash = (SELECT number_hash FROM users WHERE id = %s)", someone.id
    )
    assert [row.used for row in used] == [5]
    wait_all_ended(system, 60)


def test_no_prompt_is_lost_or_counted_when_the_tier_changes_among_many(
    system: System, someone: Account, stripe: StripeStandin
) -> None:
    """Those of before the payment are counted, at most as many as there are; those of after it are not."""
    room_id = someone.open_room(title="race")
    session_id = check_out(someone)["session_id"]

    def send(index: int) -> int:
        if index == 20:
            stripe.pay(session_id)
        time.sleep(index * 0.02)
        return someone.send(room_id, f"prompt {index}").status_code

    answers = race(48, send)

    wait_for(lambda: tier_of(someone) == "pro")
    statuses = Counter(answers)
    assert set(statuses) <= {201, 429}
    charged = system.rows(
        "SELECT count(*) AS charged FROM messages WHERE user_id = %s AND charged_day IS NOT NULL", someone.id
    )
    assert charged[0].charged == someone.daily_usage() <= 5
    stored = system.rows("SELECT count(*) AS stored FROM messages WHERE user_id = %s AND reply_to IS NULL", someone.id)
    assert stored[0].stored == statuses[201]
    wait_all_ended(system, 60)


def test_fifty_deliveries_of_one_event_at_once_have_one_effect(
    system: System, someone: Account, stripe: StripeStandin
) -> None:
    become_pro(system, someone)
    stripe.wait_until_delivered()
    event = stripe.events("customer.subscription.created")[-1]

    stripe.redeliver(event["id"], copies=50)

    assert stripe.wait_until_delivered(30)
    attempts = [attempt for attempt in stripe.deliveries if attempt.event_id == event["id"]]
    assert (len(attempts), {attempt.status for attempt in attempts}) == (51, {200})
    rows = system.rows("SELECT status FROM stripe_events WHERE event_id = %s", event["id"])
    assert [row.status for row in rows] == ["handled"]
    assert len(someone.call("GET", "/subscription/history").get_json()["subscription_history"]) == 1


def test_tier_is_right_when_all_messages_come_shuffled_doubled_and_some_never(
    system: System, someone: Account, stripe: StripeStandin
) -> None:
    stripe.hold_deliveries()
    session = stripe.pay(check_out(someone)["session_id"])
    stripe.renew(session["subscription"])
    stripe.fail_payment(session["subscription"])
    stripe.pay_open_invoice(session["subscription"])
    stripe.cancel_now(session["subscription"])
    again = stripe.pay(check_out(someone)["session_id"])

    stripe.release_deliveries("shuffled", seed=7, drop=5, copies=3)

    wait_for(lambda: tier_of(someone) == "pro")
    wait_for(lambda: open_events(system) == 0)
    assert subscription_of(someone)["stripe_subscription_id"] == again["subscription"]
    stripe.cancel_now(again["subscription"])
    wait_for(lambda: tier_of(someone) == "basic")


def test_sweeper_has_every_tier_repaired_when_all_messages_are_lost(
    system: System, someone: Account, sign_in: Callable[..., Account], stripe: StripeStandin
) -> None:
    other = sign_in(via=system.client)
    subscription_id = become_pro(system, other)
    assert stripe.wait_until_delivered()
    wait_for(lambda: open_events(system) == 0)  # One that is looked into later sees what is so then.
    stripe.drop_deliveries()
    stripe.pay(check_out(someone)["session_id"])
    stripe.cancel_now(subscription_id)
    time.sleep(1)
    assert (tier_of(someone), tier_of(other)) == ("basic", "pro")

    system.rows("UPDATE billing_reconciliation SET due_at = now(), not_before = NULL RETURNING id")

    wait_for(lambda: (tier_of(someone), tier_of(other)) == ("pro", "basic"), seconds=15)


def test_whoever_comes_back_from_paying_sees_pro_though_the_message_is_late(
    system: System, someone: Account, stripe: StripeStandin
) -> None:
    stripe.drop_deliveries()
    checkout = check_out(someone)
    assert subscription_of(someone)["status"] == "inactive"
    press(checkout["checkout_url"], "Pay")

    wait_for(lambda: subscription_of(someone)["tier"] == "pro", seconds=10, every=0.5)
    assert tier_of(someone) == "pro"


@pytest.mark.slow
def test_account_is_erased_while_stripe_is_away_and_its_subscription_ends_later(
    system: System, someone: Account, stripe: StripeStandin
) -> None:
    subscription_id = become_pro(system, someone)
    stripe.add_fault(Fault("503"))

    assert someone.call("DELETE", "/user/me").status_code == 204
    time.sleep(2)
    assert stripe.account.find("subscription", subscription_id)["status"] == "active"
    stripe.clear()

    wait_for(lambda: stripe.account.find("subscription", subscription_id)["status"] == "canceled", seconds=30)
    wait_for(lambda: not system.rows("SELECT 1 FROM billing_closures WHERE due_at IS NOT NULL"), seconds=30)


@pytest.mark.slow
def test_hanging_stripe_keeps_nobody_else_waiting(
    system: System, someone: Account, sign_in: Callable[..., Account], stripe: StripeStandin
) -> None:
    people = [sign_in(via=system.client) for _ in range(8)]
    stripe.add_fault(Fault("hang"))

    with ThreadPoolExecutor(80) as pool:
        buying = [pool.submit(person.call, "POST", "/subscribe/pro") for person in people for _ in range(10)]
        time.sleep(0.5)
        slowest = max(someone.call("GET", "/user/me").seconds for _ in range(10))
        answers = [each.result() for each in buying]

    assert slowest < 2
    assert {answer.status_code for answer in answers} == {503}
    assert max(answer.seconds for answer in answers) < 18


@pytest.mark.slow
def test_payment_counts_though_valkey_was_dead_when_it_was_told_of(
    system: System, someone: Account, stripe: StripeStandin
) -> None:
    session_id = check_out(someone)["session_id"]
    system.kill_valkey()
    stripe.pay(session_id)
    assert stripe.wait_until_delivered(20)

    system.services.valkey_process.restart()

    wait_for(lambda: tier_of(someone) == "pro", seconds=60)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_payment_counts_though_billing_was_killed_over_it(
    system: System, someone: Account, stripe: StripeStandin
) -> None:
    session_id = check_out(someone)["session_id"]
    stripe.add_fault(Fault("hang", path="/v1/subscriptions"))
    stripe.pay(session_id)
    wait_for(lambda: [each for each in stripe.requests if each.path == "/v1/subscriptions"])
    system.kill("billing")
    stripe.clear()

    system["billing"].restart()

    # What was begun is looked at again when its time is over.
    wait_for(lambda: tier_of(someone) == "pro", seconds=180, every=1)


@pytest.mark.slow
def test_payment_counts_though_postgres_was_down_when_it_was_told_of(
    system: System, someone: Account, stripe: StripeStandin
) -> None:
    session_id = check_out(someone)["session_id"]
    os.kill(system.services.postgres_process.pid or 0, signal.SIGINT)
    wait_for(lambda: not system.services.postgres_process.is_running())
    stripe.pay(session_id)
    wait_for(lambda: [attempt for attempt in stripe.deliveries if attempt.status == 503], seconds=30)

    system.services.postgres_process.restart()

    assert stripe.wait_until_delivered(60)
    wait_for(lambda: tier_of(someone) == "pro", seconds=60)
