"""The `flask user` and `flask otp` commands."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import Result
from flask import Flask
from flask.testing import FlaskClient

from chatapi.auth import audit
from tests import leaks
from tests.auth.support import pass_time, request_otp, rows, verify, wrong
from tests.support import Account

NewNumber = Callable[[], str]


@pytest.fixture
def flask(app: Flask) -> Callable[..., Result]:
    """Return what runs a `flask` command."""
    return lambda *arguments, typed=None: app.test_cli_runner().invoke(args=arguments, input=typed)


def events_of(app: Flask, account: Account) -> list[Any]:
    return rows(
        app,
        "SELECT action, actor, details FROM audit_events "
        "WHERE number_hash = (SELECT number_hash FROM users WHERE id = :id) ORDER BY id",
        id=account.id,
    )


def test_user_show_tells_what_support_asks(flask: Callable[..., Result], account: Account) -> None:
    account.call("PUT", "/user/me", {"name": "Ada", "email": "ada@example.org"})
    account.prompt(account.open_room(), "hello")

    result = flask("user", "show", account.mobile_number.removeprefix("+"), "--json")

    assert result.exit_code == 0
    shown = json.loads(result.stdout)
    assert (
        shown.items()
        >= {
            "id": account.id,
            "mobile_number": account.mobile_number,
            "name": "Ada",
            "email": "ada@example.org",
            "has_password": False,
            "subscription_tier": "basic",
            "disabled_at": None,
            "sessions": 1,
            "prompts_today": 1,
            "chatrooms": 1,
            "messages": 2,
            "audit": [],
        }.items()
    )
    assert "hello" not in result.stdout
    plain = flask("user", "show", account.mobile_number)
    assert re.search(r"^name +Ada$", plain.stdout, re.MULTILINE)


def test_user_disable_kills_tokens_and_sign_in_at_once_and_enable_gives_sign_in_back(
    app: Flask, client: FlaskClient, flask: Callable[..., Result], account: Account
) -> None:
    assert flask("user", "disable", account.mobile_number).exit_code == 0

    assert account.call("GET", "/user/me").status_code == 401
    pass_time(app, 60)
    otp = request_otp(client, account.mobile_number)
    assert verify(client, account.mobile_number, otp).get_json()["error"] == "invalid_otp"

    assert flask("user", "enable", account.mobile_number).exit_code == 0
    assert account.call("GET", "/user/me").status_code == 401
    pass_time(app, 60)
    assert verify(client, account.mobile_number, request_otp(client, account.mobile_number)).status_code == 200
    assert [event.action for event in events_of(app, account)] == ["user_disabled", "user_enabled"]
    assert {event.actor for event in events_of(app, account)} == {audit.operator()}


def test_user_delete_asks_first_and_erases(app: Flask, flask: Callable[..., Result], account: Account) -> None:
    refused = flask("user", "delete", account.mobile_number, typed="n\n")
    assert refused.exit_code == 1
    assert account.call("GET", "/user/me").status_code == 200

    done = flask("user", "delete", account.mobile_number, typed="y\n")

    assert done.exit_code == 0
    assert account.call("GET", "/user/me").status_code == 401
    assert rows(app, "SELECT * FROM users WHERE id = :id", id=account.id) == []
    assert flask("user", "delete", account.mobile_number, "--yes").exit_code == 1


@pytest.mark.parametrize("command", ["show", "disable", "enable", "delete"])
def test_user_command_says_so_when_there_is_no_account(
    flask: Callable[..., Result], new_number: NewNumber, command: str
) -> None:
    result = flask("user", command, new_number(), *(["--yes"] if command == "delete" else []))

    assert result.exit_code == 1
    assert "There is no account" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("command", [("user", "show"), ("user", "disable"), ("otp", "issue")])
@pytest.mark.parametrize("number", ["0155512345", "x", "+1 555", "1" * 16])
def test_command_says_so_when_the_number_is_none(
    flask: Callable[..., Result], command: tuple[str, str], number: str
) -> None:
    result = flask(*command, number)

    assert result.exit_code == 2
    assert "digits" in result.stderr


@pytest.mark.parametrize("is_json", [True, False])
def test_otp_issue_prints_a_code_that_signs_in_and_is_audited(
    app: Flask, client: FlaskClient, flask: Callable[..., Result], account: Account, is_json: bool
) -> None:
    result = flask("otp", "issue", account.mobile_number, *(["--json"] if is_json else []))

    assert result.exit_code == 0
    code = json.loads(result.stdout)["otp"] if is_json else result.stdout.split()[0]
    leaks.SUITE.note_code(code)
    assert verify(client, account.mobile_number, code).status_code == 200
    (event,) = events_of(app, account)
    assert (event.action, event.actor, event.details) == ("otp_issued", audit.operator(), {"purpose": "login"})
    assert code not in result.stderr
    assert account.mobile_number not in result.stderr


def test_otp_issue_helps_one_whose_codes_are_burnt(
    client: FlaskClient, flask: Callable[..., Result], new_number: NewNumber
) -> None:
    number = new_number()
    for purpose in ("login", "verification", "password_reset"):
        request_otp(client, number, purpose)
    assert client.post("/auth/send-otp", json={"mobile_number": number}).status_code == 429

    result = flask("otp", "issue", number, "--purpose", "verification", "--json")

    code = json.loads(result.stdout)["otp"]
    leaks.SUITE.note_code(code)
    assert verify(client, number, code, purpose="verification").status_code == 200


def test_otp_issue_helps_one_whose_guesses_are_used_up(
    app: Flask, client: FlaskClient, flask: Callable[..., Result], new_number: NewNumber
) -> None:
    number = new_number()
    for _ in range(3):
        otp = request_otp(client, number)
        for _ in range(5):
            verify(client, number, wrong(otp))
        pass_time(app, 60)
    assert verify(client, number, request_otp(client, number)).status_code == 400

    code = json.loads(flask("otp", "issue", number, "--json").stdout)["otp"]

    leaks.SUITE.note_code(code)
    assert verify(client, number, code).status_code == 200


def test_otp_issue_refuses_a_disabled_account(app: Flask, flask: Callable[..., Result], account: Account) -> None:
    flask("user", "disable", account.mobile_number)

    result = flask("otp", "issue", account.mobile_number)

    assert result.exit_code == 1
    assert "disabled" in result.stderr
    assert [event.action for event in events_of(app, account)] == ["user_disabled"]


def test_otp_prune_deletes_what_is_past_its_life_and_counts_it(
    app: Flask, client: FlaskClient, flask: Callable[..., Result], new_number: NewNumber
) -> None:
    pass_time(app, 301)
    flask("otp", "prune")
    request_otp(client, new_number())
    pass_time(app, 301)
    waiting = new_number()
    otp = request_otp(client, waiting)

    result = flask("otp", "prune", "--json")

    assert json.loads(result.stdout) == {"codes": 1, "undelivered": 0}
    assert verify(client, waiting, otp).status_code == 200
    assert flask("otp", "prune").stdout == "Deleted 1 codes, and 0 that were never delivered.\n"


def test_operator_is_named_when_the_system_has_no_name_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUDO_USER", raising=False)

    def nobody() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr("getpass.getuser", nobody)

    assert re.fullmatch(r"uid \d+", audit.operator())


@pytest.mark.parametrize("command", [("user", "show"), ("user", "delete", "--yes"), ("otp", "issue")])
def test_command_says_in_a_sentence_that_the_database_is_away(
    make_app: Callable[..., Flask], new_number: NewNumber, command: tuple[str, ...]
) -> None:
    app = make_app(DATABASE_URL="postgresql://somebody:password@127.0.0.1:1/chat")

    result = app.test_cli_runner().invoke(args=[*command, new_number()])

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: PostgreSQL does not answer: is DATABASE_URL right, and is it up?\n"
