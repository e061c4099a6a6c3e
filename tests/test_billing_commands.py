"""The `flask billing` commands; `flask billing setup` has tests of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import Result
from flask import Flask

from chatapi.broker import CHORES_QUEUE, NAMESPACE
from chatapi.dev.embedded import free_port
from chatapi.dev.stripe.faults import Fault
from chatapi.dev.stripe.standin import StripeStandin
from chatapi.ids import uuid7
from tests.subscriptions.support import Billing, tier_of
from tests.support import Account

Flasks = Callable[..., Result]


@pytest.fixture
def billing(app: Flask, stripe: StripeStandin) -> Billing:
    """Stripe from both sides, with no event left by other tests, and nothing to be ended."""
    billing = Billing(app, stripe)
    billing.rows("DELETE FROM stripe_events")
    billing.rows("UPDATE billing_closures SET due_at = NULL, confirmed_at = now()")
    return billing


@pytest.fixture
def flask(app: Flask, billing: Billing) -> Flasks:
    """Return what runs a `flask billing` command."""
    return lambda *arguments: app.test_cli_runner().invoke(args=["billing", *arguments])


@pytest.fixture
def store_event(billing: Billing) -> Callable[..., str]:
    """Return what stores an event as it is after some attempts; it returns Stripe's id of it."""

    def store_event(status: str, customer_id: str = "cus_nobody", age: str = "1 hour", **values: Any) -> str:
        event_id = f"evt_{uuid7().hex}"
        is_open = status in ("received", "retrying")
        billing.rows(
            "INSERT INTO stripe_events (id, event_id, type, customer_id, status, reason, attempts, due_at, "
            "    stripe_created_at, received_at, closed_at) "
            "VALUES (:id, :event_id, 'invoice.paid', :customer_id, :status, :reason, :attempts, "
            "    CASE WHEN :is_open THEN now() + interval '50 min' END, now(), now() - CAST(:age AS interval), "
            "    CASE WHEN NOT :is_open THEN now() END)",
            id=uuid7(),
            event_id=event_id,
            customer_id=customer_id,
            status=status,
            age=age,
            **{"is_open": is_open, "reason": None, "attempts": 3, **values},
        )
        return event_id

    return store_event


def shown(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_billing_status_counts_what_there_is(
    flask: Flasks, billing: Billing, store_event: Callable[..., str], sign_in: Callable[..., Account]
) -> None:
    before = shown(flask("status", "--json"))
    lapsed = sign_in()
    billing.rows("UPDATE users SET pro_until = now() - interval '1 s' WHERE id = :id", id=lapsed.id)
    billing.subscribe(sign_in())
    billing.check_out(sign_in())
    billing.rows("DELETE FROM stripe_events")
    store_event("received", age="90 s")
    store_event("unmatched", age="5 days")
    store_event("handled")

    after = shown(flask("status", "--json"))

    assert after["customers"] - before["customers"] == 2
    assert after["pro_accounts"] - before["pro_accounts"] == 1
    assert after["subscriptions"]["active"] - before["subscriptions"].get("active", 0) == 1
    assert after["events"] == {"received": 1, "unmatched": 1}
    assert 90 <= after["oldest_event_seconds"] < 120
    assert after.items() >= {"configured": True, "missing": [], "mode": "test", "closures": 0}.items()
    assert after["prices"] == [billing.price_id]
    plain = flask("status")
    assert plain.exit_code == 0
    assert "events               1 received, 1 unmatched\n" in plain.stdout
    assert f"customers            {after['customers']}\n" in plain.stdout


def test_billing_status_names_who_pays_twice(
    flask: Flasks, billing: Billing, account: Account, stripe: StripeStandin
) -> None:
    first = billing.subscribe(account)
    customer_id = billing.customer_of(account)
    ended = stripe.subscribe(customer_id, billing.price_id)["id"]
    stripe.cancel_now(ended)
    billing.tell_all()
    billing.work()
    assert account.id not in flask("status").stdout
    second = stripe.subscribe(customer_id, billing.price_id)["id"]
    billing.tell_all()
    billing.work()

    found = shown(flask("status", "--json"))["second_subscriptions"]

    (own,) = (one for one in found if one["user_id"] == account.id)
    assert own["customer_id"] == customer_id
    assert sorted(own["subscriptions"]) == sorted([first, second])
    assert f"user {account.id}, {customer_id}, pays more than once: " in flask("status").stdout


def test_billing_status_tells_of_the_last_reconciliation(flask: Flasks, billing: Billing, account: Account) -> None:
    assert [flask("sync").exit_code for _ in range(2)] == [0, 0]
    settled = shown(flask("status", "--json"))
    billing.stripe.pay(billing.check_out(account))
    assert flask("sync").exit_code == 0

    found = shown(flask("status", "--json"))

    assert (settled["drifted"], found["drifted"]) == (0, 1)
    assert found["total_drifted"] - settled["total_drifted"] == 1
    assert found["checked"] - settled["checked"] == 1
    assert settled["finished_at"] < found["started_at"] <= found["finished_at"]


def test_billing_status_says_what_is_missing_when_not_configured(make_app: Callable[..., Flask]) -> None:
    app = make_app(STRIPE_PRICE_ID="", STRIPE_SECRET_KEY="")

    found = shown(app.test_cli_runner().invoke(args=["billing", "status", "--json"]))

    assert found["configured"] is False
    assert found["missing"] == ["STRIPE_SECRET_KEY", "STRIPE_PRICE_ID"]
    assert found["mode"] is None


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


@pytest.fixture
def rung_for(app: Flask) -> Callable[[], int]:
    """Return what tells how many messages have been put on the chores' queue since."""

    def length() -> int:
        with app.app_context():
            found: int = app.extensions["broker"].client.llen(f"{NAMESPACE}:{CHORES_QUEUE}")
            return found

    before = length()
    return lambda: length() - before


@pytest.mark.parametrize("status", ["received", "retrying", "unmatched"])
def test_billing_retry_makes_an_event_due_and_rings(
    flask: Flasks, billing: Billing, store_event: Callable[..., str], rung_for: Callable[[], int], status: str
) -> None:
    event_id, other = store_event(status), store_event(status)

    result = flask("retry", event_id)

    assert (result.exit_code, result.stdout) == (0, f"{event_id} is due now.\n")
    found = billing.rows("SELECT *, due_at <= clock_timestamp() AS is_due FROM stripe_events ORDER BY id")
    assert [row.is_due for row in found] == [True, None if status == "unmatched" else False]
    assert (found[0].closed_at, found[1].event_id) == (None, other)
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


def test_billing_closures_lists_what_waits(flask: Flasks, billing: Billing, account: Account) -> None:
    billing.subscribe(account)
    customer_id = billing.customer_of(account)
    assert account.call("DELETE", "/user/me").status_code == 204

    (waiting,) = shown(flask("closures", "--json"))
    plain = flask("closures").stdout
    billing.work()

    assert (waiting["customer_id"], waiting["attempts"], waiting["last_error"]) == (customer_id, 0, None)
    assert plain.startswith(f"{customer_id}  attempts 0  -  next 2")
    assert shown(flask("closures", "--json")) == []


def audit_of(billing: Billing, account: Account) -> list[Any]:
    return billing.rows(
        "SELECT action, details FROM audit_events WHERE number_hash = (SELECT number_hash FROM users WHERE id = :id)",
        id=account.id,
    )


def test_billing_sync_of_one_account_repairs_it_and_says_how(flask: Flasks, billing: Billing, account: Account) -> None:
    session = billing.stripe.pay(billing.check_out(account))

    result = flask("sync", account.mobile_number)

    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        f"{session['subscription']}: not known, now active",
        "tier: basic, now pro",
        f"{account.mobile_number} is pro.",
    ]
    assert tier_of(account) == "pro"
    (audited,) = audit_of(billing, account)
    assert (audited.action, audited.details) == ("subscription_synced", {"before": "basic", "after": "pro"})


def test_billing_sync_of_one_account_leaves_others_alone(
    flask: Flasks, billing: Billing, sign_in: Callable[..., Account]
) -> None:
    one, other = sign_in(), sign_in()
    for account in (one, other):
        billing.stripe.pay(billing.check_out(account))

    assert flask("sync", one.mobile_number).exit_code == 0

    rows = billing.rows("SELECT user_id FROM subscriptions WHERE user_id IN (:one, :other)", one=one.id, other=other.id)
    assert [str(row.user_id) for row in rows] == [one.id]


def test_billing_sync_of_one_account_says_so_when_nothing_differs(
    flask: Flasks, billing: Billing, account: Account
) -> None:
    subscription_id = billing.subscribe(account)

    result = flask("sync", account.mobile_number)
    as_json = shown(flask("sync", account.mobile_number, "--json"))

    assert result.stdout == f"Nothing differed from Stripe.\n{account.mobile_number} is pro.\n"
    standing = {"tier": "pro", "subscriptions": {subscription_id: "active"}}
    assert as_json == {
        "customer_id": billing.customer_of(account),
        "outcome": "unchanged",
        "before": standing,
        "after": standing,
    }
    assert audit_of(billing, account) == []


def test_billing_sync_of_an_account_without_customer_says_so(flask: Flasks, account: Account) -> None:
    result = flask("sync", account.mobile_number)

    assert result.exit_code == 0
    assert (
        result.stdout == f"{account.mobile_number} is basic, and has no customer at Stripe: they never began to pay.\n"
    )
    assert shown(flask("sync", account.mobile_number, "--json"))["customer_id"] is None


def test_billing_sync_of_a_number_nobody_has_is_refused(flask: Flasks, new_number: Callable[[], str]) -> None:
    number = new_number()

    result = flask("sync", number)

    assert result.exit_code == 1
    assert f"There is no account of {number}." in result.stderr


def test_billing_sync_compares_everything_without_a_number(flask: Flasks, billing: Billing, account: Account) -> None:
    assert flask("sync").exit_code == 0
    billing.stripe.pay(billing.check_out(account))

    found = shown(flask("sync", "--json"))
    again = flask("sync")

    assert found["drifted"] == 1
    assert tier_of(account) == "pro"
    assert again.stdout.startswith(f"{found['checked']} subscriptions compared, 0 customers repaired.\n")


@pytest.mark.parametrize("kind", ["401", "500"])
def test_billing_sync_ends_in_a_sentence_when_stripe_refuses(
    flask: Flasks, billing: Billing, account: Account, kind: str
) -> None:
    billing.stripe.pay(billing.check_out(account))
    billing.stripe.add_fault(Fault(kind))

    results = [flask("sync"), flask("sync", account.mobile_number)]

    for result in results:
        assert result.exit_code == 1
        assert "Error: Stripe could not be asked (" in result.stderr
        assert "Traceback" not in result.output
    assert tier_of(account) == "basic"


def test_billing_sync_ends_in_a_sentence_when_stripe_is_away(
    make_app: Callable[..., Flask], billing: Billing, account: Account
) -> None:
    billing.check_out(account)
    app = make_app(STRIPE_API_BASE=f"http://127.0.0.1:{free_port()}")

    result = app.test_cli_runner().invoke(args=["billing", "sync", account.mobile_number])

    assert result.exit_code == 1
    assert "Error: Stripe could not be asked (APIConnectionError)" in result.stderr


@pytest.mark.parametrize("has_number", [True, False])
def test_billing_sync_ends_in_a_sentence_when_not_configured(
    make_app: Callable[..., Flask], billing: Billing, account: Account, has_number: bool
) -> None:
    billing.check_out(account)
    app = make_app(STRIPE_SECRET_KEY="")

    result = app.test_cli_runner().invoke(args=["billing", "sync", *([account.mobile_number] if has_number else [])])

    assert result.exit_code == 1
    assert "Billing is not configured: STRIPE_SECRET_KEY not set." in result.stderr


@pytest.mark.parametrize("command", [["status"], ["events"], ["retry", "--all"], ["closures"], ["sync"]])
def test_billing_commands_say_in_a_sentence_that_postgresql_is_away(
    make_app: Callable[..., Flask], command: list[str]
) -> None:
    app = make_app(DATABASE_URL=f"postgresql://nobody@127.0.0.1:{free_port()}/none")

    result = app.test_cli_runner().invoke(args=["billing", *command])

    assert result.exit_code == 1
    assert "PostgreSQL does not answer" in result.stderr
    assert "Traceback" not in result.output
