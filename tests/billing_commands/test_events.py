"""`flask billing events`, `retry` and `dismiss`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flask import Flask

from chatapi.broker import BILLING_QUEUE, NAMESPACE
from tests.billing_commands.support import Flasks, audit_of, shown
from tests.subscriptions.support import Billing, tier_of
from tests.support import Account


@pytest.fixture
def rung_for(app: Flask) -> Callable[[], int]:
    """Return what tells how many messages have been put on billing's queue since."""

    def length() -> int:
        with app.app_context():
            found: int = app.extensions["broker"].client.llen(f"{NAMESPACE}:{BILLING_QUEUE}")
            return found

    before = length()
    return lambda: length() - before


def test_billing_events_lists_what_needs_somebody_newest_first(flask: Flasks, store_event: Callable[..., str]) -> None:
    unmatched = store_event("unmatched", age="4 days", reason="unknown_customer")
    received = store_event("received", age="1 min", attempts=0)
    retrying = store_event("retrying", age="1 hour", reason="billing_unavailable")
    store_event("handled")
    store_event("ignored")

    found = shown(flask("events", "--json"))

    assert [event["event_id"] for event in found] == [received, retrying, unmatched]
    assert found[1].items() >= {"reason": "billing_unavailable", "attempts": 3, "customer_id": "cus_nobody"}.items()
    assert found[1]["next_try"].endswith("Z")
    assert found[2]["next_try"] is None
    plain = flask("events").stdout.splitlines()
    assert plain[2].startswith(
        f"{unmatched}  invoice.paid  cus_nobody  unmatched  unknown_customer  attempts 3  next -"
    )


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("open", ["received", "retrying"]),
        ("received", ["received"]),
        ("retrying", ["retrying"]),
        ("handled", ["handled"]),
        ("ignored", ["ignored"]),
        ("unmatched", ["unmatched"]),
    ],
)
def test_billing_events_lists_those_asked_for(
    flask: Flasks, store_event: Callable[..., str], status: str, expected: list[str]
) -> None:
    for each in ("received", "retrying", "handled", "ignored", "unmatched"):
        store_event(each)

    found = shown(flask("events", "--status", status, "--json"))

    assert sorted(event["status"] for event in found) == expected


def test_billing_events_lists_no_more_than_asked_for(flask: Flasks, store_event: Callable[..., str]) -> None:
    store_event("received", age="2 min")
    newest = store_event("received", age="1 min")

    found = shown(flask("events", "--limit", "1", "--json"))

    assert [event["event_id"] for event in found] == [newest]


@pytest.mark.parametrize("status", ["received", "retrying", "unmatched"])
def test_billing_retry_makes_an_event_due_and_rings(
    flask: Flasks, billing: Billing, store_event: Callable[..., str], rung_for: Callable[[], int], status: str
) -> None:
    event_id, other = store_event(status), store_event(status)

    result = flask("retry", event_id)

    assert (result.exit_code, result.stdout) == (0, f"{event_id} is due now.\n")
    found = billing.rows("SELECT *, due_at <= clock_timestamp() AS is_due FROM stripe_events ORDER BY id")
    assert [row.is_due for row in found] == [True, None if status == "unmatched" else False]
    assert (found[0].not_before, found[0].closed_at, found[1].event_id) == (None, None, other)
    assert found[0].status == ("received" if status == "received" else "retrying")
    assert rung_for() == 1


def test_billing_retry_brings_an_unmatched_event_to_its_account(
    flask: Flasks, billing: Billing, store_event: Callable[..., str], account: Account
) -> None:
    billing.stripe.pay(billing.check_out(account))
    event_id = store_event("unmatched", customer_id=billing.customer_of(account), age="5 days")

    assert flask("retry", event_id).exit_code == 0
    billing.work()

    assert billing.event_row(event_id).status == "handled"
    assert tier_of(account) == "pro"
    (audited,) = audit_of(billing, account)
    assert (audited.action, audited.details) == ("event_retried", {"event": event_id})


@pytest.mark.parametrize("status", ["handled", "ignored"])
def test_billing_retry_refuses_what_is_closed(
    flask: Flasks, billing: Billing, store_event: Callable[..., str], rung_for: Callable[[], int], status: str
) -> None:
    event_id, other = store_event(status, reason="foreign_price"), store_event("retrying")

    result = flask("retry", event_id, "evt_none", other)

    assert result.exit_code == 1
    assert result.stdout == f"{other} is due now.\n"
    assert result.stderr.splitlines() == [
        f"The event {event_id} was {status} (foreign_price), and stays as it is.",
        "There is no event evt_none.",
    ]
    assert billing.event_row(event_id).status == status
    assert rung_for() == 1


def test_billing_retry_all_takes_each_once_that_is_not_closed(
    flask: Flasks,
    billing: Billing,
    store_event: Callable[..., str],
    rung_for: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("chatapi.subscriptions.interventions.RETRY_BATCH", 2)
    for status in ("received", "retrying", "unmatched", "handled", "ignored", "retrying", "unmatched"):
        store_event(status)

    result = flask("retry", "--all")

    assert (result.exit_code, result.stdout) == (0, "5 events are due now.\n")
    assert rung_for() == 5
    assert billing.rows("SELECT count(*) AS n FROM stripe_events WHERE due_at <= clock_timestamp()")[0].n == 5


@pytest.mark.parametrize("arguments", [[], ["--all", "evt_1"]])
def test_billing_retry_wants_events_or_all_of_them(flask: Flasks, arguments: list[str]) -> None:
    assert flask("retry", *arguments).exit_code == 2


@pytest.mark.parametrize("status", ["unmatched", "retrying"])
def test_billing_dismiss_closes_an_event_whose_customer_is_nobody(
    flask: Flasks, billing: Billing, store_event: Callable[..., str], status: str
) -> None:
    event_id = store_event(status, reason="unknown_customer")
    other = store_event("unmatched", reason="unknown_customer")

    result = flask("dismiss", event_id)

    assert (result.exit_code, result.stdout) == (0, f"{event_id} is dismissed.\n")
    found = billing.event_row(event_id)
    assert (found.status, found.reason, found.due_at) == ("ignored", "dismissed", None)
    assert found.closed_at is not None
    assert shown(flask("status", "--json"))["events"] == {"unmatched": 1}
    assert [event["event_id"] for event in shown(flask("events", "--json"))] == [other]


@pytest.mark.parametrize(
    ("status", "reason", "why"),
    [
        ("received", None, "is received: it will be handled."),
        ("retrying", "billing_unavailable", "is retrying (billing_unavailable): it will be handled."),
        ("handled", "changed", "was handled (changed), and stays as it is."),
        ("ignored", "dismissed", "was ignored (dismissed), and stays as it is."),
    ],
)
def test_billing_dismiss_refuses_what_is_handled_or_will_be(
    flask: Flasks, billing: Billing, store_event: Callable[..., str], status: str, reason: str | None, why: str
) -> None:
    event_id, unmatched = store_event(status, reason=reason), store_event("unmatched", reason="unknown_customer")
    before = billing.event_row(event_id)

    result = flask("dismiss", event_id, "evt_none", unmatched)

    assert (result.exit_code, result.stdout) == (1, f"{unmatched} is dismissed.\n")
    assert result.stderr.splitlines()[:2] == [f"The event {event_id} {why}", "There is no event evt_none."]
    assert billing.event_row(event_id) == before


def test_billing_dismiss_is_audited_when_the_account_is_known_by_now(
    flask: Flasks, billing: Billing, store_event: Callable[..., str], account: Account
) -> None:
    billing.check_out(account)
    event_id = store_event("unmatched", customer_id=billing.customer_of(account), reason="unknown_customer")

    assert flask("dismiss", event_id).exit_code == 0

    (audited,) = audit_of(billing, account)
    assert (audited.action, audited.details) == ("event_dismissed", {"event": event_id})


def test_billing_dismiss_wants_events(flask: Flasks) -> None:
    assert flask("dismiss").exit_code == 2
