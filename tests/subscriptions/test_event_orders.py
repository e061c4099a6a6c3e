"""Any order of events, with duplicates, losses and delays: the tier is that of Stripe's object, and quotas hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chatapi.dev.stripe.wire import ApiError
from chatapi.subscriptions.reconcile import reconcile
from tests.subscriptions.support import Billing, Json, tier_of
from tests.support import Account, stripe_client

GRACE_SECONDS = 3 * 86_400
LIMIT = 5

CHANGES = ("subscribe", "renew", "fail", "pay", "end", "go_on", "cancel", "unpaid", "paused", "incomplete")

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("change"), st.sampled_from(CHANGES)),
        st.tuples(st.just("tell"), st.integers(0, 200)),
        st.tuples(st.just("lose"), st.integers(0, 200)),
        st.tuples(st.just("work"), st.none()),
        st.tuples(st.just("prompt"), st.none()),
    ),
    max_size=30,
)


class History:
    """What happens to one customer at Stripe, what the application is told of it, and what it does meanwhile."""

    def __init__(self, billing: Billing, account: Account) -> None:
        self.billing = billing
        self.account = account
        self.room_id = account.open_room(title="room")
        billing.check_out(account)
        billing.news()
        self.customer = billing.customer_of(account)
        self.untold: list[Json] = []
        self.told: list[Json] = []
        self.is_lossless = True

    def take(self, step: tuple[str, Any]) -> None:
        name, argument = step
        getattr(self, name)(argument)

    def change(self, what: str) -> None:
        stripe = self.billing.stripe
        running = [each for each in self._subscriptions() if each["status"] not in ("canceled", "incomplete_expired")]
        try:
            if what == "subscribe":
                if len(running) < 2:
                    stripe.subscribe(self.customer, self.billing.price_id)
            elif running:
                self._change_one(what, running[-1]["id"])
        except ApiError:
            pass  # It cannot be done as things are, and Stripe says so.
        self.untold += self.billing.news()

    def _change_one(self, what: str, subscription_id: str) -> None:
        stripe, v1 = self.billing.stripe, stripe_client(self.billing.stripe).v1
        if what in ("end", "go_on"):
            v1.subscriptions.update(subscription_id, {"cancel_at_period_end": what == "end"})
        elif what in ("unpaid", "paused", "incomplete"):
            stripe.set_status(subscription_id, what)
        else:
            doing = {
                "renew": stripe.renew,
                "fail": stripe.fail_payment,
                "pay": stripe.pay_open_invoice,
                "cancel": stripe.cancel_now,
            }
            doing[what](subscription_id)

    def tell(self, index: int) -> None:
        """Bring one of the events that are there, new or not, from anywhere among them."""
        waiting = self.untold + self.told
        if not waiting:
            return
        event = waiting[index % len(waiting)]
        assert self.billing.tell(event).status_code == 200
        if event in self.untold:
            self.untold.remove(event)
            self.told.append(event)

    def lose(self, index: int) -> None:
        if self.untold:
            self.untold.pop(index % len(self.untold))
            self.is_lossless = False

    def work(self, _: None) -> None:
        self.billing.work()

    def prompt(self, _: None) -> None:
        """Send a prompt: on Basic it is accepted exactly if one is left."""
        tier, used = tier_of(self.account), self.account.daily_usage()
        status = self.account.send(self.room_id, "hello").status_code
        if tier == "pro":
            assert status == 201
            assert self.account.daily_usage() == used
        else:
            assert status == (201 if used < LIMIT else 429)
            assert self.account.daily_usage() == min(used + 1, LIMIT)

    def settle(self) -> None:
        """Have everything told that was not lost, and, if something was, compare with Stripe."""
        while self.untold:
            self.tell(len(self.untold) // 2)
        self.billing.work()
        if not self.is_lossless:
            self.billing.in_app(reconcile)

    def is_entitled(self) -> bool:
        """Return what Stripe's objects say now, read without the code that is tested."""
        account, now = self.billing.stripe.account, self.billing.stripe.now()
        for subscription in self._subscriptions():
            if subscription["status"] in ("active", "trialing"):
                return True
            if subscription["status"] == "past_due":
                unpaid = [
                    invoice["created"]
                    for invoice in account.all_of("invoice")
                    if invoice["status"] == "open"
                    and invoice["parent"]["subscription_details"]["subscription"] == subscription["id"]
                ]
                start = subscription["items"]["data"][0]["current_period_start"]
                if min(unpaid, default=start) + GRACE_SECONDS > now:
                    return True
        return False

    def _subscriptions(self) -> list[Json]:
        account = self.billing.stripe.account
        with account.changing():
            return [each for each in account.all_of("subscription") if each["customer"] == self.customer]


def check(billing: Billing, account: Account, steps: list[tuple[str, Any]]) -> None:
    history = History(billing, account)
    for step in steps:
        history.take(step)
    history.settle()
    assert tier_of(account) == ("pro" if history.is_entitled() else "basic")
    history.prompt(None)
    # Whatever is sent again now changes nothing.
    for event in history.told[::3]:
        billing.tell(event)
    billing.work()
    assert tier_of(account) == ("pro" if history.is_entitled() else "basic")


EXPLORE = settings(
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@settings(EXPLORE, max_examples=25)
@given(steps=STEPS)
def test_any_history_ends_in_the_tier_of_the_current_object(
    billing: Billing, sign_in: Callable[..., Account], steps: list[tuple[str, Any]]
) -> None:
    check(billing, sign_in(), steps)


@pytest.mark.slow
@pytest.mark.timeout(600)
@settings(EXPLORE, max_examples=400)
@given(steps=STEPS)
def test_any_of_many_histories_ends_in_the_tier_of_the_current_object(
    billing: Billing, sign_in: Callable[..., Account], steps: list[tuple[str, Any]]
) -> None:
    check(billing, sign_in(), steps)
