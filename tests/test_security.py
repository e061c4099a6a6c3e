"""The edge: headers, pages of other origins, names we are called by, proxies in front of us, what the webhook takes."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from chatapi.headers import SECURITY_HEADERS
from chatapi.security import init_security, is_host_trusted
from tests.support import Account

HELMET = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Origin-Agent-Cluster": "?1",
    "Referrer-Policy": "no-referrer",
    "Strict-Transport-Security": "max-age=31536000; includeSubDomains",
    "X-Content-Type-Options": "nosniff",
    "X-DNS-Prefetch-Control": "off",
    "X-Download-Options": "noopen",
    "X-Frame-Options": "DENY",
    "X-Permitted-Cross-Domain-Policies": "none",
    "X-XSS-Protection": "0",
}
STRICT = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
LISTED = "https://chat.example.com"
ALLOWED = {"authorization", "content-type", "idempotency-key", "last-event-id", "prefer", "x-request-id"}
EXPOSED = {
    "location", "retry-after", "x-request-id", "x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset",
    "idempotent-replayed", "preference-applied", "www-authenticate",
}  # fmt: skip


def words_of(answer: TestResponse, header: str) -> set[str]:
    return {word.strip().lower() for word in answer.headers.get(header, "").split(",")}


def assert_guarded(answer: TestResponse, policy: str = STRICT) -> None:
    assert {name: answer.headers.getlist(name) for name in HELMET} == {name: [text] for name, text in HELMET.items()}
    assert answer.headers.getlist("Content-Security-Policy") == [policy]


def is_let_in(answer: TestResponse, origin: str = LISTED) -> bool:
    """Return whether a page of `origin` may read the answer, and hold that nothing of CORS is there if it may not."""
    if answer.headers.getlist("Access-Control-Allow-Origin") == [origin]:
        assert words_of(answer, "Access-Control-Expose-Headers") == EXPOSED
        return True
    assert not [name for name, _ in answer.headers if name.startswith("Access-Control")]
    return False


def fail(**_arguments: Any) -> None:
    raise RuntimeError("a secret of the inside")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200), ("GET", "/health", 200), ("GET", "/health/live", 200), ("GET", "/openapi.json", 200),
        ("GET", "/nowhere", 404), ("GET", "/user/me", 401), ("DELETE", "/auth/send-otp", 405), ("OPTIONS", "/", 200),
        ("GET", "/?x=1", 422), ("POST", "/webhook/stripe", 400), ("GET", "/static/docs.js", 200),
        ("GET", "/metrics", 404),
        ("HEAD", "/health", 200), ("TRACE", "/health", 405),
    ],
)  # fmt: skip
def test_every_answer_has_the_headers_of_helmet(client: FlaskClient, method: str, path: str, status: int) -> None:
    answer = client.open(path, method=method)

    assert answer.status_code == status
    assert_guarded(answer)


def test_errors_of_ours_have_the_headers_too(make_app: Callable[..., Flask], monkeypatch: pytest.MonkeyPatch) -> None:
    app = make_app(RATE_LIMIT_MAX_REQUESTS="2")
    monkeypatch.setitem(app.view_functions, "service.health", fail)

    answers = [app.test_client().get("/health") for _ in range(3)]

    assert [answer.status_code for answer in answers] == [500, 500, 429]
    for answer in answers:
        assert_guarded(answer)


def test_docs_run_our_own_files_and_nothing_within_the_page(client: FlaskClient) -> None:
    answer = client.get("/docs")

    policy = answer.headers["Content-Security-Policy"]
    assert_guarded(answer, policy)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["frame-ancestors"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert rules["img-src"] == "'self' data:"
    assert "unsafe" not in policy
    page = answer.get_data(as_text=True)
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bon[a-z]+=|\bstyle=", page)


def test_answers_are_not_kept_but_files_that_are_the_same_for_all(client: FlaskClient, account: Account) -> None:
    room = account.open_room(title="kept")
    for path in ("/user/me", "/chatroom", f"/chatroom/{room}", "/user/me/export", "/nowhere", "/"):
        assert "no-store" in words_of(account.call("GET", path), "Cache-Control")
    number = {"mobile_number": account.mobile_number}
    assert "no-store" in words_of(client.post("/auth/login", json={**number, "password": "wrong"}), "Cache-Control")
    assert "no-store" not in words_of(client.get("/docs/assets/swagger-ui.css"), "Cache-Control")


def test_stream_has_the_headers_and_may_be_followed_from_a_listed_origin(
    cors_client: FlaskClient, sign_in: Callable[..., Account]
) -> None:
    account = sign_in(via=cors_client)
    room = account.open_room(title="streamed")
    reply = account.prompt(room, "hello")
    assert account.call("POST", f"/chatroom/{room}/message/{reply}/stop").status_code == 200

    answer = cors_client.get(f"/chatroom/{room}/message/{reply}/stream", headers={**account.headers, "Origin": LISTED})

    assert answer.mimetype == "text/event-stream"
    assert_guarded(answer)
    assert is_let_in(answer)
    assert words_of(answer, "Cache-Control") == {"no-store", "no-cache", "no-transform"}


@pytest.fixture(scope="module")
def cors_app(make_app: Callable[..., Flask]) -> Flask:
    return make_app(CORS_ORIGINS=f"{LISTED}, http://localhost:3000, http://[::1]:3000")


@pytest.fixture
def cors_client(cors_app: Flask) -> FlaskClient:
    return cors_app.test_client()


@pytest.mark.parametrize("origin", [LISTED, "http://localhost:3000", "http://[::1]:3000"])
def test_listed_origin_may_read_every_answer(
    cors_client: FlaskClient, account: Account, monkeypatch: pytest.MonkeyPatch, cors_app: Flask, origin: str
) -> None:
    monkeypatch.setitem(cors_app.view_functions, "service.health", fail)
    json = {"Content-Type": "application/json", "Origin": origin, **account.headers}
    answers = [
        cors_client.get("/user/me", headers=json),
        cors_client.get("/user/me", headers={"Origin": origin}),
        cors_client.get("/nowhere", headers=json),
        cors_client.delete("/auth/send-otp", headers=json),
        cors_client.post("/chatroom", data="x" * 70_000, headers=json),
        cors_client.post("/chatroom", data='{"titel": 1}', headers=json),
        cors_client.get("/health", headers=json),
    ]

    assert [answer.status_code for answer in answers] == [200, 401, 404, 405, 413, 422, 500]
    for answer in answers:
        assert is_let_in(answer, origin)
        assert "Access-Control-Allow-Credentials" not in answer.headers
        assert "origin" in words_of(answer, "Vary")


def test_listed_origin_may_read_refusals_when_it_asks_too_much_or_postgresql_is_away(
    make_app: Callable[..., Flask],
) -> None:
    app = make_app(CORS_ORIGINS=LISTED, RATE_LIMIT_MAX_REQUESTS="1", DATABASE_URL="postgresql://u@127.0.0.1:1/d")
    client, number = app.test_client(), {"mobile_number": "15551234567"}

    answers = [client.post("/auth/send-otp", json=number, headers={"Origin": LISTED}) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [503, 429]
    assert all(is_let_in(answer) and "Retry-After" in answer.headers for answer in answers)


@pytest.mark.parametrize(
    "origin",
    [
        "null", "", "https://chat.example.com.evil.io", "https://evilchat.example.com", "https://chat-example.com",
        "https://chatXexample.com", "http://chat.example.com", "https://chat.example.com:8443", "https://a.chat.example.com",
        "https://CHAT.example.com", "HTTPS://chat.example.com", "https://chat.example.com/", "https://chat.example.com\t",
        "https://chat.example.com@evil.io", "https://chat.example.com,https://evil.io", "*", "http://1:3000",
        "chat.example.com",
        "https://chat.example.com https://evil.io", "http://localhost:30000", "http://localhost",
    ],
)  # fmt: skip
def test_other_origin_is_told_nothing(cors_client: FlaskClient, origin: str) -> None:
    asked = {"Origin": origin, "Access-Control-Request-Method": "GET"}
    answers = [cors_client.get("/health", headers={"Origin": origin}), cors_client.options("/health", headers=asked)]

    assert [answer.status_code for answer in answers] == [200, 200]
    for answer in answers:
        assert not is_let_in(answer, origin)
        assert "origin" in words_of(answer, "Vary")


@pytest.mark.parametrize("path", ["/chatroom", "/user/me", "/auth/login", "/nowhere"])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
def test_preflight_is_answered_to_a_listed_origin(cors_client: FlaskClient, path: str, method: str) -> None:
    wanted = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": ",".join(sorted(ALLOWED))}

    answer = cors_client.options(path, headers={"Origin": LISTED, **wanted})

    assert answer.status_code == 204
    assert is_let_in(answer)
    assert method.lower() in words_of(answer, "Access-Control-Allow-Methods")
    assert words_of(answer, "Access-Control-Allow-Headers") == ALLOWED
    assert 600 <= int(answer.headers["Access-Control-Max-Age"]) <= 7200
    assert_guarded(answer)


def test_preflight_allows_no_header_but_those_of_the_contract(cors_client: FlaskClient) -> None:
    asked = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "x-evil, prefer, cookie"}

    answer = cors_client.options("/chatroom", headers={"Origin": LISTED, **asked})

    assert words_of(answer, "Access-Control-Allow-Headers") == {"prefer"}


def test_preflight_costs_nothing_of_the_budget(make_app: Callable[..., Flask]) -> None:
    client = make_app(CORS_ORIGINS=LISTED, RATE_LIMIT_MAX_REQUESTS="3").test_client()
    preflight = {"Origin": LISTED, "Access-Control-Request-Method": "POST"}

    assert {client.options("/chatroom", headers=preflight).status_code for _ in range(10)} == {204}
    # Neither these nor those of other origins are a browser's question on behalf of a page of ours.
    assert client.options("/chatroom", headers={"Origin": LISTED}).headers["X-RateLimit-Remaining"] == "2"
    assert client.options("/chatroom", headers={**preflight, "Origin": "null"}).headers["X-RateLimit-Remaining"] == "1"
    assert client.options("/chatroom").headers["X-RateLimit-Remaining"] == "0"
    assert client.options("/chatroom").status_code == 429
    assert client.options("/chatroom", headers=preflight).status_code == 204


@pytest.mark.parametrize("path", ["/webhook/stripe", "/metrics"])
def test_what_no_page_calls_is_closed_to_listed_origins_too(cors_client: FlaskClient, path: str) -> None:
    preflight = {"Origin": LISTED, "Access-Control-Request-Method": "POST"}

    assert not is_let_in(cors_client.get(path, headers={"Origin": LISTED}))
    assert not is_let_in(cors_client.options(path, headers=preflight))


def test_no_page_is_let_in_when_no_origins_are_listed(client: FlaskClient) -> None:
    preflight = {"Origin": LISTED, "Access-Control-Request-Method": "GET"}

    assert not is_let_in(client.get("/health", headers={"Origin": LISTED}))
    assert not is_let_in(client.options("/health", headers=preflight))


def test_every_page_is_let_in_when_development_says_so(make_app: Callable[..., Flask]) -> None:
    client = make_app(CORS_ORIGINS="*").test_client()
    preflight = {"Origin": "null", "Access-Control-Request-Method": "GET"}

    assert is_let_in(client.get("/health", headers={"Origin": "http://anywhere:1"}), "*")
    assert is_let_in(client.options("/user/me", headers=preflight), "*")


@pytest.fixture(scope="module")
def named_app(make_app: Callable[..., Flask]) -> Flask:
    return make_app(TRUSTED_HOSTS="api.example.com, .wild.example.com, [::1], web_1")


def call_as(app: Flask, host: str | None, path: str = "/", **environ: str) -> TestResponse:
    """Call the application by a name; None is for a request that gives none."""
    overrides: dict[str, Any] = {**environ, "HTTP_HOST": host}
    return app.test_client().get(path, environ_overrides=overrides)


@pytest.mark.parametrize(
    "host",
    [
        "api.example.com", "API.Example.com", "api.example.com:8443", "wild.example.com", "a.b.wild.example.com",
        "[::1]", "[::1]:5000", "web_1:80",
    ],
)  # fmt: skip
def test_request_is_answered_when_the_name_is_ours(named_app: Flask, host: str) -> None:
    assert call_as(named_app, host).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.io", "", None, "api.example.com.evil.io", "evil.api.example.com", "notwild.example.com",
        "api.example.com.",
        "user@api.example.com", "api.example.com@evil.io", "api.example.com, evil.io", "api.example.com/", "[::2]",
        "::1",
        "api.example.com:port", "api.example.com:123456", "api.example.com\x00", "127.0.0.1", ".wild.example.com.evil",
        "api.example.com evil.io", "apiXexample.com", "аpi.example.com".encode().decode("latin-1"), ":80", "[::1",
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/", "/nowhere", "/webhook/stripe", "/health"])
def test_request_is_refused_when_the_name_is_strange(named_app: Flask, host: str | None, path: str) -> None:
    answer = call_as(named_app, host, path)

    body = answer.get_json()
    assert (answer.status_code, body["code"], body["error"]) == (400, 400, "unknown_host")
    assert re.fullmatch(r"[0-9a-f-]{36}", answer.headers["X-Request-ID"])
    assert "X-RateLimit-Limit" not in answer.headers
    assert_guarded(answer)


@pytest.mark.parametrize(
    ("target", "host", "status"),
    [
        ("http://api.example.com/", "api.example.com", 200),
        ("http://evil.io/", "api.example.com", 400),
        ("http://api.example.com/", "evil.io", 400),
        ("http://api.example.com@evil.io/", "api.example.com", 400),
        ("evil.io:443", "api.example.com", 400),
        ("http://[::1/", "api.example.com", 400),
        ("//evil.io/", "api.example.com", 200),
        ("/?next=http://evil.io/", "api.example.com", 200),
    ],
)
def test_request_is_refused_when_its_target_names_another_host(
    named_app: Flask, target: str, host: str, status: int
) -> None:
    assert call_as(named_app, host, RAW_URI=target).status_code == status


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/metrics"])
def test_probes_are_answered_by_any_name(make_app: Callable[..., Flask], path: str) -> None:
    app = make_app(TRUSTED_HOSTS="api.example.com", METRICS_TOKEN="scrapes-only-5d0e8a41")

    assert call_as(app, "10.0.0.7:5000", path).status_code == (401 if path == "/metrics" else 200)


def test_every_name_will_do_when_none_is_known(app: Flask) -> None:
    assert call_as(app, "evil.io").status_code == 200
    assert call_as(app, None).status_code == 200


@pytest.mark.parametrize(
    ("environment", "names", "count"), [("production", (), 1), ("production", ("a.io",), 0), ("development", (), 0)]
)
def test_operator_is_warned_once_when_production_knows_no_names(
    caplog: pytest.LogCaptureFixture, environment: str, names: tuple[str, ...], count: int
) -> None:
    bare = Flask("bare")
    bare.config.update(APP_ENV=environment, HOST_NAMES=names, TRUSTED_PROXIES=0, CORS_ORIGINS=())

    init_security(bare)

    found = [each for each in caplog.records if "trusted_hosts_unset" in each.getMessage()]
    assert [each.levelno for each in found] == [logging.WARNING] * count


def test_host_of_a_proxy_counts_only_when_one_is_trusted(make_app: Callable[..., Flask]) -> None:
    alone = make_app(TRUSTED_HOSTS="api.example.com")
    behind = make_app(TRUSTED_HOSTS="api.example.com", TRUSTED_PROXIES="1")

    assert call_as(alone, "evil.io", HTTP_X_FORWARDED_HOST="api.example.com").status_code == 400
    assert call_as(alone, "api.example.com", HTTP_X_FORWARDED_HOST="evil.io").status_code == 200
    assert call_as(behind, "internal:8080", HTTP_X_FORWARDED_HOST="api.example.com").status_code == 200
    assert call_as(behind, "api.example.com", HTTP_X_FORWARDED_HOST="api.example.com, evil.io").status_code == 400
    assert call_as(behind, "api.example.com", HTTP_X_FORWARDED_PREFIX="/x").status_code == 200


@pytest.mark.parametrize("word", ["https", "javascript", "wss", "http, https", "\x01", '"', ",", "x" * 5000])
def test_odd_words_of_a_proxy_are_no_error_of_ours(make_app: Callable[..., Flask], word: str) -> None:
    app = make_app(TRUSTED_PROXIES="1")

    told = {"HTTP_X_FORWARDED_PROTO": word, "HTTP_X_FORWARDED_HOST": word, "HTTP_X_FORWARDED_FOR": word}
    assert call_as(app, "localhost", "/openapi.json", **told).status_code in (200, 400)


@pytest.mark.parametrize("given", ["example.com", "EXAMPLE.COM:80"])
def test_host_is_compared_without_its_port_and_case(given: str) -> None:
    assert is_host_trusted(given, ["example.com"])
    assert not is_host_trusted(given, ["ample.com", ".com.example", "example.co"])


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "application/json; charset=utf-8"}, 400),
        ({}, 400),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, 415),
    ],
)
def test_webhook_takes_what_stripe_sends_and_no_other_type(
    client: FlaskClient, headers: dict[str, str], status: int
) -> None:
    answer = client.post("/webhook/stripe", data=b"{}", headers={"Stripe-Signature": "t=1,v1=0", **headers})

    assert (answer.status_code, answer.get_json()["code"]) == (status, status)


def test_webhook_refuses_query_arguments_before_anything_is_read(client: FlaskClient) -> None:
    answer = client.post("/webhook/stripe?x=1", data=b"{}", content_type="application/json")

    assert (answer.status_code, list(answer.get_json()["errors"])) == (422, ["x"])


def test_headers_are_those_that_helmet_sets_today() -> None:
    assert SECURITY_HEADERS.keys() == HELMET.keys() | {"Content-Security-Policy"}
