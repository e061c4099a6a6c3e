"""`flask seed-demo`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from chatapi.demo.command import BASIC_NUMBER, PRO_NUMBER
from chatapi.demo.people import PASSWORD, seed_person
from chatapi.demo.texts import read_rooms
from chatapi.dev.embedded import free_port
from chatapi.dev.stripe.standin import StripeStandin
from tests.auth.support import rows
from tests.support import Account, race
from tests.system.support import CONTRADICTIONS

NewNumber = Callable[[], str]


@pytest.fixture
def numbers(new_number: NewNumber) -> list[str]:
    return [new_number(), new_number()]


def seed(app: Flask, numbers: list[str], *more: str) -> Any:
    arguments = ["seed-demo", "--number", numbers[0], "--pro-number", numbers[1], *more]
    return app.test_cli_runner().invoke(args=arguments)


def accounts(app: Flask, numbers: list[str]) -> list[dict[str, Any]]:
    result = seed(app, numbers, "--json")
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)["accounts"]
    return found


def test_seed_demo_makes_accounts_with_finished_conversations(
    app: Flask, client: FlaskClient, stripe: StripeStandin, numbers: list[str]
) -> None:
    basic, pro = accounts(app, numbers)

    assert (basic["subscription_tier"], pro["subscription_tier"]) == ("basic", "pro")
    for person, tier in ((basic, "basic"), (pro, "pro")):
        of_them = Account(person["id"], person["mobile_number"], person["token"], client)
        user = of_them.call("GET", "/user/me").get_json()["user"]
        assert (user["name"], user["subscription_tier"]) == (person["name"], tier)
        assert user["daily_usage_count"] == 0
        wanted = read_rooms(tier)
        assert user["stats"] == {
            "chatroom_count": len(wanted),
            "message_count": sum(2 * len(room.exchanges) for room in wanted),
        }
        for room_id, room in zip(person["chatrooms"], wanted, strict=True):
            shown = of_them.call("GET", f"/chatroom/{room_id}").get_json()["chatroom"]
            assert shown["title"] == room.title
            assert [each["content"] for each in shown["messages"]] == [text for pair in room.exchanges for text in pair]
            assert {each["status"] for each in shown["messages"]} == {"completed"}
    rooms = [*basic["chatrooms"], *pro["chatrooms"]]
    messages = rows(app, "SELECT id FROM messages WHERE room_id = ANY(CAST(:rooms AS uuid[]))", rooms=rooms)
    made = {*rooms, *(str(each.id) for each in messages)}
    assert [each for each in rows(app, CONTRADICTIONS) if str(each.id) in made] == []
    assert rows(app, "SELECT * FROM reply_jobs WHERE user_id IN (:a, :b)", a=basic["id"], b=pro["id"]) == []


def test_seed_demo_may_run_again(app: Flask, client: FlaskClient, stripe: StripeStandin, numbers: list[str]) -> None:
    before = accounts(app, numbers)
    deleted = before[0]["chatrooms"][0]
    client.delete(f"/chatroom/{deleted}", headers={"Authorization": f"Bearer {before[0]['token']}"})

    again = accounts(app, numbers)

    assert [(each["id"], each["subscription_tier"]) for each in again] == [
        (each["id"], each["subscription_tier"]) for each in before
    ]
    assert again[0]["chatrooms_made"] == 1
    assert deleted not in again[0]["chatrooms"]
    assert again[1]["chatrooms"] == before[1]["chatrooms"]
    assert again[1]["chatrooms_made"] == 0


def test_seed_demo_doubles_nothing_when_it_runs_twice_at_once(app: Flask, new_number: NewNumber) -> None:
    number = new_number()

    def run(_: int) -> int:
        with app.app_context():
            return seed_person(number, "Dana Demo", read_rooms("basic")).rooms_made

    assert sorted(race(2, run)) == [0, len(read_rooms("basic"))]


def test_seed_demo_tells_how_to_sign_in(
    app: Flask, client: FlaskClient, stripe: StripeStandin, numbers: list[str]
) -> None:
    result = seed(app, numbers)

    assert result.exit_code == 0
    assert f"Sign in with the password {PASSWORD}, such as by\ncurl -s http://localhost:" in result.stdout
    body = json.loads(result.stdout.partition("-d '")[2].partition("'")[0])
    assert client.post("/auth/login", json=body).status_code == 200


def test_seed_demo_leaves_an_account_of_somebodys_own_alone(
    app: Flask, flask_account: Account, new_number: NewNumber
) -> None:
    result = seed(app, [flask_account.mobile_number, new_number()])

    assert result.exit_code == 1
    assert "is somebody's own, and stays untouched" in result.stderr
    assert flask_account.call("GET", "/chatroom").get_json()["chatrooms"] == []


@pytest.fixture
def flask_account(account: Account) -> Account:
    return account


def test_seed_demo_says_why_nobody_is_pro_without_the_stand_in(
    make_app: Callable[..., Flask], numbers: list[str]
) -> None:
    for settings, because in (
        ({"STRIPE_API_BASE": f"http://127.0.0.1:{free_port()}"}, "could not be asked"),
        ({"STRIPE_API_BASE": "https://api.stripe.com"}, "would have to pay at Stripe itself"),
        ({"STRIPE_SECRET_KEY": ""}, "billing is not configured"),
    ):
        result = seed(make_app(**settings), numbers, "--json")

        assert result.exit_code == 0
        assert json.loads(result.stdout)["accounts"][1]["subscription_tier"] == "basic"
        assert f"{numbers[1]} stays Basic: " in result.stderr
        assert because in result.stderr


def test_seed_demo_refuses_production(make_app: Callable[..., Flask], numbers: list[str]) -> None:
    app = make_app(
        APP_ENV="production",
        GEMINI_API_KEY="some-key",
        OTP_DELIVERY="webhook",
        OTP_WEBHOOK_URL="http://127.0.0.1:1",
        OTP_WEBHOOK_SECRET="a-long-secret-for-nothing",
    )

    result = seed(app, numbers)

    assert (result.exit_code, result.stdout) == (1, "")
    assert "There are no demo accounts in production" in result.stderr
    assert rows(app, "SELECT id FROM users WHERE mobile_number = ANY(:numbers)", numbers=numbers) == []


def test_seed_demo_wants_two_numbers(app: Flask, new_number: NewNumber) -> None:
    assert seed(app, [new_number()] * 2).exit_code == 2


@pytest.mark.parametrize("number", [BASIC_NUMBER, PRO_NUMBER])
def test_the_demos_own_numbers_are_nobodys(number: str) -> None:
    """555-0100 to 555-0199 are kept for fiction in the North American Numbering Plan."""
    assert number.startswith("+1202555010")
