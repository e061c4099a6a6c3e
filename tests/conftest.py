"""The suite's own servers, and the application on them."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Iterator

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text
from stripe import HTTPClient

from chatapi.app import create_app
from chatapi.dev.gemini_standin import GeminiStandin
from chatapi.dev.stripe.standin import StripeStandin
from chatapi.extensions import db
from tests import leaks
from tests.document import check_answers
from tests.support import Account, ReadingClient, Services

MACHINE_SETTINGS = (
    "APP_ENV",
    "DATABASE_URL",
    "REDIS_URL",
    "JWT_SECRET",
    "GEMINI_API_KEY",
    "GEMINI_API_ENDPOINT",
    "STRIPE_SECRET_KEY",
    "STRIPE_WEBHOOK_SECRET",
    "STRIPE_PRICE_ID",
    "STRIPE_API_BASE",
    "FRONTEND_URL",
)

_numbers = itertools.count(secrets.randbelow(10**8) * 1000)


@pytest.fixture(scope="session", autouse=True)
def _plain_environment() -> Iterator[None]:
    """Keep the machine's own settings out of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in MACHINE_SETTINGS:
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def _eager_stripe_sdk() -> Iterator[None]:
    """Have Stripe's SDK try again at once in this process: its own waits between are not what is tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HTTPClient, "INITIAL_DELAY", 0.01)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_leaks() -> Iterator[None]:
    """Fail the run, in the end, if its answers or logs show a code, a token or a number where none may be."""
    with leaks.SUITE.capture_logs():
        yield
    leaks.SUITE.fail_on_findings()


@pytest.fixture(scope="session")
def services(_plain_environment: None) -> Iterator[Services]:
    services = Services(is_synced=False)
    services.start()
    yield services
    services.stop()


@pytest.fixture(scope="session")
def make_app(services: Services) -> Iterator[Callable[..., Flask]]:
    """Return what builds an application on the suite's servers, with some settings changed.

    Whatever it answers is held against the OpenAPI document and searched for leaks.
    """
    apps: list[Flask] = []

    def make(**changes: str) -> Flask:
        app = create_app({**services.environ, **changes})
        app.test_client_class = ReadingClient
        check_answers(app)
        leaks.SUITE.watch(app)
        apps.append(app)
        return app

    yield make
    for app in apps:
        with app.app_context():
            db.engine.dispose()


@pytest.fixture(scope="session")
def app(make_app: Callable[..., Flask]) -> Flask:
    return make_app()


@pytest.fixture
def gemini(services: Services) -> Iterator[GeminiStandin]:
    """The stand-in, without faults and with nothing recorded."""
    services.gemini.clear()
    services.gemini.forget_requests()
    yield services.gemini
    services.gemini.clear()


@pytest.fixture
def stripe(services: Services) -> Iterator[StripeStandin]:
    """Stripe's stand-in, without faults and with nothing recorded."""
    services.stripe.clear()
    services.stripe.forget_requests()
    yield services.stripe
    services.stripe.clear()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def in_app(app: Flask) -> Iterator[None]:
    """An application context, for calling services without a request."""
    with app.app_context():
        yield


@pytest.fixture(scope="session")
def new_number() -> Callable[[], str]:
    """Return what makes up numbers that nobody has had."""
    return lambda: f"+1{next(_numbers):012d}"


@pytest.fixture
def sign_in(client: FlaskClient, new_number: Callable[[], str]) -> Callable[..., Account]:
    """Return what signs somebody in: a new user, unless a number or another application's client is given."""

    def sign_in(mobile_number: str | None = None, via: FlaskClient = client) -> Account:
        number = mobile_number or new_number()
        otp = via.post("/auth/send-otp", json={"mobile_number": number}).get_json()["otp"]
        answer = via.post("/auth/verify-otp", json={"mobile_number": number, "otp": otp})
        assert answer.status_code == 200, answer.get_json()
        body = answer.get_json()
        return Account(body["user"]["id"], number, body["token"], via)

    return sign_in


@pytest.fixture
def account(sign_in: Callable[..., Account]) -> Account:
    return sign_in()


@pytest.fixture
def pro_account(app: Flask, account: Account) -> Account:
    """Somebody who has paid for Pro."""
    with app.app_context():
        db.session.execute(
            text("UPDATE users SET pro_until = now() + interval '1 hour' WHERE id = :id"), {"id": account.id}
        )
        db.session.commit()
    return account
