"""Passwords over HTTP: signing in, setting, changing, forgetting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from argon2 import PasswordHasher
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text
from werkzeug.test import TestResponse

from chatapi.auth import credentials
from chatapi.auth.passwords import hash_password
from chatapi.extensions import db, in_transaction
from tests.auth.support import PASSWORD, bearer, request_otp, rows, verify, wrong
from tests.support import Account

NewNumber = Callable[[], str]
Later = Callable[[int], None]

OTHER_PASSWORD = "staple of another colour"
HOUR = 3600


@pytest.fixture
def member(account: Account) -> Account:
    """Somebody who has set a password."""
    assert change(account, new_password=PASSWORD).status_code == 200
    return account


def change(account: Account, **body: Any) -> TestResponse:
    return account.call("POST", "/auth/change-password", body)


def log_in(client: FlaskClient, number: str, password: str) -> TestResponse:
    return client.post("/auth/login", json={"mobile_number": number, "password": password})


def reset(client: FlaskClient, number: str, otp: str, new_password: str) -> TestResponse:
    return client.post("/auth/reset-password", json={"mobile_number": number, "otp": otp, "new_password": new_password})


def assert_refused(answer: TestResponse, status: int, slug: str) -> None:
    assert (answer.status_code, answer.get_json()["error"]) == (status, slug)


def is_alive(account: Account) -> bool:
    return account.call("GET", "/user/me").status_code == 200


def test_login_answers_as_verify_otp_does(client: FlaskClient, member: Account, later: Later) -> None:
    later(60)
    with_code = verify(client, member.mobile_number, request_otp(client, member.mobile_number)).get_json()

    answer = log_in(client, member.mobile_number, PASSWORD)

    body = answer.get_json()
    assert answer.status_code == 200
    assert body.keys() == with_code.keys()
    assert body["user"] == with_code["user"]
    assert client.get("/user/me", headers=bearer(body["token"])).status_code == 200
    assert client.post("/auth/refresh", json={"refresh_token": body["refresh_token"]}).status_code == 200


def test_login_works_after_a_sign_up_with_a_password(client: FlaskClient, new_number: NewNumber) -> None:
    number = new_number()
    signup = client.post("/auth/signup", json={"mobile_number": number, "password": PASSWORD}).get_json()
    assert_refused(log_in(client, number, PASSWORD), 401, "invalid_credentials")
    otp = request_otp(client, number, "verification")
    verify(client, number, otp, purpose="verification", signup_token=signup["signup_token"])

    assert log_in(client, number, PASSWORD).status_code == 200


def test_login_is_refused_alike_for_every_reason(
    app: Flask, client: FlaskClient, member: Account, sign_in: Callable[..., Account], new_number: NewNumber
) -> None:
    without_password, disabled, signed_up = sign_in(), sign_in(), new_number()
    change(disabled, new_password=PASSWORD)
    with app.app_context():
        db.session.execute(text("UPDATE users SET disabled_at = now() WHERE id = :id"), {"id": disabled.id})
        db.session.commit()
    client.post("/auth/signup", json={"mobile_number": signed_up, "password": PASSWORD})

    answers = [
        log_in(client, member.mobile_number, PASSWORD + "x"),
        log_in(client, new_number(), PASSWORD),
        log_in(client, without_password.mobile_number, PASSWORD),
        log_in(client, disabled.mobile_number, PASSWORD),
        log_in(client, signed_up, PASSWORD),
    ]

    for answer in answers:
        assert_refused(answer, 401, "invalid_credentials")
        assert answer.get_json() == answers[0].get_json()


def test_login_is_limited_per_number_known_or_not(
    client: FlaskClient, member: Account, new_number: NewNumber, later: Later
) -> None:
    for number in (member.mobile_number, new_number()):
        for _ in range(10):
            assert log_in(client, number, "not the password").status_code == 401

        answer = log_in(client, number, PASSWORD)

        assert_refused(answer, 429, "rate_limited")
        assert HOUR - 60 < int(answer.headers["Retry-After"]) <= HOUR
    later(60)
    assert verify(client, member.mobile_number, request_otp(client, member.mobile_number)).status_code == 200
    later(HOUR)
    assert log_in(client, member.mobile_number, PASSWORD).status_code == 200


def test_login_is_limited_per_day(client: FlaskClient, member: Account, later: Later) -> None:
    for _ in range(3):
        for _ in range(10):
            assert log_in(client, member.mobile_number, "not the password").status_code == 401
        later(HOUR)

    assert log_in(client, member.mobile_number, PASSWORD).status_code == 429
    later(21 * HOUR)
    assert log_in(client, member.mobile_number, PASSWORD).status_code == 200


def test_login_does_not_count_when_the_password_is_right(client: FlaskClient, member: Account) -> None:
    for _ in range(15):
        assert log_in(client, member.mobile_number, PASSWORD).status_code == 200


def test_login_makes_the_hash_anew_when_its_parameters_are_not_todays(
    app: Flask, client: FlaskClient, member: Account
) -> None:
    old = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=2).hash(PASSWORD)
    with app.app_context():
        db.session.execute(text("UPDATE users SET password_hash = :old WHERE id = :id"), {"old": old, "id": member.id})
        db.session.commit()

    assert log_in(client, member.mobile_number, PASSWORD + "x").status_code == 401
    assert stored_hash(app, member) == old
    assert log_in(client, member.mobile_number, PASSWORD).status_code == 200

    assert stored_hash(app, member).startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert log_in(client, member.mobile_number, PASSWORD).status_code == 200


def test_login_is_refused_when_the_password_is_another_one_by_the_time_it_was_checked(
    app: Flask, member: Account
) -> None:
    with app.app_context():
        check = in_transaction(lambda: credentials.begin_check(member.mobile_number))
        assert check.verify(PASSWORD)
        change(member, current_password=PASSWORD, new_password=OTHER_PASSWORD)

        assert in_transaction(lambda: credentials.finish_login(check, None)) is None


def test_first_password_is_set_without_a_current_one(app: Flask, client: FlaskClient, account: Account) -> None:
    assert change(account, new_password=PASSWORD).status_code == 200

    assert log_in(client, account.mobile_number, PASSWORD).status_code == 200


def test_password_is_changed_with_the_current_one(client: FlaskClient, member: Account) -> None:
    answer = change(member, current_password=PASSWORD, new_password=OTHER_PASSWORD)

    assert answer.status_code == 200
    assert answer.get_json().keys() == {"message"}
    assert log_in(client, member.mobile_number, PASSWORD).status_code == 401
    assert log_in(client, member.mobile_number, OTHER_PASSWORD).status_code == 200


def test_password_stays_when_the_current_one_is_wrong_or_missing(client: FlaskClient, member: Account) -> None:
    missing = change(member, new_password=OTHER_PASSWORD)
    assert (missing.status_code, list(missing.get_json()["errors"])) == (422, ["current_password"])
    wrong_one = change(member, current_password="not the password", new_password=OTHER_PASSWORD)
    assert_refused(wrong_one, 400, "invalid_credentials")

    assert log_in(client, member.mobile_number, PASSWORD).status_code == 200
    assert is_alive(member)


def test_current_password_cannot_be_guessed_with_a_stolen_token(client: FlaskClient, member: Account) -> None:
    for _ in range(10):
        assert change(member, current_password="not the password", new_password=OTHER_PASSWORD).status_code == 400

    assert_refused(change(member, current_password=PASSWORD, new_password=OTHER_PASSWORD), 429, "rate_limited")
    assert_refused(log_in(client, member.mobile_number, PASSWORD), 429, "rate_limited")


def test_changing_the_password_ends_all_other_sessions(client: FlaskClient, member: Account) -> None:
    elsewhere = log_in(client, member.mobile_number, PASSWORD).get_json()

    change(member, current_password=PASSWORD, new_password=OTHER_PASSWORD)

    assert is_alive(member)
    assert client.get("/user/me", headers=bearer(elsewhere["token"])).status_code == 401
    assert client.post("/auth/refresh", json={"refresh_token": elsewhere["refresh_token"]}).status_code == 401


def test_password_is_not_set_when_the_session_ended_while_it_was_hashed(
    app: Flask, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sign_out_everywhere(password: str) -> str:
        assert account.call("POST", "/auth/logout", {"all": True}).status_code == 204
        return hash_password(password)

    monkeypatch.setattr("chatapi.auth.session_routes.hash_password", sign_out_everywhere)

    assert_refused(change(account, new_password=PASSWORD), 401, "unauthorized")
    assert rows(app, "SELECT password_hash FROM users WHERE id = :id", id=account.id)[0].password_hash is None


def test_forgotten_password_is_reset_with_a_code_and_every_session_ends(client: FlaskClient, member: Account) -> None:
    elsewhere = log_in(client, member.mobile_number, PASSWORD).get_json()
    otp = client.post("/auth/forgot-password", json={"mobile_number": member.mobile_number}).get_json()["otp"]

    answer = reset(client, member.mobile_number, otp, OTHER_PASSWORD)

    assert answer.status_code == 200
    assert answer.get_json().keys() == {"message"}
    assert not is_alive(member)
    assert client.post("/auth/refresh", json={"refresh_token": elsewhere["refresh_token"]}).status_code == 401
    assert log_in(client, member.mobile_number, PASSWORD).status_code == 401
    assert log_in(client, member.mobile_number, OTHER_PASSWORD).status_code == 200
    assert_refused(reset(client, member.mobile_number, otp, PASSWORD), 400, "invalid_otp")


def test_reset_gives_a_number_its_password_tries_back(client: FlaskClient, member: Account) -> None:
    for _ in range(10):
        log_in(client, member.mobile_number, "not the password")
    otp = request_otp(client, member.mobile_number, "password_reset")

    assert reset(client, member.mobile_number, otp, OTHER_PASSWORD).status_code == 200

    assert log_in(client, member.mobile_number, OTHER_PASSWORD).status_code == 200


def test_reset_is_refused_when_the_code_is_wrong_or_for_something_else(client: FlaskClient, member: Account) -> None:
    otp = request_otp(client, member.mobile_number, "password_reset")
    other = request_otp(client, member.mobile_number, "verification")

    assert_refused(reset(client, member.mobile_number, wrong(otp), OTHER_PASSWORD), 400, "invalid_otp")
    if other != otp:
        assert_refused(reset(client, member.mobile_number, other, OTHER_PASSWORD), 400, "invalid_otp")
    assert is_alive(member)
    assert log_in(client, member.mobile_number, PASSWORD).status_code == 200


def test_reset_has_five_tries(client: FlaskClient, member: Account) -> None:
    otp = request_otp(client, member.mobile_number, "password_reset")
    for _ in range(5):
        assert_refused(reset(client, member.mobile_number, wrong(otp), OTHER_PASSWORD), 400, "invalid_otp")

    assert_refused(reset(client, member.mobile_number, otp, OTHER_PASSWORD), 400, "invalid_otp")


def test_reset_makes_no_account(app: Flask, client: FlaskClient, new_number: NewNumber) -> None:
    number = new_number()
    otp = request_otp(client, number, "password_reset")

    assert_refused(reset(client, number, otp, PASSWORD), 400, "invalid_otp")

    assert rows(app, "SELECT * FROM users WHERE mobile_number = :number", number=number) == []


def test_code_is_not_used_up_when_the_new_password_is_refused(client: FlaskClient, member: Account) -> None:
    otp = request_otp(client, member.mobile_number, "password_reset")
    for bad in ("password1", "short", "x" * 129):
        assert reset(client, member.mobile_number, otp, bad).status_code == 422

    assert reset(client, member.mobile_number, otp, OTHER_PASSWORD).status_code == 200


@pytest.mark.parametrize(
    "password", ["", "seven77", "x" * 129, "a\x00bcdefgh", "\ud800abcdefgh", None, 12345678, "Password1", "QWERTYUIOP"]
)
def test_password_is_refused_wherever_it_is_set_when_it_is_no_good(
    client: FlaskClient, account: Account, new_number: NewNumber, password: Any
) -> None:
    signup = client.post("/auth/signup", json={"mobile_number": new_number(), "password": password})
    changed = change(account, new_password=password)
    was_reset = reset(client, account.mobile_number, "123456", password)

    if password is not None:
        assert (signup.status_code, list(signup.get_json()["errors"])) == (422, ["password"])
    for answer in (changed, was_reset):
        assert (answer.status_code, list(answer.get_json()["errors"])) == (422, ["new_password"])


@pytest.mark.parametrize("password", ["12345 67", "x" * 128, "пароль на каждый день", "🂡🂢🂣🂤🂥🂦🂧🂨", "  spaced  "])
def test_password_may_be_anything_else(client: FlaskClient, account: Account, password: str) -> None:
    assert change(account, new_password=password).status_code == 200

    assert log_in(client, account.mobile_number, password).status_code == 200
    assert log_in(client, account.mobile_number, password + " ").status_code in (401, 422)


def test_password_is_refused_when_it_is_the_number(client: FlaskClient, account: Account) -> None:
    answer = change(account, new_password=account.mobile_number.removeprefix("+"))

    assert (answer.status_code, list(answer.get_json()["errors"])) == (422, ["new_password"])


@pytest.mark.parametrize("length", [129, 60_000, 1_000_000])
def test_long_password_costs_nothing(
    client: FlaskClient, account: Account, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """It is refused by its length, before anything is hashed."""
    hashed: list[str] = []
    for name in ("chatapi.auth.routes", "chatapi.auth.session_routes"):
        monkeypatch.setattr(f"{name}.hash_password", hashed.append)
    monkeypatch.setattr("chatapi.auth.credentials.verify_password", lambda *_: hashed.append("verified"))
    password = "x" * length
    number = account.mobile_number

    answers = [
        log_in(client, number, password),
        client.post("/auth/signup", json={"mobile_number": number, "password": password}),
        reset(client, number, "123456", password),
        change(account, current_password=password, new_password=PASSWORD),
        change(account, new_password=password),
    ]

    assert {answer.status_code for answer in answers} == {413 if length > 65_536 else 422}
    assert hashed == []


def stored_hash(app: Flask, account: Account) -> str:
    found: str = rows(app, "SELECT password_hash FROM users WHERE id = :id", id=account.id)[0].password_hash
    return found
