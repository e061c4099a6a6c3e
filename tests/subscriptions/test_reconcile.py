"""The hourly comparison: whatever was lost on the way, afterwards every tier is what Stripe's objects say."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from chatapi.dev.stripe.faults import Fault
from chatapi.extensions import in_transaction
from chatapi.subscriptions.gateway import BillingUnavailableError
from chatapi.subscriptions.reconcile import RECONCILIATION_ID, reconcile, run_reconciliation, take_due_reconciliation
from tests.subscriptions.support import Billing, age_open_invoice, logged, tier_of
from tests.support import Account, make_price, stripe_client


def row_of(billing: Billing) -> object:
    return billing.rows("SELECT *, extract(epoch FROM due_at - now()) AS wait FROM billing_reconciliation")[0]


@pytest.fixture(autouse=True)
def _nothing_left_over(billing: Billing) -> None:
    """Begin with what earlier tests have left set right."""
    billing.in_app(reconcile)


def test_every_tier_is_repaired_when_all_messages_were_lost(
    billing: Billing, new_subscriber: Callable[[], Account], sign_in: Callable[..., Account]
) -> None:
    paid, unpaid, ended, late, ending = sign_in(), *(new_subscriber() for _ in range(4))
    billing.stripe.pay(billing.check_out(paid))
    billing.stripe.set_status(billing.subscription_of(unpaid), "unpaid")
    billing.stripe.cancel_now(billing.subscription_of(ended))
    billing.stripe.fail_payment(billing.subscription_of(late))
    stripe_client(billing.stripe).v1.subscriptions.update(
        billing.subscription_of(ending), {"cancel_at_period_end": True}
    )
    assert [tier_of(each) for each in (paid, unpaid, ended)] == ["basic", "pro", "pro"]

    report = billing.in_app(reconcile)

    assert report.drifted == 5
    tiers = [tier_of(each) for each in (paid, unpaid, ended, late, ending)]
    assert tiers == ["pro", "basic", "basic", "pro", "pro"]
    assert ending.call("GET", "/subscription/status").get_json()["subscription"]["cancel_at_period_end"] is True
    again = billing.in_app(reconcile)
    assert (again.drifted, again.checked) == (0, report.checked)
    assert row_of(billing).total_drifted >= 5  # type: ignore[attr-defined]


def test_payment_that_fails_unheard_is_found(billing: Billing, subscriber: Account) -> None:
    billing.stripe.fail_payment(billing.subscription_of(subscriber))

    assert billing.in_app(reconcile).drifted == 1
    assert subscriber.call("GET", "/subscription/status").get_json()["subscription"]["status"] == "past_due"
    assert tier_of(subscriber) == "pro"


@pytest.mark.parametrize("until", ["NULL", "now() + interval '10 years'"])
def test_tier_that_is_not_that_of_the_subscriptions_is_repaired(
    billing: Billing, subscriber: Account, until: str, caplog: pytest.LogCaptureFixture
) -> None:
    right = billing.rows("SELECT pro_until FROM users WHERE id = :id", id=subscriber.id)
    billing.rows(f"UPDATE users SET pro_until = {until} WHERE id = :id", id=subscriber.id)  # noqa: S608

    assert billing.in_app(reconcile).drifted == 1

    assert billing.rows("SELECT pro_until FROM users WHERE id = :id", id=subscriber.id) == right
    drifted = [said["customer"] for said in logged(caplog, "subscription_drifted")]
    assert drifted == [billing.customer_of(subscriber)]


def test_subscription_that_stripe_does_not_have_gives_pro_no_more(billing: Billing, subscriber: Account) -> None:
    subscription_id = billing.subscription_of(subscriber)
    with billing.stripe.account.changing():
        del billing.stripe.account.kinds["subscription"][subscription_id]

    assert billing.in_app(reconcile).drifted == 1
    assert tier_of(subscriber) == "basic"
    history = subscriber.call("GET", "/subscription/history").get_json()["subscription_history"]
    assert [each["status"] for each in history] == ["canceled"]


def test_subscriptions_beyond_a_page_are_compared_too(
    billing: Billing, customer: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatapi.subscriptions.gateway.PAGE", 3)
    monkeypatch.setattr("chatapi.subscriptions.reconcile.PAGE", 3)
    billing.stripe.pay(billing.check_out(customer))
    strangers = [stripe_client(billing.stripe).v1.customers.create({}) for _ in range(7)]
    made = [billing.stripe.subscribe(stranger.id, billing.price_id) for stranger in strangers]

    report = billing.in_app(reconcile)

    assert report.unknown >= 7
    assert tier_of(customer) == "pro"
    for subscription in made:
        billing.stripe.cancel_now(subscription["id"])


def test_grace_is_counted_anew_when_the_unpaid_invoice_is_another(billing: Billing, subscriber: Account) -> None:
    subscription_id = billing.subscription_of(subscriber)
    billing.stripe.fail_payment(subscription_id)
    assert billing.in_app(reconcile).drifted == 1
    assert tier_of(subscriber) == "pro"

    age_open_invoice(billing.stripe, subscription_id, timedelta(days=4))

    assert billing.in_app(reconcile).drifted == 1
    assert tier_of(subscriber) == "basic"


def test_customer_that_is_not_known_here_finds_its_user(billing: Billing, account: Account) -> None:
    """As after the database was restored from a backup."""
    billing.stripe.pay(billing.check_out(account))
    billing.rows("DELETE FROM billing_customers WHERE user_id = :id", id=account.id)

    billing.in_app(reconcile)

    assert tier_of(account) == "pro"


def test_what_is_not_ours_and_what_is_over_is_nobody_to_look_for(billing: Billing) -> None:
    before = billing.in_app(reconcile)
    v1 = stripe_client(billing.stripe).v1
    billing.stripe.subscribe(v1.customers.create({}).id, make_price(billing.stripe))
    over = billing.stripe.subscribe(v1.customers.create({}).id, billing.price_id)
    billing.stripe.cancel_now(over["id"])

    assert billing.in_app(reconcile) == before


def test_subscription_of_an_erased_account_is_ended(billing: Billing, subscriber: Account) -> None:
    customer = billing.customer_of(subscriber)
    subscriber.call("DELETE", "/user/me")
    billing.work()
    again = billing.stripe.subscribe(customer, billing.price_id)

    billing.in_app(reconcile)
    billing.work()

    assert billing.stripe.account.find("subscription", again["id"])["status"] == "canceled"


def test_run_is_due_once_an_hour_and_sooner_after_trouble(billing: Billing) -> None:
    def due() -> list[object]:
        found: list[object] = billing.in_app(in_transaction, lambda: take_due_reconciliation(200))
        return found

    assert due() == []
    assert 3500 < row_of(billing).wait <= 3600  # type: ignore[attr-defined]
    billing.rows("UPDATE billing_reconciliation SET due_at = now()")
    assert [due(), due()] == [[RECONCILIATION_ID], []]

    billing.stripe.add_fault(Fault("429"))
    billing.in_app(run_reconciliation, RECONCILIATION_ID)
    assert 0 < row_of(billing).wait <= 300  # type: ignore[attr-defined]
    with pytest.raises(BillingUnavailableError):
        billing.in_app(reconcile)


def test_accounts_that_never_paid_keep_what_was_given_to_them(billing: Billing, pro_account: Account) -> None:
    billing.in_app(reconcile)

    assert tier_of(pro_account) == "pro"
