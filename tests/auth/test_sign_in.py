"""Signing up and signing in, over HTTP and asserted on rows."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text

from chatapi.extensions import db
from chatapi.keys import hash_number
from tests.auth.support import request_otp, verify, wrong
from tests.support import Account, race

NewNumber = Callable[[], str]
Later = Callable[[int], None]


def test_send_otp_answers_alike_when_the_number_is_known_and_unknown(
    client: FlaskClient, account: Account, new_number: NewNumber, later: Later
) -> None:
    later(60)
    known = client.post("/auth/send-otp", json={"mobile_number": account.mobile_number})
    number = new_number()
    unknown = client.post("/auth/send-otp", json={"mobile_number": number})

    assert known.status_code == unknown.status_code == 200
    assert known.get_json().keys() == unknown.get_json().keys()
    assert {**unknown.get_json(), "otp": ""} == {
        "message": "Code sent",
        "mobile_number": number,
        "purpose": "login",
        "expires_in": 300,
        "otp": "",
    }


def test_verify_otp_makes_the_account_when_the_number_is_new(client: FlaskClient, new_number: NewNumber) -> None:
    number = new_number()

    answer = verify(client, number, request_otp(client, number))

    body = answer.get_json()
    assert answer.status_code == 200
    assert body["token_type"] == "Bearer"
    assert body["expires_in"] == 3600
    assert body["user"]["mobile_number"] == number
    assert body["user"]["subscription_tier"] == "basic"
    me = client.get("/user/me", headers={"Authorization": f"Bearer {body['token']}"})
    assert me.get_json()["user"]["id"] == body["user"]["id"]


def test_verify_otp_signs_in_to_the_same_account_when_the_number_is_written_without_plus(
    client: FlaskClient, account: Account, later: Later
) -> None:
    bare = account.mobile_number.removeprefix("+")
    later(60)

    answer = verify(client, bare, request_otp(client, bare))

    assert answer.get_json()["user"]["id"] == account.id


def test_otp_is_refused_when_it_was_used(client: FlaskClient, new_number: NewNumber) -> None:
    number = new_number()
    otp = request_otp(client, number)
    assert verify(client, number, otp).status_code == 200

    answer = verify(client, number, otp)

    assert (answer.status_code, answer.get_json()["error"]) == (400, "invalid_otp")


def test_otp_is_refused_when_a_newer_one_superseded_it(
    client: FlaskClient, new_number: NewNumber, later: Later
) -> None:
    number = new_number()
    first = second = request_otp(client, number)
    while first == second:
        later(60)
        second = request_otp(client, number)

    assert verify(client, number, first).status_code == 400
    assert verify(client, number, second).status_code == 200


def test_otp_is_refused_when_it_expired(app: Flask, client: FlaskClient, new_number: NewNumber) -> None:
    number = new_number()
    otp = request_otp(client, number)
    with app.app_context():
        db.session.execute(
            text("UPDATE otp_codes SET expires_at = expires_at - interval '300 s' WHERE number_hash = :hash"),
            {"hash": hash_number(number)},
        )
        db.session.commit()

    assert verify(client, number, otp).status_code == 400


def test_otp_is_refused_when_it_was_for_another_purpose(client: FlaskClient, new_number: NewNumber) -> None:
    number = new_number()
    otp = request_otp(client, number, "verification")

    assert verify(client, number, otp).status_code == 400
    assert verify(client, number, otp, purpose="verification").status_code == 200


def test_otp_is_refused_when_it_was_for_another_number(client: FlaskClient, new_number: NewNumber) -> None:
    mine, other = new_number(), new_number()
    otp = request_otp(client, mine)
    request_otp(client, other)

    assert verify(client, other, otp).status_code == 400


def test_password_reset_code_signs_nobody_in(client: FlaskClient, new_number: NewNumber) -> None:
    number = new_number()
    otp = request_otp(client, number, "password_reset")

    assert verify(client, number, otp).status_code == 400
    assert verify(client, number, otp, purpose="password_reset").status_code == 422


def test_otp_is_refused_when_its_tries_are_used_up(client: FlaskClient, new_number: NewNumber) -> None:
    number = new_number()
    otp = request_otp(client, number)
    for _ in range(5):
        assert verify(client, number, wrong(otp)).status_code == 400

    assert verify(client, number, otp).status_code == 400


def test_at_most_five_codes_are_compared_when_fifty_are_guessed_at_once(
    app: Flask, client: FlaskClient, new_number: NewNumber
) -> None:
    number = new_number()
    otp = request_otp(client, number)

    answers = race(50, lambda _: verify(app.test_client(), number, wrong(otp)).status_code)

    assert answers == [400] * 50
    with app.app_context():
        attempts = db.session.scalar(
            text("SELECT attempts FROM otp_codes WHERE number_hash = :hash"), {"hash": hash_number(number)}
        )
        counted = db.session.scalar(
            text("SELECT cardinality(hits) FROM auth_limits WHERE name = 'code_tries' AND subject = :hash"),
            {"hash": hash_number(number)},
        )
    assert attempts == counted == 5  # What was not compared does not count against the number either.
    assert verify(client, number, otp).status_code == 400


def test_exactly_one_session_begins_when_a_code_is_sent_fifty_times_at_once(
    app: Flask, client: FlaskClient, new_number: NewNumber
) -> None:
    number = new_number()
    otp = request_otp(client, number)

    answers = race(50, lambda _: verify(app.test_client(), number, otp).status_code)

    assert sorted(answers) == [200] + [400] * 49
    with app.app_context():
        sessions = db.session.scalar(
            text(
                "SELECT count(*) FROM refresh_tokens JOIN sessions ON sessions.id = family_id "
                "JOIN users ON users.id = user_id WHERE mobile_number = :number"
            ),
            {"number": number},
        )
    assert sessions == 1


def test_code_is_nowhere_in_the_database_when_it_waits_to_be_used(
    app: Flask, client: FlaskClient, new_number: NewNumber
) -> None:
    number = new_number()
    otp = request_otp(client, number)

    with app.app_context():
        row = db.session.execute(
            text("SELECT * FROM otp_codes WHERE number_hash = :hash"), {"hash": hash_number(number)}
        ).one()
    assert otp.encode() not in bytes(row.code_hash)
    assert len(row.code_hash) == 32
    assert number not in str(row)


def test_signup_keeps_email_and_password_when_its_token_comes_with_the_code(
    app: Flask, client: FlaskClient, new_number: NewNumber
) -> None:
    number = new_number()
    fields = {"mobile_number": number, "name": "Ada", "email": "ada@example.org", "password": "correct horse"}
    signup = client.post("/auth/signup", json=fields)
    assert signup.status_code == 201
    assert signup.get_json()["user"].items() >= {"name": "Ada", "email": "ada@example.org"}.items()

    token = signup.get_json()["signup_token"]
    answer = verify(
        client, number, request_otp(client, number, "verification"), purpose="verification", signup_token=token
    )

    assert answer.get_json()["user"].items() >= {"name": "Ada", "email": "ada@example.org"}.items()
    with app.app_context():
        row = db.session.execute(
            text(
                "SELECT password_hash, (SELECT count(*) FROM signups WHERE user_id = users.id) AS signups "
                "FROM users WHERE mobile_number = :number"
            ),
            {"number": number},
        ).one()
    assert row.password_hash.startswith("$argon2id$")
    assert row.signups == 0


def test_stranger_gains_nothing_when_signing_up_somebody_elses_number(
    app: Flask, client: FlaskClient, new_number: NewNumber, later: Later
) -> None:
    number = new_number()
    fields = {"mobile_number": number, "name": "Eve", "email": "eve@example.org", "password": "eves password"}
    strangers = client.post("/auth/signup", json=fields).get_json()["signup_token"]

    owner = verify(client, number, request_otp(client, number))

    assert owner.get_json()["user"]["email"] is None
    with app.app_context():
        password_hash = db.session.scalar(
            text("SELECT password_hash FROM users WHERE mobile_number = :number"), {"number": number}
        )
    assert password_hash is None
    later(60)
    verify(client, number, request_otp(client, number), signup_token=strangers)
    later(60)
    assert verify(client, number, request_otp(client, number)).get_json()["user"]["email"] is None


def test_signup_shows_nothing_that_another_one_sent(client: FlaskClient, new_number: NewNumber) -> None:
    number = new_number()
    client.post("/auth/signup", json={"mobile_number": number, "name": "Ada", "email": "ada@example.org"})

    user = client.post("/auth/signup", json={"mobile_number": number}).get_json()["user"]

    assert (user["name"], user["email"]) == (None, None)


def test_signup_token_does_nothing_when_it_is_for_another_number(client: FlaskClient, new_number: NewNumber) -> None:
    mine, other = new_number(), new_number()
    token = client.post("/auth/signup", json={"mobile_number": other, "email": "e@example.org"}).get_json()[
        "signup_token"
    ]

    answer = verify(client, mine, request_otp(client, mine), signup_token=token)

    assert answer.status_code == 200
    assert answer.get_json()["user"]["email"] is None


def test_signup_is_refused_when_the_number_is_verified(client: FlaskClient, account: Account) -> None:
    answer = client.post("/auth/signup", json={"mobile_number": account.mobile_number, "name": "Somebody else"})

    assert (answer.status_code, answer.get_json()["error"]) == (409, "already_registered")
    assert account.call("GET", "/user/me").get_json()["user"]["name"] is None


@pytest.mark.parametrize(
    "number",
    [
        "",
        "+",
        "0155512345",
        "+0155512345",
        "1",
        "+1",
        "1" * 16,
        " 15551234567",
        "15551234567\n",
        "1555 1234567",
        "١٥٥٥١٢٣٤٥٦٧",
        "１５５５１２３４５６７",
        "++15551234567",
        "+1555abc",
        15551234567,
        None,
        ["15551234567"],
    ],
)
def test_number_is_refused_when_it_is_not_in_its_one_form(client: FlaskClient, number: Any) -> None:
    answer = client.post("/auth/send-otp", json={"mobile_number": number})

    assert (answer.status_code, list(answer.get_json()["errors"])) == (422, ["mobile_number"])


@pytest.mark.parametrize(
    "otp", ["", "12345", "1234567", "12345a", "12345\n", "１２３４５６", "١٢٣٤٥٦", " 12345", 123456, None]
)
def test_code_is_refused_when_it_is_not_six_ascii_digits(client: FlaskClient, new_number: NewNumber, otp: Any) -> None:
    answer = client.post("/auth/verify-otp", json={"mobile_number": new_number(), "otp": otp})

    assert (answer.status_code, list(answer.get_json()["errors"])) == (422, ["otp"])


def forged(app: Flask, account: Account, *, key: str | None = None, algorithm: str = "HS256", **changes: Any) -> str:
    """Return a token with the claims of a good one, `changes` apart; a change to None leaves the claim out."""
    payload = account.token.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    claims = {name: value for name, value in {**claims, **changes}.items() if value is not None}
    return jwt.encode(claims, key or app.config["JWT_SECRET"], algorithm=algorithm)


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": None},
        {"exp": int(time.time()) - 1},
        {"jti": None},
        {"type": None},
        {"type": "refresh"},
        {"type": "made-up"},
        {"iss": "other"},
        {"iss": None},
        {"aud": "other"},
        {"aud": None},
        {"sub": None},
        {"sub": "somebody"},
        {"sub": "01890a5d-ac96-774b-bcce-b302099a8057"},
        {"sv": None},
        {"sv": 2},
        {"sv": "1"},
        {"sv": True},
        {"sid": None},
        {"sid": "session"},
        {"sid": "01890a5d-ac96-774b-bcce-b302099a8057"},
        {"algorithm": "HS512"},
        {"key": "another secret of a good many bytes, all of them wrong"},
    ],
)
def test_token_is_refused_when_it_is_not_ours_in_every_claim(
    app: Flask, account: Account, changes: dict[str, Any]
) -> None:
    token = forged(app, account, **changes)

    answer = account.client.get("/user/me", headers={"Authorization": f"Bearer {token}"})

    assert (answer.status_code, answer.get_json()["error"]) == (401, "unauthorized")
    assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_token_is_accepted_when_only_reencoded(app: Flask, account: Account) -> None:
    """The forgery above changes nothing else: otherwise its refusals would prove nothing."""
    token = forged(app, account)

    assert account.client.get("/user/me", headers={"Authorization": f"Bearer {token}"}).status_code == 200


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Bearer a b", "Bearer a.b.c", "Basic YTpi", "Bearer \xff", "a"]
)
def test_request_is_refused_when_its_authorization_header_is_no_token(client: FlaskClient, header: str) -> None:
    answer = client.get("/user/me", headers={"Authorization": header})

    assert (answer.status_code, answer.get_json()["error"]) == (401, "unauthorized")


def test_token_is_refused_when_it_has_no_signature(account: Account) -> None:
    head = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').decode().rstrip("=")
    token = f"{head}.{account.token.split('.')[1]}."

    assert account.client.get("/user/me", headers={"Authorization": f"Bearer {token}"}).status_code == 401


@pytest.mark.parametrize("change", ["disabled_at = now()", "session_version = session_version + 1"])
def test_token_dies_at_once_when_the_database_says_so(app: Flask, account: Account, change: str) -> None:
    assert account.call("GET", "/user/me").status_code == 200
    with app.app_context():
        db.session.execute(text(f"UPDATE users SET {change} WHERE id = :id"), {"id": account.id})  # noqa: S608
        db.session.commit()

    assert account.call("GET", "/user/me").status_code == 401
