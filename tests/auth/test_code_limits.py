"""How many codes a number gets, and how many guesses: counted in PostgreSQL, kept beyond the account."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from chatapi.keys import hash_number
from chatapi.replies.sweeper import clean
from tests.auth.support import request_otp, rows, verify, wrong
from tests.support import Account

NewNumber = Callable[[], str]
Later = Callable[[int], None]

MINUTE, HOUR = 60, 3600


def ask_for_code(client: FlaskClient, number: str, purpose: str = "login") -> TestResponse:
    return client.post("/auth/send-otp", json={"mobile_number": number, "purpose": purpose})


def assert_too_many(answer: TestResponse, at_most: int) -> None:
    assert (answer.status_code, answer.get_json()["error"]) == (429, "otp_rate_limited")
    assert at_most - 5 <= int(answer.headers["Retry-After"]) <= at_most


def burn(client: FlaskClient, number: str, tries: int = 5) -> str:
    """Ask for a code and guess wrong so many times; return the code."""
    otp = request_otp(client, number)
    for _ in range(tries):
        assert verify(client, number, wrong(otp)).status_code == 400
    return otp


def test_codes_of_one_purpose_are_a_minute_apart(client: FlaskClient, new_number: NewNumber, later: Later) -> None:
    number = new_number()
    request_otp(client, number)

    assert_too_many(ask_for_code(client, number), MINUTE)
    assert ask_for_code(client, number, "verification").status_code == 200
    assert ask_for_code(client, number, "password_reset").status_code == 200
    later(55)
    assert ask_for_code(client, number).status_code == 429
    later(5)
    assert ask_for_code(client, number).status_code == 200


def test_refused_request_leaves_the_earlier_code_good(client: FlaskClient, new_number: NewNumber) -> None:
    number = new_number()
    otp = request_otp(client, number)
    assert ask_for_code(client, number).status_code == 429

    assert verify(client, number, otp).status_code == 200


def test_number_gets_five_codes_in_any_hour_over_all_purposes(
    client: FlaskClient, new_number: NewNumber, later: Later
) -> None:
    number = new_number()
    for purpose in ["login", "verification", "password_reset", "login", "verification"]:
        request_otp(client, number, purpose)
        later(5 * MINUTE)

    assert_too_many(ask_for_code(client, number), 35 * MINUTE)
    later(30 * MINUTE)
    assert ask_for_code(client, number).status_code == 429
    later(5 * MINUTE)  # The first is an hour old now, the second is not.
    assert ask_for_code(client, number).status_code == 200
    later(MINUTE)
    assert_too_many(ask_for_code(client, number), 4 * MINUTE)


def test_number_gets_ten_codes_a_day(client: FlaskClient, new_number: NewNumber, later: Later) -> None:
    number = new_number()
    for _ in range(10):
        request_otp(client, number)
        later(HOUR)

    assert_too_many(ask_for_code(client, number), 14 * HOUR)
    later(14 * HOUR)
    assert ask_for_code(client, number).status_code == 200


def test_forgot_password_and_send_otp_share_their_limits(client: FlaskClient, new_number: NewNumber) -> None:
    number = new_number()
    answer = client.post("/auth/forgot-password", json={"mobile_number": number})

    assert {**answer.get_json(), "otp": ""} == {
        "message": "Code sent",
        "mobile_number": number,
        "purpose": "password_reset",
        "expires_in": 300,
        "otp": "",
    }
    assert_too_many(ask_for_code(client, number, "password_reset"), MINUTE)


def test_limits_of_one_number_are_not_anothers(client: FlaskClient, new_number: NewNumber) -> None:
    request_otp(client, new_number())

    assert ask_for_code(client, new_number()).status_code == 200


def test_number_has_one_set_of_limits_however_it_is_written(client: FlaskClient, new_number: NewNumber) -> None:
    number = new_number()
    request_otp(client, number)

    assert ask_for_code(client, number.removeprefix("+")).status_code == 429


def test_asking_for_codes_does_not_reset_the_failures_of_a_number(
    app: Flask, client: FlaskClient, new_number: NewNumber, later: Later
) -> None:
    number = new_number()
    for _ in range(3):
        burn(client, number)
        later(MINUTE)

    otp = request_otp(client, number)

    assert verify(client, number, otp).get_json()["error"] == "invalid_otp"
    assert compared(app, number) == 0


def test_owner_can_sign_in_later_when_codes_were_burnt(
    client: FlaskClient, new_number: NewNumber, later: Later
) -> None:
    number = new_number()
    for _ in range(3):
        burn(client, number)
        later(MINUTE)
    assert verify(client, number, request_otp(client, number)).status_code == 400

    later(HOUR)

    assert verify(client, number, request_otp(client, number)).status_code == 200


def test_failures_are_bounded_by_the_day_too(
    app: Flask, client: FlaskClient, new_number: NewNumber, later: Later
) -> None:
    number = new_number()
    for _ in range(6):
        burn(client, number)
        later(HOUR)
    assert verify(client, number, request_otp(client, number)).status_code == 400
    assert compared(app, number) == 0

    later(20 * HOUR)

    assert verify(client, number, request_otp(client, number)).status_code == 200


def test_only_guesses_at_a_good_code_count_against_a_number(
    app: Flask, client: FlaskClient, new_number: NewNumber
) -> None:
    """Otherwise anybody could lock anybody out, without a single code being sent."""
    number = new_number()
    for _ in range(40):
        assert verify(client, number, "123456").status_code == 400

    assert verify(client, number, request_otp(client, number)).status_code == 200
    burnt = new_number()
    otp = burn(client, burnt)
    for _ in range(20):
        verify(client, burnt, wrong(otp))
    assert failures(app, burnt) == 5


def test_right_code_does_not_count_as_a_failure(app: Flask, client: FlaskClient, new_number: NewNumber) -> None:
    number = new_number()
    otp = burn(client, number, tries=2)

    assert verify(client, number, otp).status_code == 200
    assert failures(app, number) == 2


def test_limits_outlive_the_account(app: Flask, client: FlaskClient, account: Account, later: Later) -> None:
    later(MINUTE)
    burn(client, account.mobile_number)
    assert account.call("DELETE", "/user/me").status_code == 204

    assert ask_for_code(client, account.mobile_number).status_code == 429
    assert failures(app, account.mobile_number) == 5


def test_codes_are_gone_from_the_table_when_used_or_past_their_life(
    app: Flask, client: FlaskClient, new_number: NewNumber, later: Later
) -> None:
    used, expired, waiting = new_number(), new_number(), new_number()
    verify(client, used, request_otp(client, used))
    request_otp(client, expired)
    later(301)
    request_otp(client, waiting)

    with app.app_context():
        clean()

    left = [bytes(row.number_hash) for row in rows(app, "SELECT number_hash FROM otp_codes")]
    with app.app_context():
        assert hash_number(waiting) in left
        assert not {hash_number(used), hash_number(expired)} & set(left)


def test_counts_are_gone_from_the_table_when_they_limit_nothing_any_more(
    app: Flask, client: FlaskClient, new_number: NewNumber, later: Later
) -> None:
    number = new_number()
    request_otp(client, number)
    later(24 * HOUR)

    with app.app_context():
        clean()

    assert rows(app, "SELECT * FROM auth_limits") == []


def test_tables_of_the_limits_name_no_number_and_no_address(
    app: Flask, client: FlaskClient, new_number: NewNumber
) -> None:
    number = new_number()
    burn(client, number)

    for table in ("auth_limits", "auth_failures", "known_networks", "otp_codes"):
        stored = " ".join(str(row) for row in rows(app, f"SELECT t::text FROM {table} AS t"))  # noqa: S608
        assert number.removeprefix("+") not in stored
        assert number.removeprefix("+").encode().hex() not in stored
        assert "127.0.0.1" not in stored


@pytest.mark.parametrize("purpose", ["login", "verification"])
def test_unknown_purpose_or_reset_is_refused_by_verify(
    client: FlaskClient, new_number: NewNumber, purpose: str
) -> None:
    number = new_number()
    otp = request_otp(client, number, purpose)

    assert verify(client, number, otp, purpose="password_reset").status_code == 422
    assert verify(client, number, otp, purpose=purpose).status_code == 200


def failures(app: Flask, number: str) -> int:
    """How many failed tries stand against a number."""
    with app.app_context():
        subject = hash_number(number)
    found = rows(
        app,
        "SELECT cardinality(hits) AS n FROM auth_limits WHERE name = 'code_tries' AND subject = :subject",
        subject=subject,
    )
    return found[0].n if found else 0


def compared(app: Flask, number: str) -> int:
    """How often the number's present code was compared."""
    with app.app_context():
        number_hash = hash_number(number)
    found = rows(app, "SELECT attempts FROM otp_codes WHERE number_hash = :number_hash", number_hash=number_hash)
    assert len(found) == 1
    attempts: int = found[0].attempts
    return attempts
