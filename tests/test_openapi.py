"""What the OpenAPI document says of every operation: names, tokens, examples; and whether the examples are true."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from chatapi.openapi_examples import BY_OPERATION, BY_SCHEMA
from tests.document import faults, resolve
from tests.support import Account

METHODS = {"get", "put", "patch", "post", "delete"}
ECMA_SPACES = r"\t\n\x0b\f\r \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"
PUBLIC_TAGS = {"service", "auth", "webhook"}


@dataclass
class Operation:
    """An operation of the document; references in its answers are followed."""

    path: str
    method: str
    fields: dict[str, Any]
    answers: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.method.upper()} {self.path}"


@pytest.fixture
def document(client: FlaskClient) -> dict[str, Any]:
    document: dict[str, Any] = client.get("/openapi.json").get_json()
    return document


@pytest.fixture
def operations(document: dict[str, Any]) -> list[Operation]:
    found = []
    for path, item in document["paths"].items():
        for method in METHODS & item.keys():
            answers = {
                status: resolve(document, answer["$ref"]) if "$ref" in answer else answer
                for status, answer in item[method]["responses"].items()
            }
            found.append(Operation(path, method, item[method], answers))
    assert len(found) > 40
    return found


def test_every_operation_has_name_summary_tag_and_says_which_token_it_needs(
    document: dict[str, Any], operations: list[Operation]
) -> None:
    described = {tag["name"] for tag in document["tags"] if tag["description"]}

    for operation in operations:
        fields = operation.fields
        assert fields["operationId"].isidentifier(), operation
        assert fields["summary"], operation
        (tag,) = fields["tags"]
        assert tag in described, operation
        schemes = [name for needed in fields["security"] for name in needed]
        expected = ["metrics"] if operation.path == "/metrics" else [] if tag in PUBLIC_TAGS else ["bearer"]
        assert schemes == expected, operation
        assert set(schemes) <= document["components"]["securitySchemes"].keys()
        assert ("401" in operation.answers) or not schemes, operation


def test_every_body_in_json_has_an_example_and_each_is_as_its_schema_says(
    document: dict[str, Any], operations: list[Operation]
) -> None:
    count = 0
    for operation in operations:
        for place, content in _contents(operation):
            for media_type, body in content.items():
                examples = _examples(body)
                assert examples or media_type != "application/json", (operation, place)
                for example in examples:
                    assert faults(document, body["schema"], example) == [], (operation, place)
                    count += 1
    assert count > 200


def test_a_wrong_example_would_be_found(document: dict[str, Any]) -> None:
    wrong = {**BY_SCHEMA["Health"], "timestamp": "yesterday", "mood": "good"}

    assert len(faults(document, {"$ref": "#/components/schemas/Health"}, wrong)) == 2


def test_all_examples_are_used(document: dict[str, Any], operations: list[Operation]) -> None:
    used = [example for operation in operations for _, content in _contents(operation) for body in content.values()
            for example in _examples(body)]  # fmt: skip
    names = {operation.fields["operationId"] for operation in operations}

    assert BY_SCHEMA.keys() <= document["components"]["schemas"].keys()
    assert {name for name, _ in BY_OPERATION} <= names
    for example in (*BY_SCHEMA.values(), *BY_OPERATION.values()):
        assert example in used, example


def test_every_refusal_is_an_error_by_the_status_it_is_listed_under(operations: list[Operation]) -> None:
    for operation in operations:
        assert {"422", "default"} <= operation.answers.keys(), operation
        assert [status for status in operation.answers if status.startswith("2")], operation
        for status, answer in operation.answers.items():
            if status.startswith("2") or operation.path == "/health/ready":
                continue
            body = answer["content"]["application/json"]
            assert body["schema"] == {"$ref": "#/components/schemas/Error"}, (operation, status)
            for slug, example in body["examples"].items():
                assert example["value"]["error"] == slug
                assert status in ("default", str(example["value"]["code"])), (operation, slug)


def test_budget_is_documented_where_it_is_charged(operations: list[Operation]) -> None:
    free = {operation.path for operation in operations if "429" not in operation.answers}

    assert free == {"/webhook/stripe", "/metrics", "/health/live", "/health/ready"}
    for operation in operations:
        if operation.path not in free:
            body = operation.answers["429"]["content"]["application/json"]
            assert body["examples"].keys() & {"rate_limited", "otp_rate_limited"}, operation
            assert "Retry-After" in operation.answers["429"]["headers"], operation


def test_parameters_are_described_and_their_examples_are_good(
    document: dict[str, Any], operations: list[Operation]
) -> None:
    items = [*document["paths"].values(), *(operation.fields for operation in operations)]
    parameters = [parameter for item in items for parameter in item.get("parameters", [])]

    assert {parameter["in"] for parameter in parameters} == {"path", "query", "header"}
    for parameter in parameters:
        assert parameter["description"], parameter
        assert "example" in parameter or parameter["in"] != "path", parameter
        if "example" in parameter:
            assert faults(document, parameter["schema"], parameter["example"]) == []


MESSAGES = "/chatroom/{chatroom_id}/message"
NOBODYS = "019ab3c1-7d42-7c1f-9b52-4f0e6d2a8c11"


def test_document_takes_for_blank_what_is_trimmed_to_nothing(document: dict[str, Any]) -> None:
    (q,) = [each for each in document["paths"]["/chatroom"]["get"]["parameters"] if each["name"] == "q"]
    # Python's \s is wider than that of the document's dialect (ECMA-262, white space and line terminators).
    pattern = re.compile(q["schema"]["pattern"].replace(r"\s", ECMA_SPACES))
    blank = [character for character in map(chr, range(sys.maxunicode + 1)) if not character.strip()]

    assert len(blank) > 25
    assert [character for character in blank if pattern.search(character)] == []
    assert all(pattern.search(f"{character}x{character}") for character in blank)


def _no_room(user: Account) -> TestResponse:
    return user.call("GET", f"/chatroom/{NOBODYS}")


def _no_message(user: Account) -> TestResponse:
    return user.call("GET", f"/chatroom/{user.open_room()}/message/{NOBODYS}")


def _stopped_prompt(user: Account) -> TestResponse:
    room_id = user.open_room()
    prompt = user.send(room_id, "Hello").get_json()["user_message"]
    return user.call("POST", f"/chatroom/{room_id}/message/{prompt['id']}/stop")


def _again_too_early(user: Account) -> TestResponse:
    room_id = user.open_room()
    return user.call("POST", f"/chatroom/{room_id}/message/{user.prompt(room_id, 'Hello')}/regenerate")


def _sixth_prompt(user: Account) -> TestResponse:
    room_id = user.open_room()
    for _ in range(5):
        user.prompt(room_id, "Hello")
    return user.send(room_id, "Hello")


def _key_for_two_prompts(user: Account) -> TestResponse:
    path, headers = f"/chatroom/{user.open_room()}/message", {**user.headers, "Idempotency-Key": "once"}
    user.client.post(path, json={"content": "One"}, headers=headers)
    return user.client.post(path, json={"content": "Two"}, headers=headers)


def _wrong_code(user: Account) -> TestResponse:
    return user.client.post("/auth/verify-otp", json={"mobile_number": user.mobile_number, "otp": "000000"})


def _second_code(user: Account) -> TestResponse:
    number = {"mobile_number": user.mobile_number, "purpose": "verification"}
    user.client.post("/auth/send-otp", json=number)
    return user.client.post("/auth/send-otp", json=number)


@pytest.mark.parametrize(
    ("provoke", "method", "path", "status", "slug"),
    [
        (lambda user: user.client.get("/user/me"), "get", "/user/me", 401, "unauthorized"),
        (_no_room, "get", "/chatroom/{chatroom_id}", 404, "not_found"),
        (_no_message, "get", MESSAGES + "/{message_id}", 404, "not_found"),
        (_stopped_prompt, "post", MESSAGES + "/{message_id}/stop", 409, "not_a_reply"),
        (_again_too_early, "post", MESSAGES + "/{message_id}/regenerate", 409, "not_finished"),
        (_sixth_prompt, "post", MESSAGES, 429, "daily_limit_reached"),
        (_key_for_two_prompts, "post", MESSAGES, 422, "idempotency_mismatch"),
        (lambda user: user.call("POST", "/chatroom", {"title": "x" * 201}), "post", "/chatroom", 422, None),
        (_wrong_code, "post", "/auth/verify-otp", 400, "invalid_otp"),
        (_second_code, "post", "/auth/send-otp", 429, "otp_rate_limited"),
        (
            lambda user: user.client.post("/auth/signup", json={"mobile_number": user.mobile_number}),
            "post",
            "/auth/signup",
            409,
            "already_registered",
        ),
        (
            lambda user: user.client.post("/auth/login", json={"mobile_number": user.mobile_number, "password": "no"}),
            "post",
            "/auth/login",
            401,
            "invalid_credentials",
        ),
        (
            lambda user: user.client.post("/auth/refresh", json={"refresh_token": "made up"}),
            "post",
            "/auth/refresh",
            401,
            "unauthorized",
        ),
        (
            lambda user: user.call("POST", "/subscription/cancel", {}),
            "post",
            "/subscription/cancel",
            409,
            "not_subscribed",
        ),
        (
            lambda user: user.client.post("/webhook/stripe", data=b"{}", content_type="application/json"),
            "post",
            "/webhook/stripe",
            400,
            "invalid_signature",
        ),
    ],
)
def test_refusal_is_what_its_example_shows(
    operations: list[Operation],
    account: Account,
    provoke: Callable[[Account], TestResponse],
    method: str,
    path: str,
    status: int,
    slug: str | None,
) -> None:
    refusal = provoke(account)

    (operation,) = (each for each in operations if (each.method, each.path) == (method, path))
    documented = operation.answers[str(status)]
    example = documented["content"]["application/json"]["examples"][slug or "validation_failed"]["value"]
    shown = refusal.get_json()
    assert refusal.status_code == status, shown
    assert shown.keys() == example.keys()
    assert {name: shown[name] for name in ("code", "status", "error", "message")} == {
        name: example[name] for name in ("code", "status", "error", "message")
    }
    assert shown.get("errors") == example.get("errors")
    assert ("Retry-After" not in refusal.headers) or ("Retry-After" in documented["headers"])


def test_default_answer_shows_what_http_itself_refuses(operations: list[Operation], client: FlaskClient) -> None:
    examples = operations[0].answers["default"]["content"]["application/json"]["examples"]
    refusals = {
        "bad_request": client.post("/auth/send-otp", data=b"{", content_type="application/json"),
        "method_not_allowed": client.delete("/health"),
        "payload_too_large": client.post("/auth/send-otp", data=b"x" * 70_000, content_type="application/json"),
        "unsupported_media_type": client.post("/auth/send-otp", data=b"x", content_type="text/plain"),
    }

    for slug, refusal in refusals.items():
        shown, example = refusal.get_json(), examples[slug]["value"]
        assert shown.keys() == example.keys()
        assert (shown["code"], shown["error"], shown["status"]) == (example["code"], slug, example["status"])


def test_a_model_out_of_plan_is_refused_as_its_example_shows(
    make_app: Callable[..., Flask], sign_in: Callable[..., Account]
) -> None:
    models = '[{"alias": "fast", "model": "m1"}, {"alias": "smart", "model": "m2", "tiers": ["pro"]}]'
    client = make_app(GEMINI_MODELS=models, GEMINI_MODEL="fast").test_client()
    refusal = sign_in(via=client).call("POST", "/chatroom", {"model": "smart"})

    document = client.get("/openapi.json").get_json()
    answer = document["paths"]["/chatroom"]["post"]["responses"]["403"]
    assert refusal.get_json() == answer["content"]["application/json"]["examples"]["model_not_in_plan"]["value"]


def _contents(operation: Operation) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "request", operation.fields.get("requestBody", {}).get("content", {})
    for status, answer in operation.answers.items():
        yield status, answer.get("content", {})


def _examples(body: dict[str, Any]) -> list[Any]:
    if "example" in body:
        return [body["example"]]
    return [example["value"] for example in body.get("examples", {}).values()]
