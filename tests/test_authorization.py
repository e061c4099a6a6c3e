"""Who may do what: every route there is, and what it asks of its caller. A route that is not listed here fails."""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from chatapi.app import PROTECTED
from tests.support import Account

NEVER_WAS = "01890a5d-ac96-774b-bcce-b302099a8057"
MALFORMED = ["x", "1", NEVER_WAS[:-1], NEVER_WAS + "0", "%00", "..%2f..", "\N{FULLWIDTH DIGIT ONE}"]


OF_THE_MOMENT = {"X-Request-ID", "Date", "X-RateLimit-Remaining", "X-RateLimit-Reset"}


class Access(Enum):
    """What a route asks of its caller, and how it sees to it that they only reach what is theirs."""

    PUBLIC = "nothing"
    SELF = "a token; it concerns the token's own account, and takes no id"
    ROOM = "a token of the room's owner"
    MESSAGE = "a token of the owner of the message's room"


BODIES = {
    "/chatroom/<chatroom_id>": {"title": "taken over"},
    "/chatroom/<chatroom_id>/message": {"content": "hello"},
}

ROUTES = {
    ("GET", "/"): Access.PUBLIC,
    ("GET", "/health"): Access.PUBLIC,
    ("GET", "/health/live"): Access.PUBLIC,
    ("GET", "/health/ready"): Access.PUBLIC,
    ("GET", "/metrics"): Access.PUBLIC,
    ("GET", "/docs"): Access.PUBLIC,
    ("GET", "/docs/assets/<path:filename>"): Access.PUBLIC,
    ("GET", "/openapi.json"): Access.PUBLIC,
    ("GET", "/static/<path:filename>"): Access.PUBLIC,
    ("POST", "/auth/signup"): Access.PUBLIC,
    ("POST", "/auth/send-otp"): Access.PUBLIC,
    ("POST", "/auth/verify-otp"): Access.PUBLIC,
    ("POST", "/auth/login"): Access.PUBLIC,
    ("POST", "/auth/forgot-password"): Access.PUBLIC,
    ("POST", "/auth/reset-password"): Access.PUBLIC,
    ("POST", "/auth/refresh"): Access.PUBLIC,
    ("POST", "/auth/change-password"): Access.SELF,
    ("POST", "/auth/logout"): Access.SELF,
    ("GET", "/user/me"): Access.SELF,
    ("PUT", "/user/me"): Access.SELF,
    ("PATCH", "/user/me"): Access.SELF,
    ("DELETE", "/user/me"): Access.SELF,
    ("GET", "/user/me/export"): Access.SELF,
    ("GET", "/models"): Access.SELF,
    ("POST", "/subscribe/pro"): Access.SELF,
    ("POST", "/subscription/pro"): Access.SELF,
    ("GET", "/subscription/status"): Access.SELF,
    ("GET", "/subscribe/status"): Access.SELF,
    ("GET", "/subscription/history"): Access.SELF,
    ("POST", "/subscription/cancel"): Access.SELF,
    ("POST", "/subscription/resume"): Access.SELF,
    ("POST", "/subscription/portal"): Access.SELF,
    ("POST", "/webhook/stripe"): Access.PUBLIC,
    ("POST", "/chatroom"): Access.SELF,
    ("GET", "/chatroom"): Access.SELF,
    ("GET", "/chatroom/<chatroom_id>"): Access.ROOM,
    ("GET", "/chatroom/<chatroom_id>/export"): Access.ROOM,
    ("PUT", "/chatroom/<chatroom_id>"): Access.ROOM,
    ("PATCH", "/chatroom/<chatroom_id>"): Access.ROOM,
    ("DELETE", "/chatroom/<chatroom_id>"): Access.ROOM,
    ("POST", "/chatroom/<chatroom_id>/message"): Access.ROOM,
    ("GET", "/chatroom/<chatroom_id>/message/<message_id>"): Access.MESSAGE,
    ("GET", "/chatroom/<chatroom_id>/message/<message_id>/stream"): Access.MESSAGE,
    ("POST", "/chatroom/<chatroom_id>/message/<message_id>/stop"): Access.MESSAGE,
    ("POST", "/chatroom/<chatroom_id>/message/<message_id>/regenerate"): Access.MESSAGE,
}

PROTECTED_ROUTES = [route for route, access in ROUTES.items() if access is not Access.PUBLIC]
OWNED_ROUTES = [route for route, access in ROUTES.items() if access in (Access.ROOM, Access.MESSAGE)]


def all_routes(app: Flask) -> set[tuple[str, str]]:
    """Every method and address that the application answers; HEAD and OPTIONS are Flask's own, of GET and of all."""
    return {
        (method, rule.rule)
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }


def ask(account: Account, method: str, rule: str, chatroom_id: str, message_id: str) -> TestResponse:
    path = rule.replace("<chatroom_id>", chatroom_id).replace("<message_id>", message_id)
    return account.call(method, path, BODIES.get(rule) if method in ("POST", "PUT", "PATCH") else None)


def what_it_says(answer: TestResponse) -> tuple[int, bytes, set[tuple[str, str]]]:
    """Return all that an answer gives away: its status, its bytes, and its headers but for those of the moment."""
    headers = {(name, value) for name, value in answer.headers if name not in OF_THE_MOMENT}
    return answer.status_code, answer.get_data(), headers


def test_every_route_is_listed(app: Flask) -> None:
    assert all_routes(app) == set(ROUTES)


def test_route_that_is_not_listed_would_be_noticed(make_app: Callable[..., Flask]) -> None:
    app = make_app()
    app.add_url_rule("/backdoor", "backdoor", lambda: "", methods=["GET", "DELETE"])

    assert all_routes(app) - set(ROUTES) == {("GET", "/backdoor"), ("DELETE", "/backdoor")}


def test_routes_are_in_a_protected_blueprint_when_they_need_a_token(app: Flask) -> None:
    protected = {blueprint.name for blueprint in PROTECTED}

    for rule in app.url_map.iter_rules():
        is_protected = rule.endpoint.split(".")[0] in protected
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
            assert is_protected == (ROUTES[method, rule.rule] is not Access.PUBLIC), rule


def test_routes_take_an_id_when_and_only_when_ownership_is_checked() -> None:
    for (_method, rule), access in ROUTES.items():
        ids = re.findall(r"<(\w+_id)>", rule)
        expected = {Access.ROOM: ["chatroom_id"], Access.MESSAGE: ["chatroom_id", "message_id"]}.get(access, [])
        assert ids == expected, rule


@pytest.mark.parametrize(("method", "rule"), PROTECTED_ROUTES)
@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer junk", "Basic eDp4"])
def test_protected_route_answers_401_without_a_good_token_whatever_else_is_wrong(
    client: FlaskClient, method: str, rule: str, header: str | None
) -> None:
    headers = {} if header is None else {"Authorization": header}
    path = re.sub(r"<[^>]+>", "malformed", rule)

    answer = client.open(path, method=method, data=b"{", content_type="application/json", headers=headers)

    assert (answer.status_code, answer.get_json()["error"]) == (401, "unauthorized")
    assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize(("method", "rule"), OWNED_ROUTES)
def test_owned_route_answers_somebody_else_as_if_it_never_was(
    sign_in: Callable[..., Account], method: str, rule: str
) -> None:
    owner, other = sign_in(), sign_in()
    room_id = owner.open_room(title="mine")
    reply_id = owner.prompt(room_id, "hello")
    before = owner.call("GET", f"/chatroom/{room_id}").get_json()["chatroom"]["message_count"]

    answer = ask(other, method, rule, room_id, reply_id)

    assert answer.status_code == 404
    assert what_it_says(answer) == what_it_says(ask(other, method, rule, NEVER_WAS, NEVER_WAS))
    mine = owner.call("GET", f"/chatroom/{room_id}").get_json()["chatroom"]
    assert (mine["title"], mine["message_count"]) == ("mine", before)


@pytest.mark.parametrize(("method", "rule"), OWNED_ROUTES)
@pytest.mark.parametrize("malformed", MALFORMED)
def test_owned_route_answers_a_malformed_id_as_if_it_never_was(
    account: Account, method: str, rule: str, malformed: str
) -> None:
    answer = ask(account, method, rule, malformed, malformed)

    assert answer.status_code == 404
    if "%2f" not in malformed:  # That one is another address.
        assert what_it_says(answer) == what_it_says(ask(account, method, rule, NEVER_WAS, NEVER_WAS))


@pytest.mark.parametrize(("method", "rule"), ROUTES)
def test_route_refuses_query_arguments_it_does_not_know(account: Account, method: str, rule: str) -> None:
    path = re.sub(r"<[^>]+>", NEVER_WAS, rule)

    answer = account.call(method, f"{path}?titel=x", BODIES.get(rule))

    assert (answer.status_code, answer.get_json()["errors"]) == (422, {"titel": ["Unknown field."]})


def test_message_is_not_found_in_another_room_of_its_owner(account: Account) -> None:
    room_id, other_room_id = account.open_room(), account.open_room()
    reply_id = account.prompt(room_id, "hello")

    assert account.call("GET", f"/chatroom/{other_room_id}/message/{reply_id}").status_code == 404
    assert account.call("GET", f"/chatroom/{room_id}/message/{reply_id}").status_code == 200
