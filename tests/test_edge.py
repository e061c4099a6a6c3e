"""What every route owes its callers: the one envelope, strict reading, limits, request ids, health, docs."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
import redis
from flask import Flask
from flask.testing import FlaskClient
from openapi_spec_validator import validate
from werkzeug.test import TestResponse

from tests.support import Account, Services

JSON = "application/json"


def assert_refused(answer: TestResponse, status: int, slug: str) -> dict[str, Any]:
    """Assert the envelope of an error, whoever raised it, and return it."""
    body: dict[str, Any] = answer.get_json()
    assert (answer.status_code, body["code"], body["error"]) == (status, status, slug)
    assert answer.mimetype == JSON
    assert body["status"]
    assert body["message"]
    assert body.keys() <= {"code", "status", "error", "message", "errors"}
    assert ("errors" in body) == (status == 422)
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", answer.headers["X-Request-ID"])
    assert ("Retry-After" in answer.headers) == (status in (409, 429, 503))
    return body


@pytest.mark.parametrize(
    "body",
    [
        b"{", b"", b"nothing", b'{"title": NaN}', b'{"title": Infinity}', b'{"title": "a", "title": "b"}', b"\xff\xfe",
        b'{"title": "\xed\xa0\x80"}', b"[" * 60_000, b'{"a":' * 10_000, b'{"title": "a"} {}',
        b'{"n": ' + b"9" * 5000 + b"}", "{}".encode("utf-16"), b'\xef\xbb\xbf{}',
    ],
)  # fmt: skip
def test_body_is_refused_when_it_is_not_json(account: Account, body: bytes) -> None:
    answer = account.client.post("/chatroom", data=body, content_type=JSON, headers=account.headers)

    assert_refused(answer, 400, "bad_request")


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/jsonx"},
        {"Content-Type": ""},
        {"Content-Type": JSON, "Content-Encoding": "gzip"},
        {"Content-Type": JSON, "Content-Encoding": "identity"},
    ],
)
def test_body_is_refused_when_it_is_of_another_type(account: Account, headers: dict[str, str]) -> None:
    answer = account.client.post("/chatroom", data=b"{}", headers={**account.headers, **headers})

    assert_refused(answer, 415, "unsupported_media_type")


@pytest.mark.parametrize("content_type", [JSON, "application/json; charset=utf-8", "application/vnd.chat+json"])
def test_body_is_read_when_it_is_json_by_any_of_its_names(account: Account, content_type: str) -> None:
    answer = account.client.post("/chatroom", data=b"{}", content_type=content_type, headers=account.headers)

    assert answer.status_code == 201


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"titel": "x"}, "titel"),
        ({"\ud800": "x"}, "\ud800"),
        ({"title": ""}, "title"),
        ({"title": "x" * 201}, "title"),
        ({"title": "a\x00b"}, "title"),
        ({"title": "\udfff"}, "title"),
        ({"title": "safe\u202egnp.exe"}, "title"),
        ({"title": "bell\x07"}, "title"),
        ({"title": "two\nlines"}, "title"),
        ({"title": "\u200b\ufeff"}, "title"),
        ({"title": 1e308}, "title"),
        ({"title": ["x"]}, "title"),
        ({"description": "x" * 1001}, "description"),
        ({"system_instruction": "x" * 4001}, "system_instruction"),
        ({"id": "01890a5d-ac96-774b-bcce-b302099a8057"}, "id"),
        ({"user_id": "01890a5d-ac96-774b-bcce-b302099a8057"}, "user_id"),
    ],
)
def test_body_is_refused_when_a_field_is_no_good(account: Account, body: dict[str, Any], field: str) -> None:
    answer = account.client.post("/chatroom", data=json.dumps(body), content_type=JSON, headers=account.headers)

    assert list(assert_refused(answer, 422, "validation_failed")["errors"]) == [field]


@pytest.mark.parametrize("body", [[], [{}], 5, "x", None, True])
def test_body_is_refused_when_it_is_no_object(account: Account, body: Any) -> None:
    answer = account.client.post("/chatroom", data=json.dumps(body), content_type=JSON, headers=account.headers)

    assert_refused(answer, 422, "validation_failed")


def test_body_is_refused_when_it_is_too_large(account: Account) -> None:
    too_much = json.dumps({"description": "x" * 65_536})

    answer = account.client.post("/chatroom", data=too_much, content_type=JSON, headers=account.headers)

    assert_refused(answer, 413, "payload_too_large")


@pytest.mark.parametrize("path", ["/health", "/user/me", "/"])
def test_query_argument_is_refused_when_the_route_takes_none(account: Account, path: str) -> None:
    answer = account.client.get(f"{path}?verbose=1", headers=account.headers)

    assert list(assert_refused(answer, 422, "validation_failed")["errors"]) == ["verbose"]


def test_unknown_address_is_not_found(client: FlaskClient) -> None:
    assert_refused(client.get("/nowhere?x=1"), 404, "not_found")


def test_wrong_method_is_refused_with_the_right_ones(client: FlaskClient) -> None:
    answer = client.delete("/auth/send-otp")

    assert_refused(answer, 405, "method_not_allowed")
    assert set(answer.headers["Allow"].split(", ")) == {"POST", "OPTIONS"}


def test_unexpected_error_is_answered_without_its_text(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_arguments: Any) -> None:
        raise RuntimeError("a secret of the inside")

    monkeypatch.setitem(app.view_functions, "service.health", fail)

    answer = app.test_client().get("/health")

    assert_refused(answer, 500, "internal_error")
    assert b"secret" not in answer.get_data()


@pytest.mark.parametrize("given", ["abc-1.2_X", "a" * 64])
def test_request_id_is_the_clients_own_when_it_is_sane(client: FlaskClient, given: str) -> None:
    assert client.get("/health", headers={"X-Request-ID": given}).headers["X-Request-ID"] == given


@pytest.mark.parametrize("given", ["", "a" * 65, "a b", "a;b", "é", "<script>"])
def test_request_id_is_ours_when_the_clients_is_not_sane(client: FlaskClient, given: str) -> None:
    answer = client.get("/health", headers={"X-Request-ID": given.encode().decode("latin-1")})

    assert re.fullmatch(r"[0-9a-f-]{36}", answer.headers["X-Request-ID"])


def test_health_says_ok_and_the_time(client: FlaskClient) -> None:
    body = client.get("/health").get_json()

    assert body["status"] == "OK"
    assert abs((datetime.fromisoformat(body["timestamp"]) - datetime.now(UTC)).total_seconds()) < 5


def test_readiness_names_every_check_and_stand_in(client: FlaskClient) -> None:
    answer = client.get("/health/ready")

    assert answer.status_code == 200
    assert answer.get_json() == {
        "status": "ok",
        "checks": {"postgresql": "ok", "redis": "ok"},
        "notes": ["Gemini is a stand-in"],
    }


def test_readiness_says_that_stripe_is_configured_in_part(make_app: Callable[..., Flask]) -> None:
    notes = make_app(STRIPE_PRICE_ID="").test_client().get("/health/ready").get_json()["notes"]

    assert notes[1:] == ["Stripe is configured in part, so nothing is sold"]


def test_readiness_is_degraded_and_200_when_only_redis_is_away(make_app: Callable[..., Flask]) -> None:
    answer = make_app(REDIS_URL="redis://127.0.0.1:1/0").test_client().get("/health/ready")

    assert answer.status_code == 200
    assert answer.get_json()["status"] == "degraded"
    assert answer.get_json()["checks"]["redis"].startswith("unavailable")


def test_readiness_is_degraded_when_redis_is_full(client: FlaskClient, services: Services) -> None:
    with redis.Redis.from_url(services.valkey.url) as store:
        store.config_set("maxmemory", 1)
        try:
            checks = client.get("/health/ready").get_json()["checks"]
        finally:
            store.config_set("maxmemory", 0)

    assert checks["redis"] == "unavailable (OutOfMemoryError)"


def test_readiness_is_503_when_postgresql_is_away(make_app: Callable[..., Flask]) -> None:
    answer = make_app(DATABASE_URL="postgresql://u@127.0.0.1:1/d").test_client().get("/health/ready")

    assert answer.status_code == 503
    assert "Retry-After" in answer.headers
    assert answer.get_json()["checks"]["redis"] == "ok"


def test_routes_answer_503_when_postgresql_is_away(make_app: Callable[..., Flask], account: Account) -> None:
    client = make_app(DATABASE_URL="postgresql://u@127.0.0.1:1/d").test_client()

    assert_refused(client.post("/auth/send-otp", json={"mobile_number": "15551234567"}), 503, "service_unavailable")
    assert_refused(client.get("/chatroom", headers=account.headers), 503, "service_unavailable")


def test_index_links_to_what_is_there(app: Flask, client: FlaskClient) -> None:
    links = client.get("/").get_json()["links"]

    assert set(links.values()) <= {rule.rule for rule in app.url_map.iter_rules()}

    for name in ("docs", "openapi", "health"):
        assert client.get(links[name]).status_code == 200


def test_openapi_document_is_valid_and_names_what_is_there(app: Flask, client: FlaskClient) -> None:
    document = client.get("/openapi.json").get_json()

    validate(document)
    assert document["openapi"] == "3.1.0"
    undocumented = {"/static/{filename}", "/docs/assets/{filename}", "/openapi.json"}
    served = {re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule) for rule in app.url_map.iter_rules()}
    assert set(document["paths"]) == served - undocumented
    operations = [each for path in document["paths"].values() for name, each in path.items() if name != "parameters"]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    assert document["paths"]["/chatroom"]["get"]["security"] == [{"bearer": []}]
    assert document["paths"]["/auth/send-otp"]["post"]["security"] == []


def test_docs_come_from_our_own_files(client: FlaskClient) -> None:
    page = client.get("/docs").get_data(as_text=True)

    files = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(files) == 4
    for file in files:
        assert file.startswith("/")
        with client.get(file) as answer:
            assert answer.status_code == 200
    assert "://" not in page


@pytest.mark.parametrize("header", [", ,x", ",, ,Bearer x", "Bearer , ,", ",", "Bearer \x00"])
def test_odd_lists_of_tokens_are_no_token(client: FlaskClient, header: str) -> None:
    assert_refused(client.get("/user/me", headers={"Authorization": header}), 401, "unauthorized")


def test_options_says_what_an_address_takes_to_anybody(client: FlaskClient) -> None:
    answer = client.options("/chatroom")

    assert answer.status_code == 200
    assert set(answer.headers["Allow"].split(", ")) >= {"GET", "POST"}


def chunked(account: Account, body: bytes) -> TestResponse:
    """Post a body of no announced length, as a chunked one reaches the application."""
    return account.client.post(
        "/chatroom",
        input_stream=io.BytesIO(body),
        content_type=JSON,
        headers=account.headers,
        environ_overrides={"wsgi.input_terminated": True, "CONTENT_LENGTH": ""},
    )


def test_chunked_body_is_read_like_any_other(account: Account) -> None:
    assert chunked(account, b'{"title": "chunked"}').get_json()["chatroom"]["title"] == "chunked"
    assert chunked(account, b"{}" + b" " * (65_536 - 2)).status_code == 201


@pytest.mark.parametrize("body", [b"{}" + b" " * 65_535, b"x" * 70_000, b'{"title": "' + b"x" * 10_000_000 + b'"}'])
def test_chunked_body_is_refused_when_it_is_too_large(account: Account, body: bytes) -> None:
    assert_refused(chunked(account, body), 413, "payload_too_large")
