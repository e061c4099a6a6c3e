"""Refresh tokens that rotate, and sessions that end."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text
from werkzeug.test import TestResponse

from chatapi.auth import tokens
from chatapi.auth.sessions import hash_token
from chatapi.extensions import db
from chatapi.ids import uuid7
from chatapi.replies.sweeper import clean
from tests.auth.support import bearer, pass_time, request_otp, rows, verify
from tests.support import Account, race

NewNumber = Callable[[], str]
Later = Callable[[int], None]


@pytest.fixture
def signed_in(client: FlaskClient, new_number: NewNumber) -> dict[str, Any]:
    """What verify-otp answers to somebody new."""
    number = new_number()
    body: dict[str, Any] = verify(client, number, request_otp(client, number)).get_json()
    return body


def sign_in_again(client: FlaskClient, number: str, later: Later) -> dict[str, Any]:
    later(60)
    body: dict[str, Any] = verify(client, number, request_otp(client, number)).get_json()
    return body


def refresh(client: FlaskClient, token: str) -> TestResponse:
    return client.post("/auth/refresh", json={"refresh_token": token})


def is_alive(client: FlaskClient, token: str) -> bool:
    return client.get("/user/me", headers=bearer(token)).status_code == 200


def assert_no_good(answer: TestResponse) -> None:
    assert (answer.status_code, answer.get_json()["error"]) == (401, "unauthorized")


def test_refresh_returns_new_tokens_and_the_old_access_token_goes_on(
    client: FlaskClient, signed_in: dict[str, Any]
) -> None:
    answer = refresh(client, signed_in["refresh_token"])

    body = answer.get_json()
    assert answer.status_code == 200
    assert body.keys() == {"token", "refresh_token", "token_type", "expires_in"}
    assert (body["token_type"], body["expires_in"]) == ("Bearer", 3600)
    assert body["refresh_token"] != signed_in["refresh_token"]
    assert is_alive(client, body["token"])
    assert is_alive(client, signed_in["token"])
    assert refresh(client, body["refresh_token"]).status_code == 200


def test_refresh_gives_the_same_successor_again_within_ten_seconds(
    app: Flask, client: FlaskClient, signed_in: dict[str, Any], later: Later
) -> None:
    first = refresh(client, signed_in["refresh_token"]).get_json()
    later(8)

    again = refresh(client, signed_in["refresh_token"])

    assert again.status_code == 200
    assert again.get_json()["refresh_token"] == first["refresh_token"]
    assert is_alive(client, again.get_json()["token"])
    assert tokens_of(app, signed_in) == 2


def test_refresh_ends_the_family_when_a_token_comes_again_after_ten_seconds(
    app: Flask, client: FlaskClient, signed_in: dict[str, Any], later: Later
) -> None:
    successor = refresh(client, signed_in["refresh_token"]).get_json()
    later(11)

    assert_no_good(refresh(client, signed_in["refresh_token"]))

    assert_no_good(refresh(client, successor["refresh_token"]))
    assert not is_alive(client, successor["token"])
    assert not is_alive(client, signed_in["token"])
    assert tokens_of(app, signed_in) == 0


def test_reuse_ends_its_own_family_only(client: FlaskClient, signed_in: dict[str, Any], later: Later) -> None:
    elsewhere = sign_in_again(client, signed_in["user"]["mobile_number"], later)
    refresh(client, signed_in["refresh_token"])
    later(11)

    assert_no_good(refresh(client, signed_in["refresh_token"]))

    assert is_alive(client, elsewhere["token"])
    assert refresh(client, elsewhere["refresh_token"]).status_code == 200


def test_one_successor_is_made_when_a_token_is_used_fifty_times_at_once(
    app: Flask, client: FlaskClient, signed_in: dict[str, Any]
) -> None:
    answers = race(50, lambda _: refresh(app.test_client(), signed_in["refresh_token"]))

    assert [answer.status_code for answer in answers] == [200] * 50
    assert len({answer.get_json()["refresh_token"] for answer in answers}) == 1
    assert tokens_of(app, signed_in) == 2


def test_refresh_token_is_stored_as_a_hash_only(app: Flask, client: FlaskClient, signed_in: dict[str, Any]) -> None:
    successor = refresh(client, signed_in["refresh_token"]).get_json()["refresh_token"]

    stored = [bytes(row.token_hash) for row in rows(app, "SELECT token_hash FROM refresh_tokens")]

    assert {hash_token(signed_in["refresh_token"]), hash_token(successor)} <= set(stored)
    assert not {signed_in["refresh_token"].encode(), successor.encode()} & set(stored)


@pytest.mark.parametrize("token", ["x", "x" * 43, "\N{SNOWMAN}" * 40])
def test_refresh_is_refused_when_the_token_is_unknown(client: FlaskClient, token: str) -> None:
    assert_no_good(refresh(client, token))


@pytest.mark.parametrize("body", [{}, {"refresh_token": ""}, {"refresh_token": 5}, {"refresh_token": "x" * 4097}])
def test_refresh_is_refused_when_there_is_no_token(client: FlaskClient, body: dict[str, Any]) -> None:
    answer = client.post("/auth/refresh", json=body)

    assert (answer.status_code, list(answer.get_json()["errors"])) == (422, ["refresh_token"])


def test_access_and_refresh_token_cannot_stand_in_for_each_other(
    client: FlaskClient, signed_in: dict[str, Any]
) -> None:
    assert not is_alive(client, signed_in["refresh_token"])
    assert_no_good(refresh(client, signed_in["token"]))


def test_refresh_is_refused_when_the_token_expired(
    app: Flask, client: FlaskClient, signed_in: dict[str, Any], later: Later
) -> None:
    later(30 * 24 * 3600)

    assert_no_good(refresh(client, signed_in["refresh_token"]))
    with app.app_context():
        clean()
    assert rows(app, "SELECT * FROM sessions WHERE user_id = :id", id=signed_in["user"]["id"]) == []


def test_session_goes_on_when_it_is_refreshed_before_it_expires(
    app: Flask, client: FlaskClient, signed_in: dict[str, Any], later: Later
) -> None:
    token = signed_in["refresh_token"]
    for _ in range(3):
        later(20 * 24 * 3600)
        with app.app_context():
            clean()
        answer = refresh(client, token)
        assert answer.status_code == 200
        token = answer.get_json()["refresh_token"]


def test_refresh_is_refused_when_the_account_is_disabled(
    app: Flask, client: FlaskClient, signed_in: dict[str, Any]
) -> None:
    with app.app_context():
        db.session.execute(text("UPDATE users SET disabled_at = now() WHERE id = :id"), {"id": signed_in["user"]["id"]})
        db.session.commit()

    assert_no_good(refresh(client, signed_in["refresh_token"]))


@pytest.mark.parametrize("body", [None, {}, {"all": False}])
def test_logout_ends_this_session_only(
    client: FlaskClient, signed_in: dict[str, Any], later: Later, body: dict[str, Any] | None
) -> None:
    elsewhere = sign_in_again(client, signed_in["user"]["mobile_number"], later)

    answer = client.post("/auth/logout", json=body, headers=bearer(signed_in["token"]))

    assert (answer.status_code, answer.get_data()) == (204, b"")
    assert not is_alive(client, signed_in["token"])
    assert_no_good(refresh(client, signed_in["refresh_token"]))
    assert is_alive(client, elsewhere["token"])


def test_logout_of_all_ends_every_session(client: FlaskClient, signed_in: dict[str, Any], later: Later) -> None:
    elsewhere = sign_in_again(client, signed_in["user"]["mobile_number"], later)

    answer = client.post("/auth/logout", json={"all": True}, headers=bearer(signed_in["token"]))

    assert answer.status_code == 204
    for session in (signed_in, elsewhere):
        assert not is_alive(client, session["token"])
        assert_no_good(refresh(client, session["refresh_token"]))
    assert is_alive(client, sign_in_again(client, signed_in["user"]["mobile_number"], later)["token"])


@pytest.mark.parametrize("value", [1, 0, "true", "yes", None, []])
def test_logout_is_refused_when_all_is_not_true_or_false(
    client: FlaskClient, signed_in: dict[str, Any], value: Any
) -> None:
    answer = client.post("/auth/logout", json={"all": value}, headers=bearer(signed_in["token"]))

    assert (answer.status_code, list(answer.get_json()["errors"])) == (422, ["all"])
    assert is_alive(client, signed_in["token"])


def test_token_dies_of_age_though_it_was_verified_before(make_app: Callable[..., Flask], new_number: NewNumber) -> None:
    """Verified tokens are remembered; how old they are is looked at each time."""
    client = make_app(JWT_ACCESS_TTL_SECONDS="2").test_client()
    number = new_number()
    token = verify(client, number, request_otp(client, number)).get_json()["token"]
    assert is_alive(client, token)

    time.sleep(2.1)

    assert_no_good(client.get("/user/me", headers=bearer(token)))


def test_verified_tokens_are_remembered_and_others_are_not(
    app: Flask, client: FlaskClient, signed_in: dict[str, Any]
) -> None:
    memory = app.extensions["verify_access_token"]
    is_alive(client, signed_in["token"])
    before = memory.cache_info()

    for _ in range(3):
        assert is_alive(client, signed_in["token"])
        assert not is_alive(client, signed_in["token"][:-2] + "xx")

    after = memory.cache_info()
    assert after.hits == before.hits + 3
    assert after.currsize == before.currsize


def test_token_of_an_ended_session_does_not_use_up_its_owners_request_budget(
    make_app: Callable[..., Flask], new_number: NewNumber
) -> None:
    app = make_app(RATE_LIMIT_MAX_REQUESTS="20")
    client, number = app.test_client(), new_number()
    stolen = verify(client, number, request_otp(client, number)).get_json()["token"]
    client.post("/auth/logout", json={"all": True}, headers=bearer(stolen))
    address = {"REMOTE_ADDR": "192.0.2.77"}
    for _ in range(25):
        client.get("/user/me", headers=bearer(stolen), environ_overrides=address)
    pass_time(app, 60)

    owner = verify(client, number, request_otp(client, number)).get_json()["token"]

    assert is_alive(client, owner)
    assert client.get("/user/me", headers=bearer(stolen), environ_overrides=address).status_code == 429


def test_token_is_refused_when_it_is_padded(client: FlaskClient, signed_in: dict[str, Any]) -> None:
    assert not is_alive(client, signed_in["token"] + "=")


def test_ended_sessions_are_forgotten_when_they_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "DEAD_SESSIONS", 3)
    dead, ids = tokens.DeadSessions(), [uuid7() for _ in range(5)]
    for session_id in ids:
        dead.add(session_id)
        dead.add(session_id)

    assert [session_id in dead for session_id in ids] == [False, False, True, True, True]


def test_sign_in_answers_a_token_with_all_its_claims_and_no_state(signed_in: dict[str, Any]) -> None:
    payload = signed_in["token"].split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))

    assert claims.keys() == {"exp", "iat", "nbf", "jti", "type", "fresh", "sub", "iss", "aud", "sid", "sv"}
    assert claims["exp"] - claims["iat"] == signed_in["expires_in"]


def test_account_and_sign_in_race_without_an_error(app: Flask, client: FlaskClient, account: Account) -> None:
    """Refreshing, signing out everywhere and erasing at once: some are refused, none fails."""
    token = request_otp(client, account.mobile_number, "verification")
    session = verify(client, account.mobile_number, token, purpose="verification").get_json()

    def act(index: int) -> int:
        caller = app.test_client()
        if index == 7:
            return caller.delete("/user/me", headers=account.headers).status_code
        if index % 3 == 0:
            return caller.post("/auth/logout", json={"all": True}, headers=account.headers).status_code
        return refresh(caller, session["refresh_token"]).status_code

    statuses = set(race(24, act))

    assert statuses <= {200, 204, 401}


def tokens_of(app: Flask, session: dict[str, Any]) -> int:
    """How many refresh tokens the user has, used ones included."""
    statement = "SELECT token_hash FROM refresh_tokens JOIN sessions ON sessions.id = family_id WHERE user_id = :id"
    return len(rows(app, statement, id=session["user"]["id"]))
