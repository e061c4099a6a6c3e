"""`flask billing status`, `sync` and `closures`: how billing stands, and what is repaired."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
from flask import Flask

from chatapi.dev.embedded import free_port
from chatapi.dev.stripe.faults import Fault
from chatapi.dev.stripe.standin import StripeStandin
from chatapi.ids import uuid7
from tests.billing_commands.support import Flasks, audit_of, shown
from tests.subscriptions.support import Billing, tier_of
from tests.support import Account


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
    said, advice = result.stdout.splitlines()
    assert said == f"{account.mobile_number} is basic, and no customer of theirs at Stripe is known here."
    assert advice.startswith("`flask billing sync` compares everything")
    assert shown(flask("sync", account.mobile_number, "--json"))["customer_id"] is None


def test_billing_sync_takes_on_the_customer_that_stripe_has_for_an_account(
    flask: Flasks, billing: Billing, account: Account
) -> None:
    billing.stripe.pay(billing.check_out(account))
    billing.rows("DELETE FROM billing_customers WHERE user_id = :id", id=account.id)
    assert "known here" in flask("sync", account.mobile_number).stdout

    assert flask("sync").exit_code == 0

    assert tier_of(account) == "pro"


@pytest.fixture
def missing(billing: Billing, sign_in: Callable[..., Account]) -> Iterator[Account]:
    """Somebody on Pro whose customer Stripe does not know, for as long as the test; a comparison looks at them."""
    account = sign_in()
    billing.subscribe(account)
    customer_id = billing.customer_of(account)
    rename = "UPDATE billing_customers SET stripe_customer_id = :new WHERE user_id = :id"
    extend = "UPDATE users SET pro_until = pro_until + make_interval(secs => :by) WHERE id = :id"
    billing.rows(rename, new=f"cus_{uuid7().hex}", id=account.id)
    billing.rows(extend, by=1, id=account.id)
    yield account
    billing.rows(rename, new=customer_id, id=account.id)
    billing.rows(extend, by=-1, id=account.id)


def test_billing_sync_says_so_and_fails_when_a_customer_cannot_be_read(
    flask: Flasks, billing: Billing, missing: Account, account: Account
) -> None:
    billing.stripe.pay(billing.check_out(account))

    result = flask("sync")
    as_json = flask("sync", "--json")

    assert result.exit_code == as_json.exit_code == 1
    assert "1 customers could not be read: `customer_failed` in the log above says why." in result.stdout
    assert json.loads(as_json.stdout)["failed"] == shown(flask("status", "--json"))["failed"] == 1
    assert (tier_of(account), tier_of(missing)) == ("pro", "pro")


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
    assert "Billing is not configured: STRIPE_SECRET_KEY not set. The key is in Stripe's dashboard" in result.stderr


@pytest.mark.parametrize("command", [["status"], ["events"], ["retry", "--all"], ["closures"], ["sync"]])
def test_billing_commands_say_in_a_sentence_that_postgresql_is_away(
    make_app: Callable[..., Flask], command: list[str]
) -> None:
    app = make_app(DATABASE_URL=f"postgresql://nobody@127.0.0.1:{free_port()}/none")

    result = app.test_cli_runner().invoke(args=["billing", *command])

    assert result.exit_code == 1
    assert "PostgreSQL does not answer" in result.stderr
    assert "Traceback" not in result.output
