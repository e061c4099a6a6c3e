"""Erasing an account: nothing is left of it, and nothing is gained by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text

from chatapi.auth.models import User
from chatapi.extensions import db
from chatapi.keys import hash_number
from chatapi.users import erase
from tests.auth.support import pass_time, request_otp, rows
from tests.support import Account, race


def erase_account(account: Account) -> None:
    answer = account.call("DELETE", "/user/me")
    assert (answer.status_code, answer.get_data()) == (204, b"")


def holdings(app: Flask, account: Account) -> dict[str, int]:
    """How many rows of each table still name the account, its rooms or its messages."""
    with app.app_context():
        number_hash = hash_number(account.mobile_number)
    counts = {
        "users": "SELECT count(*) FROM users WHERE id = :id OR mobile_number = :number",
        "sessions": "SELECT count(*) FROM sessions WHERE user_id = :id",
        "signups": "SELECT count(*) FROM signups WHERE user_id = :id",
        "otp_codes": "SELECT count(*) FROM otp_codes WHERE number_hash = :hash",
        "chatrooms": "SELECT count(*) FROM chatrooms WHERE user_id = :id",
        "reply_jobs": "SELECT count(*) FROM reply_jobs WHERE user_id = :id",
        "messages": "SELECT count(*) FROM messages WHERE content LIKE '%' || :id || '%'",
        "orphans": "SELECT count(*) FROM messages WHERE room_id NOT IN (SELECT id FROM chatrooms)",
        "refresh_tokens": "SELECT count(*) FROM refresh_tokens WHERE family_id NOT IN (SELECT id FROM sessions)",
    }
    parameters = {"id": account.id, "number": account.mobile_number, "hash": number_hash}
    with app.app_context():
        return {name: db.session.scalar(text(query), parameters) or 0 for name, query in counts.items()}


def test_erasing_leaves_nothing_and_ends_the_token_at_once(app: Flask, client: FlaskClient, account: Account) -> None:
    room_id = account.open_room(title="mine")
    account.prompt(room_id, f"I am {account.id}")
    request_otp(client, account.mobile_number, "verification")
    before = holdings(app, account)
    assert before["messages"] == before["users"] == before["sessions"] == before["reply_jobs"] == 1

    erase_account(account)

    assert set(holdings(app, account).values()) == {0}
    assert account.call("GET", "/user/me").status_code == 401
    assert account.call("DELETE", "/user/me").status_code == 401


def test_refresh_token_is_dead_when_the_account_is_erased(client: FlaskClient, new_number: Callable[[], str]) -> None:
    number = new_number()
    session = client.post(
        "/auth/verify-otp", json={"mobile_number": number, "otp": request_otp(client, number)}
    ).get_json()
    client.delete("/user/me", headers={"Authorization": f"Bearer {session['token']}"})

    assert client.post("/auth/refresh", json={"refresh_token": session["refresh_token"]}).status_code == 401


def test_account_made_again_has_the_same_prompts_left_and_nothing_else_of_the_old(
    app: Flask, account: Account, sign_in: Callable[..., Account]
) -> None:
    room_id = account.open_room()
    for _ in range(5):
        account.prompt(room_id, "hello")
    account.call("PUT", "/user/me", {"name": "Ada"})
    erase_account(account)
    pass_time(app, 60)

    again = sign_in(account.mobile_number)

    assert again.id != account.id
    user = again.call("GET", "/user/me").get_json()["user"]
    assert (user["name"], user["daily_usage_count"], user["stats"]["chatroom_count"]) == (None, 5, 0)
    answer = again.send(again.open_room(), "one more")
    assert (answer.status_code, answer.get_json()["error"]) == (429, "daily_limit_reached")


def test_other_accounts_are_not_concerned(app: Flask, sign_in: Callable[..., Account]) -> None:
    mine, other = sign_in(), sign_in()
    room_id = other.open_room()
    other.prompt(room_id, "hello")

    erase_account(mine)

    assert other.call("GET", f"/chatroom/{room_id}").get_json()["chatroom"]["message_count"] == 2


def test_hook_is_called_with_the_account_before_it_goes(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(erase, "BEFORE_ERASE", (lambda user: seen.append(user.mobile_number),))

    erase_account(account)

    assert seen == [account.mobile_number]


def test_account_stays_when_a_hook_fails(app: Flask, account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(user: User) -> None:
        db.session.execute(text("UPDATE users SET name = 'half done' WHERE id = :id"), {"id": user.id})
        raise RuntimeError("the payment provider's row could not be written")

    monkeypatch.setattr(erase, "BEFORE_ERASE", (fail,))

    assert account.call("DELETE", "/user/me").status_code == 500

    assert rows(app, "SELECT name FROM users WHERE id = :id", id=account.id)[0].name is None
    assert account.call("GET", "/user/me").status_code == 200


def test_signing_up_and_in_races_with_the_erasing(
    app: Flask, client: FlaskClient, sign_in: Callable[..., Account]
) -> None:
    """Whoever waits for the account's row finds it gone, and makes another."""
    for _ in range(10):
        account = sign_in()
        otp = request_otp(client, account.mobile_number, "verification")
        calls = [
            ("/auth/signup", {}),
            ("/auth/verify-otp", {"otp": otp, "purpose": "verification"}),
            ("/auth/send-otp", {"purpose": "password_reset"}),
        ]

        def act(index: int, account: Account = account, calls: list[Any] = calls) -> int:
            caller = app.test_client()
            if index == 3:
                return caller.delete("/user/me", headers=account.headers).status_code
            path, body = calls[index % 3]
            return caller.post(path, json={"mobile_number": account.mobile_number, **body}).status_code

        assert set(race(8, act)) <= {200, 201, 204, 400, 401, 409, 429}


def test_whatever_races_with_the_erasing_is_done_or_refused(app: Flask, account: Account) -> None:
    room_id = account.open_room()
    calls = [
        ("GET", "/user/me", None),
        ("PUT", "/user/me", {"name": "Ada"}),
        ("GET", "/user/me/export", None),
        ("POST", "/chatroom", {}),
        ("GET", "/chatroom", None),
        ("GET", f"/chatroom/{room_id}", None),
        ("PUT", f"/chatroom/{room_id}", {"title": "x"}),
        ("POST", f"/chatroom/{room_id}/message", {"content": "hello"}),
        ("POST", "/auth/change-password", {"new_password": "a password to be set"}),
    ]

    def act(index: int) -> int:
        method, path, body = ("DELETE", "/user/me", None) if index == 20 else calls[index % len(calls)]
        caller = Account(account.id, account.mobile_number, account.token, app.test_client())
        return caller.call(method, path, body).status_code

    statuses = set(race(44, act))

    # 422: somebody else was first to set a password, so the current one is asked for.
    assert statuses <= {200, 201, 204, 400, 401, 404, 422, 429}
    assert 204 in statuses
    assert set(holdings(app, account).values()) == {0}
