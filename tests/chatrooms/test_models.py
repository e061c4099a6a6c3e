"""The model of a room: listed, named, refused, shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask

from chatapi.chatrooms.models import Chatroom
from chatapi.extensions import db
from tests.support import Account

MODELS = [
    {"alias": "flash", "model": "gemini-a", "description": "Fast"},
    {"alias": "lite", "model": "gemini-b"},
    {"alias": "deep", "model": "gemini-c", "tiers": ["pro"]},
]


@pytest.fixture(scope="module")
def models_app(make_app: Callable[..., Flask]) -> Flask:
    return make_app(GEMINI_MODELS=json.dumps(MODELS))


@pytest.fixture
def basic(models_app: Flask, sign_in: Callable[..., Account]) -> Account:
    return sign_in(via=models_app.test_client())


@pytest.fixture
def pro(models_app: Flask, pro_account: Account) -> Account:
    return Account(pro_account.id, pro_account.mobile_number, pro_account.token, models_app.test_client())


def shown_model(account: Account, room_id: str) -> str:
    model: str = account.call("GET", f"/chatroom/{room_id}").get_json()["chatroom"]["model"]
    return model


def stored_model(app: Flask, room_id: str) -> str | None:
    with app.app_context():
        room = db.session.get(Chatroom, room_id)
        assert room is not None
        return room.model


def test_models_are_listed_with_who_may_use_them(basic: Account) -> None:
    answer = basic.call("GET", "/models")

    assert (answer.status_code, answer.get_json()) == (
        200,
        {
            "models": [
                {"alias": "flash", "description": "Fast", "tiers": ["basic", "pro"], "default": True},
                {"alias": "lite", "description": "", "tiers": ["basic", "pro"], "default": False},
                {"alias": "deep", "description": "", "tiers": ["pro"], "default": False},
            ]
        },
    )


@pytest.mark.parametrize(("fields", "shown"), [({}, "flash"), ({"model": None}, "flash"), ({"model": "lite"}, "lite")])
def test_room_shows_the_model_that_answers_in_it(basic: Account, fields: dict[str, Any], shown: str) -> None:
    answer = basic.call("POST", "/chatroom", fields)

    room = answer.get_json()["chatroom"]
    assert (answer.status_code, room["model"]) == (201, shown)
    assert shown_model(basic, room["id"]) == shown
    assert [room["model"] for room in basic.call("GET", "/chatroom").get_json()["chatrooms"]] == [shown]


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_model_of_a_room_is_changed_kept_and_cleared(models_app: Flask, basic: Account, method: str) -> None:
    room_id = basic.open_room(model="lite")

    shown = [
        basic.call(method, f"/chatroom/{room_id}", body).get_json()["chatroom"]["model"]
        for body in ({"title": "kept"}, {"model": "flash"}, {"model": None})
    ]

    assert shown == ["lite", "flash", "flash"]
    assert stored_model(models_app, room_id) is None


@pytest.mark.parametrize("alias", ["unknown", "gemini-a", "", "Flash", "flash ", "\x00", "\ud800", 7, ["flash"]])
def test_unknown_model_is_refused_on_its_field(basic: Account, alias: Any) -> None:
    room_id = basic.open_room(model="lite")

    for method, path in (("POST", "/chatroom"), ("PUT", f"/chatroom/{room_id}"), ("PATCH", f"/chatroom/{room_id}")):
        answer = basic.call(method, path, {"model": alias, "title": "changed"})
        assert (answer.status_code, list(answer.get_json()["errors"])) == (422, ["model"])
    rooms = basic.call("GET", "/chatroom").get_json()["chatrooms"]
    assert [(room["model"], room["title"]) for room in rooms] == [("lite", None)]


def test_model_of_another_tier_is_refused(basic: Account) -> None:
    room_id = basic.open_room()

    for method, path in (("POST", "/chatroom"), ("PUT", f"/chatroom/{room_id}"), ("PATCH", f"/chatroom/{room_id}")):
        answer = basic.call(method, path, {"model": "deep", "title": "changed"})
        assert (answer.status_code, answer.get_json()["error"]) == (403, "model_not_in_plan")
        assert "deep is for Pro only" in answer.get_json()["message"]
    rooms = basic.call("GET", "/chatroom").get_json()["chatrooms"]
    assert [(room["model"], room["title"]) for room in rooms] == [("flash", None)]


def test_model_of_the_callers_tier_is_taken(pro: Account) -> None:
    room_id = pro.open_room(model="deep")
    assert shown_model(pro, room_id) == "deep"

    assert pro.call("PATCH", f"/chatroom/{room_id}", {"model": "lite"}).status_code == 200
    assert pro.call("PATCH", f"/chatroom/{room_id}", {"model": "deep"}).get_json()["chatroom"]["model"] == "deep"


def test_room_shows_the_default_when_its_model_is_in_the_catalogue_no_more(app: Flask, pro: Account) -> None:
    room_id = pro.open_room(model="deep")

    later = Account(pro.id, pro.mobile_number, pro.token, app.test_client())

    assert shown_model(later, room_id) == app.config["GEMINI_MODEL"]
    assert stored_model(app, room_id) == "deep"
