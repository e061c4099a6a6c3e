"""People who pay, and Stripe's messages brought to the application by hand: in any order, or not at all."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flask import Flask

from chatapi.dev.stripe.standin import StripeStandin
from tests.subscriptions.support import Billing
from tests.support import Account


@pytest.fixture
def billing(app: Flask, stripe: StripeStandin) -> Billing:
    return Billing(app, stripe)


@pytest.fixture
def customer(billing: Billing, account: Account) -> Account:
    """Somebody who has begun to pay, so that Stripe knows them, but has not paid."""
    billing.check_out(account)
    return account


@pytest.fixture
def subscriber(billing: Billing, account: Account) -> Account:
    """Somebody who has paid, and whose payment is known here."""
    billing.subscribe(account)
    return account


@pytest.fixture
def new_subscriber(billing: Billing, sign_in: Callable[..., Account]) -> Callable[[], Account]:
    """Return what signs somebody in who has paid."""

    def make() -> Account:
        account = sign_in()
        billing.subscribe(account)
        return account

    return make
