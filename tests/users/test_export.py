"""Everything held about a user, as one streamed document."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from flask import Flask
from sqlalchemy import text

from chatapi.app import create_app
from chatapi.auth.sessions import hash_token
from chatapi.dev.stripe.standin import StripeStandin
from chatapi.exports import PIECE_CHARACTERS, in_pieces
from chatapi.extensions import db, in_transaction
from chatapi.keys import hash_number
from chatapi.users import export
from chatapi.users.service import read_profile
from tests.auth.support import PASSWORD, pass_time, request_otp
from tests.subscriptions.support import Billing
from tests.support import Account, Services


def read_export(account: Account) -> dict[str, Any]:
    answer = account.call("GET", "/user/me/export")
    assert answer.status_code == 200
    assert answer.mimetype == "application/json"
    assert answer.headers["Content-Disposition"] == 'attachment; filename="account.json"'
    document: dict[str, Any] = json.loads(answer.get_data())
    return document


def test_export_holds_account_rooms_and_messages(account: Account) -> None:
    account.call("PUT", "/user/me", {"name": 'Ada "the first" \N{SNOWMAN}', "email": "ada@example.org"})
    account.call("POST", "/auth/change-password", {"new_password": PASSWORD})
    empty = account.open_room(title="empty")
    room_id = account.open_room(title="full", system_instruction="be brief")
    reply_id = account.prompt(room_id, 'a "quoted"\n\u202b prompt')

    document = read_export(account)

    own = {"exported_at", "user", "sessions", "daily_usage", "codes", "sign_in_limits", "idempotency_keys", "audit"}
    own |= {"billing", "subscriptions", "stripe_events", "chatrooms"}
    assert document.keys() == own
    me = account.call("GET", "/user/me").get_json()["user"]
    assert document["user"].items() >= me.items()
    assert document["user"]["has_password"] is True
    assert [each["used"] for each in document["daily_usage"]] == [1]
    assert len(document["sessions"]) == 1
    counted = {limit["name"]: len(limit["counted_at"]) for limit in document["sign_in_limits"]}
    assert counted == {"codes": 1, "code_spacing:login": 1, "code_tries": 0}
    rooms = {room["id"]: room for room in document["chatrooms"]}
    assert rooms.keys() == {empty, room_id}
    assert rooms[empty]["messages"] == []
    assert rooms[room_id]["system_instruction"] == "be brief"
    prompt, reply = rooms[room_id]["messages"]
    assert (prompt["message_type"], prompt["content"]) == ("user", 'a "quoted"\n\u202b prompt')
    assert (reply["id"], reply["reply_to"], reply["status"]) == (reply_id, prompt["id"], "pending")


def test_export_holds_the_stripe_events_of_the_own_customer_alone(
    app: Flask, stripe: StripeStandin, sign_in: Callable[..., Account]
) -> None:
    billing, mine, other = Billing(app, stripe), sign_in(), sign_in()
    billing.subscribe(mine)
    customer_id = billing.customer_of(mine)
    billing.subscribe(other)

    document = read_export(mine)

    told = billing.rows("SELECT event_id FROM stripe_events WHERE customer_id = :id ORDER BY id", id=customer_id)
    assert [each["event_id"] for each in document["stripe_events"]] == [row.event_id for row in told]
    (paid,) = (each for each in document["stripe_events"] if each["type"] == "checkout.session.completed")
    assert paid.keys() == {
        *("event_id", "type", "status", "reason"),
        *("stripe_created_at", "received_at", "closed_at"),
    }
    assert paid["status"] == "handled"
    assert paid["received_at"] <= paid["closed_at"]
    assert read_export(sign_in())["stripe_events"] == []


def test_export_holds_no_secret(app: Flask, account: Account) -> None:
    account.call("POST", "/auth/change-password", {"new_password": PASSWORD})
    otp = request_otp(account.client, account.mobile_number, "verification")

    shown = json.dumps(read_export(account))

    # In quotes, as the digits of a time may be the same.
    for secret in (f'"{otp}"', "argon2", account.token, hash_token(account.token).hex(), "number_hash", "code_hash"):
        assert secret not in shown


def test_export_holds_every_room_and_message_beyond_a_page(
    account: Account, pro_account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "ROOMS_AT_ONCE", 2)
    monkeypatch.setattr(export, "MESSAGES_AT_ONCE", 3)
    rooms = {pro_account.open_room(): count for count in (4, 0, 3, 1, 2)}
    for room_id, count in rooms.items():
        for index in range(count):
            pro_account.prompt(room_id, f"prompt {index}")

    document = read_export(pro_account)

    assert [room["id"] for room in document["chatrooms"]] == list(rooms)
    for room in document["chatrooms"]:
        prompts = [message["content"] for message in room["messages"] if message["message_type"] == "user"]
        assert prompts == [f"prompt {index}" for index in range(rooms[room["id"]])]


def test_export_holds_nothing_of_anybody_else(sign_in: Callable[..., Account]) -> None:
    mine, other = sign_in(), sign_in()
    other.prompt(other.open_room(title="theirs"), "their secret")

    document = read_export(mine)

    assert document["chatrooms"] == []
    assert other.mobile_number not in json.dumps(document)


def test_export_holds_what_was_of_this_account_and_not_of_an_earlier_one(
    app: Flask, account: Account, sign_in: Callable[..., Account]
) -> None:
    flask = app.test_cli_runner()
    flask.invoke(args=["user", "enable", account.mobile_number])
    assert [event["action"] for event in read_export(account)["audit"]] == ["user_enabled"]
    account.prompt(account.open_room(), "hello")
    flask.invoke(args=["user", "delete", account.mobile_number, "--yes"])
    with app.app_context():
        db.session.execute(
            text("UPDATE daily_usage SET day = day - 1 WHERE number_hash = :hash"),
            {"hash": hash_number(account.mobile_number)},
        )
        db.session.commit()
    pass_time(app, 60)

    document = read_export(sign_in(account.mobile_number))

    assert (document["audit"], document["daily_usage"]) == ([], [])


def test_export_is_written_piece_by_piece_and_holds_no_connection_between(
    app: Flask, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "ROOMS_AT_ONCE", 1)
    rooms = [account.open_room() for _ in range(3)]
    with app.app_context():
        user = in_transaction(lambda: read_profile(UUID(account.id))).user
        pieces = []
        for piece in export.write_account({}, user):
            pieces.append(piece)
            assert db.engine.pool.checkedout() == 0  # type: ignore[attr-defined]

    assert len(pieces) > len(rooms)
    assert [room["id"] for room in json.loads("".join(pieces))["chatrooms"]] == rooms


def test_export_is_one_at_a_time_for_a_user(app: Flask, account: Account) -> None:
    first = account.client.get("/user/me/export", headers=account.headers, buffered=False)
    assert first.status_code == 200

    second = account.call("GET", "/user/me/export")

    assert (second.status_code, second.get_json()["error"]) == (429, "rate_limited")
    assert int(second.headers["Retry-After"]) > 0
    first.close()
    assert account.call("GET", "/user/me/export").status_code == 200


def test_exports_leave_most_threads_to_others(sign_in: Callable[..., Account], make_app: Callable[..., Flask]) -> None:
    client = make_app(WEB_THREADS="8").test_client()
    accounts = [sign_in(via=client) for _ in range(3)]
    under_way = [client.get("/user/me/export", headers=account.headers, buffered=False) for account in accounts[:2]]
    assert [answer.status_code for answer in under_way] == [200, 200]

    third = accounts[2].call("GET", "/user/me/export")

    assert (third.status_code, third.get_json()["error"]) == (503, "service_unavailable")
    assert int(third.headers["Retry-After"]) > 0
    under_way[0].close()
    assert accounts[2].call("GET", "/user/me/export").status_code == 200
    under_way[1].close()


def test_slot_is_given_back_when_the_export_fails_midway(
    services: Services, sign_in: Callable[..., Account], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without the check of answers, which would read this one before it is on its way.
    account = sign_in(via=create_app(services.environ).test_client())
    account.open_room()
    monkeypatch.setattr(export, "_dump", lambda _row: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        account.client.get("/user/me/export", headers=account.headers, buffered=True)
    monkeypatch.undo()

    with account.client.get("/user/me/export", headers=account.headers) as answer:
        assert answer.status_code == 200


def test_piece_of_an_export_is_never_large(account: Account, app: Flask) -> None:
    account.open_room(system_instruction="x" * 4000)
    for _ in range(40):
        account.open_room(description="y" * 1000)
    with app.app_context():
        user = in_transaction(lambda: read_profile(UUID(account.id))).user
        pieces = list(in_pieces(export.write_account({"note": "z" * 200_000}, user)))

    assert max(map(len, pieces)) == PIECE_CHARACTERS
    assert json.loads("".join(pieces))["user"]["note"] == "z" * 200_000
