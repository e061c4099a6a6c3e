"""How much one address may ask of the public sign-in routes, and what happens when checks fail everywhere."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text
from werkzeug.test import TestResponse

from chatapi.extensions import db
from chatapi.replies.sweeper import clean
from tests.auth.support import PASSWORD, pass_time, request_otp, rows, verify
from tests.support import Account, race

NewNumber = Callable[[], str]

QUARTER_HOUR = 900


@pytest.fixture
def limited_app(make_app: Callable[..., Flask]) -> Iterator[Flask]:
    """An application with the usual limit per address."""
    app = make_app(AUTH_IP_LIMIT="30")
    _forget_all(app)
    yield app
    _forget_all(app)


@pytest.fixture
def wary_app(make_app: Callable[..., Flask]) -> Iterator[Flask]:
    """An application that takes more than ten failed checks in ten minutes for an attack."""
    app = make_app(AUTH_IP_LIMIT="30", OTP_GLOBAL_FAILURES="10")
    _forget_all(app)
    yield app
    _forget_all(app)


def _forget_all(app: Flask) -> None:
    with app.app_context():
        for table in ("auth_limits", "auth_failures", "known_networks"):
            db.session.execute(text(f"DELETE FROM {table}"))  # noqa: S608
        db.session.commit()


class Caller:
    """Somebody at an address."""

    def __init__(self, app: Flask, address: str) -> None:
        self._client = app.test_client()
        self._address = {"REMOTE_ADDR": address}

    def post(self, path: str, body: dict[str, Any]) -> TestResponse:
        return self._client.post(path, json=body, environ_overrides=self._address)

    def guess(self, number: str) -> TestResponse:
        return self.post("/auth/verify-otp", {"mobile_number": number, "otp": "000000"})

    def sign_in(self, number: str) -> TestResponse:
        otp = self.post("/auth/send-otp", {"mobile_number": number}).get_json()["otp"]
        return self.post("/auth/verify-otp", {"mobile_number": number, "otp": otp})


ROUTES = {
    "/auth/signup": {"name": "Eve"},
    "/auth/send-otp": {},
    "/auth/verify-otp": {"otp": "000000"},
    "/auth/login": {"password": PASSWORD},
    "/auth/forgot-password": {},
    "/auth/reset-password": {"otp": "000000", "new_password": PASSWORD},
}


def test_thirty_first_request_of_an_address_is_refused_over_all_sign_in_routes_together(
    limited_app: Flask, new_number: NewNumber
) -> None:
    caller = Caller(limited_app, "192.0.2.1")
    for index in range(30):
        path = list(ROUTES)[index % len(ROUTES)]
        assert caller.post(path, {"mobile_number": new_number(), **ROUTES[path]}).status_code != 429

    for path, fields in ROUTES.items():
        answer = caller.post(path, {"mobile_number": new_number(), **fields})
        sends_code = path in ("/auth/send-otp", "/auth/forgot-password")
        assert (answer.status_code, answer.get_json()["error"]) == (
            429,
            "otp_rate_limited" if sends_code else "rate_limited",
        )
        assert QUARTER_HOUR - 30 <= int(answer.headers["Retry-After"]) <= QUARTER_HOUR


def test_other_addresses_and_later_times_are_not_concerned(limited_app: Flask, new_number: NewNumber) -> None:
    caller = Caller(limited_app, "192.0.2.1")
    for _ in range(31):
        answer = caller.guess(new_number())
    assert answer.status_code == 429

    assert Caller(limited_app, "192.0.2.2").guess(new_number()).status_code == 400
    pass_time(limited_app, QUARTER_HOUR)
    assert caller.guess(new_number()).status_code == 400


def test_requests_that_are_refused_or_invalid_count_as_well(limited_app: Flask, new_number: NewNumber) -> None:
    caller = Caller(limited_app, "192.0.2.1")
    for _ in range(15):
        assert caller.post("/auth/login", {"mobile_number": "nonsense"}).status_code == 422
        assert caller.guess(new_number()).status_code == 400

    assert caller.guess(new_number()).status_code == 429


def test_refreshing_is_not_limited_by_address(limited_app: Flask, new_number: NewNumber) -> None:
    caller = Caller(limited_app, "192.0.2.1")
    token = caller.sign_in(new_number()).get_json()["refresh_token"]
    for _ in range(40):
        answer = caller.post("/auth/refresh", {"refresh_token": token})
        assert answer.status_code == 200
        token = answer.get_json()["refresh_token"]


def test_one_network_of_ipv6_is_one_address(limited_app: Flask, new_number: NewNumber) -> None:
    for index in range(30):
        Caller(limited_app, f"2001:db8:0:1::{index + 1:x}").guess(new_number())

    assert Caller(limited_app, "2001:db8:0:1:ffff::1").guess(new_number()).status_code == 429
    assert Caller(limited_app, "2001:db8:0:2::1").guess(new_number()).status_code == 400


def test_forwarded_address_dodges_nothing(limited_app: Flask, new_number: NewNumber) -> None:
    client = limited_app.test_client()
    for index in range(31):
        answer = client.post(
            "/auth/verify-otp",
            json={"mobile_number": new_number(), "otp": "000000"},
            headers={"X-Forwarded-For": f"198.51.100.{index}", "Forwarded": f"for=198.51.100.{index}"},
            environ_overrides={"REMOTE_ADDR": "192.0.2.1"},
        )

    assert answer.status_code == 429


def test_exactly_thirty_of_sixty_requests_at_once_pass(limited_app: Flask, new_number: NewNumber) -> None:
    callers = [(Caller(limited_app, "192.0.2.1"), new_number()) for _ in range(60)]

    statuses = race(60, lambda index: callers[index][0].guess(callers[index][1]).status_code)

    assert sorted(statuses) == [400] * 30 + [429] * 30


def test_limit_holds_when_redis_is_away(
    make_app: Callable[..., Flask], limited_app: Flask, new_number: NewNumber
) -> None:
    caller = Caller(make_app(AUTH_IP_LIMIT="30", REDIS_URL="redis://127.0.0.1:1/0"), "192.0.2.1")
    for _ in range(30):
        assert caller.guess(new_number()).status_code == 400

    assert caller.guess(new_number()).status_code == 429
    assert Caller(limited_app, "192.0.2.1").guess(new_number()).status_code == 429


def test_limit_is_off_when_it_is_zero(client: FlaskClient, new_number: NewNumber) -> None:
    for _ in range(40):
        assert client.post("/auth/send-otp", json={"mobile_number": new_number()}).status_code == 200


def test_address_is_told_five_times_an_hour_that_a_number_is_registered(
    limited_app: Flask, account: Account, new_number: NewNumber
) -> None:
    caller = Caller(limited_app, "192.0.2.1")
    for _ in range(5):
        answer = caller.post("/auth/signup", {"mobile_number": account.mobile_number})
        assert (answer.status_code, answer.get_json()["error"]) == (409, "already_registered")

    known = caller.post("/auth/signup", {"mobile_number": account.mobile_number})
    unknown = caller.post("/auth/signup", {"mobile_number": new_number()})

    assert known.status_code == unknown.status_code == 429
    assert known.get_json() == unknown.get_json()
    assert 3590 <= int(known.headers["Retry-After"]) <= 3600


def test_sign_ups_of_new_numbers_are_not_among_those_five(limited_app: Flask, new_number: NewNumber) -> None:
    caller = Caller(limited_app, "192.0.2.1")

    assert [caller.post("/auth/signup", {"mobile_number": new_number()}).status_code for _ in range(8)] == [201] * 8


def test_sign_ups_of_a_number_are_limited_and_leave_its_owner_a_way_in(
    client: FlaskClient, new_number: NewNumber
) -> None:
    number = new_number()
    for _ in range(5):
        assert client.post("/auth/signup", json={"mobile_number": number}).status_code == 201

    answer = client.post("/auth/signup", json={"mobile_number": number})

    assert (answer.status_code, answer.get_json()["error"]) == (429, "rate_limited")
    assert verify(client, number, request_otp(client, number)).status_code == 200


def make_failures_abound(app: Flask, new_number: NewNumber) -> None:
    for index in range(11):
        assert Caller(app, f"198.51.100.{index}").guess(new_number()).status_code == 400


def test_failures_everywhere_raise_one_alert(
    wary_app: Flask, new_number: NewNumber, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        make_failures_abound(wary_app, new_number)
        for index in range(11, 20):
            Caller(wary_app, f"198.51.100.{index}").guess(new_number())

    alerts = [record.msg for record in caplog.records if record.levelno == logging.ERROR]
    assert len(alerts) == 1
    assert "sign_in_failures_abound" in str(alerts[0])


def test_address_not_seen_before_has_five_requests_while_failures_abound(
    wary_app: Flask, new_number: NewNumber
) -> None:
    make_failures_abound(wary_app, new_number)
    caller = Caller(wary_app, "192.0.2.1")

    statuses = [caller.guess(new_number()).status_code for _ in range(6)]

    assert statuses == [400] * 5 + [429]
    assert Caller(wary_app, "192.0.2.2").sign_in(new_number()).status_code == 200


def test_address_that_somebody_signed_in_from_is_treated_as_ever_while_failures_abound(
    wary_app: Flask, new_number: NewNumber
) -> None:
    caller = Caller(wary_app, "192.0.2.1")
    assert caller.sign_in(new_number()).status_code == 200
    make_failures_abound(wary_app, new_number)

    statuses = [caller.guess(new_number()).status_code for _ in range(29)]

    assert statuses == [400] * 28 + [429]


def test_treatment_is_as_ever_when_the_failures_are_ten_minutes_old(wary_app: Flask, new_number: NewNumber) -> None:
    make_failures_abound(wary_app, new_number)
    pass_time(wary_app, 600)
    caller = Caller(wary_app, "192.0.2.1")

    assert [caller.guess(new_number()).status_code for _ in range(6)] == [400] * 6


def test_failed_passwords_and_resets_count_as_failures_too(limited_app: Flask, new_number: NewNumber) -> None:
    caller = Caller(limited_app, "192.0.2.1")
    caller.post("/auth/login", {"mobile_number": new_number(), "password": PASSWORD})
    caller.post("/auth/reset-password", {"mobile_number": new_number(), "otp": "000000", "new_password": PASSWORD})

    assert sum(row.failures for row in rows(limited_app, "SELECT failures FROM auth_failures")) == 2


def test_address_is_forgotten_after_ninety_days(limited_app: Flask, new_number: NewNumber) -> None:
    Caller(limited_app, "192.0.2.1").sign_in(new_number())
    with limited_app.app_context():
        clean()
        assert len(rows(limited_app, "SELECT * FROM known_networks")) == 1
        db.session.execute(text("UPDATE known_networks SET seen_at = seen_at - interval '90 days'"))
        db.session.commit()
        clean()

    assert rows(limited_app, "SELECT * FROM known_networks") == []
