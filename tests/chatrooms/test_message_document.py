"""What the OpenAPI document says of prompts and replies: their headers, and how they are answered."""

from __future__ import annotations

import re
from typing import Any

import pytest
from flask.testing import FlaskClient

MESSAGES = "/chatroom/{chatroom_id}/message"
REPLY = MESSAGES + "/{message_id}"


@pytest.fixture
def paths(client: FlaskClient) -> dict[str, Any]:
    document: dict[str, Any] = client.get("/openapi.json").get_json()
    return document["paths"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("post", MESSAGES, {"Idempotency-Key", "Prefer"}),
        ("get", REPLY, set()),
        ("get", f"{REPLY}/stream", {"Last-Event-ID"}),
        ("post", f"{REPLY}/stop", set()),
        ("post", f"{REPLY}/regenerate", {"Idempotency-Key"}),
    ],
)
def test_headers_are_documented_and_none_is_required(
    paths: dict[str, Any], method: str, path: str, headers: set[str]
) -> None:
    parameters = [each for each in paths[path][method].get("parameters", []) if each["in"] == "header"]

    assert {each["name"] for each in parameters} == headers
    for each in parameters:
        assert not each["required"]
        assert each["description"]


@pytest.mark.parametrize(
    ("method", "path", "statuses"),
    [
        ("post", MESSAGES, {"201", "401", "404", "409", "422", "429", "503"}),
        ("get", REPLY, {"200", "401", "404"}),
        ("get", f"{REPLY}/stream", {"200", "204", "401", "404", "409", "503"}),
        ("post", f"{REPLY}/stop", {"200", "401", "404", "409"}),
        ("post", f"{REPLY}/regenerate", {"201", "401", "404", "409", "422", "429", "503"}),
    ],
)
def test_statuses_are_documented(paths: dict[str, Any], method: str, path: str, statuses: set[str]) -> None:
    assert paths[path][method]["responses"].keys() >= statuses


def test_headers_of_answers_are_documented(paths: dict[str, Any]) -> None:
    accepted = {"Location", "Idempotent-Replayed"}

    assert paths[MESSAGES]["post"]["responses"]["201"]["headers"].keys() == accepted | {"Preference-Applied"}
    assert paths[f"{REPLY}/regenerate"]["post"]["responses"]["201"]["headers"].keys() == accepted


def test_pattern_of_the_key_is_one_that_other_languages_read(paths: dict[str, Any]) -> None:
    (key,) = (each for each in paths[MESSAGES]["post"]["parameters"] if each["name"] == "Idempotency-Key")

    pattern = key["schema"]["pattern"]  # Of ECMA-262, found anywhere unless it is anchored; it has no \A and \Z.
    assert re.fullmatch(r"\^[^\\]*\$", pattern)
    assert re.search(pattern, "x" * 255)
    assert not re.search(pattern, "x" * 256)


def test_stream_is_documented_as_events(paths: dict[str, Any]) -> None:
    content = paths[f"{REPLY}/stream"]["get"]["responses"]["200"]["content"]

    event = content["text/event-stream"]["schema"]["properties"]["event"]
    assert event["enum"] == ["delta", "reset", "done", "stopped", "error"]
