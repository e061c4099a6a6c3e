"""The table of Stripe's statuses: which give Pro, and for how long."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import get_args

import pytest
import stripe

from chatapi.subscriptions.gateway import RemoteSubscription
from chatapi.subscriptions.tiers import GRANTS, RENEWAL_SLACK, pro_until
from tests.subscriptions.support import logged

BEGAN = datetime(2026, 11, 1, 12, tzinfo=UTC)
ENDS = datetime(2026, 12, 1, 12, tzinfo=UTC)
UNPAID_SINCE = datetime(2026, 11, 2, tzinfo=UTC)
GRACE = timedelta(days=3)
SUBSCRIPTION = RemoteSubscription(
    id="sub_1",
    customer_id="cus_1",
    status="active",
    price_ids=("price_pro",),
    started_at=BEGAN,
    ended_at=None,
    current_period_start=BEGAN,
    current_period_end=ENDS,
    cancels_at_period_end=False,
    ends_at=None,
)


def until(unpaid_since: datetime | None = None, **changes: object) -> datetime | None:
    subscription = replace(SUBSCRIPTION, **changes)  # type: ignore[arg-type]
    return pro_until(subscription, unpaid_since, ("price_pro", "price_before"), GRACE)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("active", ENDS + RENEWAL_SLACK),
        ("trialing", ENDS + RENEWAL_SLACK),
        ("past_due", UNPAID_SINCE + GRACE),
        ("unpaid", None),
        ("paused", None),
        ("canceled", None),
        ("incomplete", None),
        ("incomplete_expired", None),
    ],
)
def test_status_gives_pro_for_as_long_as_the_table_says(status: str, expected: datetime | None) -> None:
    assert until(UNPAID_SINCE, status=status) == expected


def test_table_knows_every_status_of_the_sdk() -> None:
    choices = get_args(stripe.Subscription.__annotations__["status"])

    assert {word for choice in choices for word in get_args(choice)} == set(GRANTS)


def test_unknown_status_gives_nothing_and_is_reported(in_app: None, caplog: pytest.LogCaptureFixture) -> None:
    assert until(status="hibernating") is None

    assert [said["status"] for said in logged(caplog, "subscription_status_unknown")] == ["hibernating"]


@pytest.mark.parametrize("status", ["active", "trialing", "past_due"])
def test_foreign_price_gives_nothing(status: str) -> None:
    assert until(UNPAID_SINCE, status=status, price_ids=("price_other",)) is None


def test_earlier_price_is_still_honoured() -> None:
    assert until(price_ids=("price_before",)) == ENDS + RENEWAL_SLACK
    assert until(price_ids=("price_addon", "price_pro")) == ENDS + RENEWAL_SLACK


def test_subscription_that_will_not_go_on_gives_pro_until_its_end_exactly() -> None:
    assert until(cancels_at_period_end=True, ends_at=ENDS) == ENDS


def test_end_later_than_the_period_does_not_lengthen_what_is_believed() -> None:
    assert until(ends_at=ENDS + timedelta(days=200)) == ENDS + RENEWAL_SLACK


def test_grace_counts_from_the_period_when_no_invoice_is_open() -> None:
    assert until(None, status="past_due") == BEGAN + GRACE


def test_grace_ends_with_the_subscription_if_that_ends_sooner() -> None:
    assert until(UNPAID_SINCE, status="past_due", ends_at=UNPAID_SINCE + timedelta(days=1)) == UNPAID_SINCE + timedelta(
        days=1
    )
