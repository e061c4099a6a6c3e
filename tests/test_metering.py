"""Requests, calls of models and what they use, as `GET /metrics` counts them."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from redis.exceptions import AskError
from sqlalchemy import text

from chatapi import metrics
from chatapi.admission import Permit
from chatapi.auth.limits import count_failure
from chatapi.breaker import CircuitOpenError, RedisBreaker
from chatapi.dev.embedded import free_port
from chatapi.extensions import db, in_transaction
from chatapi.observability import API_VERSION
from chatapi.replies.gemini.base import GeminiCancelled, GeminiError, GeminiRejected, GeminiRetryable
from chatapi.replies.metered import metered_call
from chatapi.replies.sweeper import beat
from tests.support import Account, Services
from tests.test_metrics import TOKEN, read, scrape

ROUTE = "/chatroom/<chatroom_id>/message/<message_id>"


@pytest.fixture(scope="module")
def metered_app(make_app: Callable[..., Flask]) -> Flask:
    return make_app(METRICS_TOKEN=TOKEN, RATE_LIMIT_MAX_REQUESTS="40", AUTH_IP_LIMIT="3")


@pytest.fixture
def metered(metered_app: Flask) -> FlaskClient:
    return metered_app.test_client()


class Rise:
    """What rose since this was made; a series that is not there is at 0."""

    def __init__(self, client: FlaskClient) -> None:
        self._client = client
        self._before = self._found()

    def _found(self) -> Callable[..., float]:
        found = read(self._client)

        def value(name: str, **labels: str) -> float:
            try:
                return found(name, **labels)
            except KeyError:
                return 0.0

        return value

    def __call__(self, name: str, **labels: str) -> float:
        return self._found()(name, **labels) - self._before(name, **labels)


def test_requests_are_counted_and_timed_by_their_route_and_never_by_their_path(
    metered: FlaskClient, account: Account
) -> None:
    rise = Rise(metered)
    room_id = account.open_room()
    missing = f"/chatroom/{room_id}/message/{room_id}"

    for path in (missing, missing, f"/{room_id}/no-such-thing"):
        assert metered.get(path, headers=account.headers).status_code == HTTPStatus.NOT_FOUND

    assert rise("chatapi_http_requests_total", method="GET", route=ROUTE, status="404") == 2
    assert rise("chatapi_http_requests_total", method="GET", route="none", status="404") == 1
    assert rise("chatapi_http_request_seconds_count", method="GET", route=ROUTE) == 2
    assert rise("chatapi_http_request_seconds_bucket", method="GET", route=ROUTE, le="10.0") == 2
    assert rise("chatapi_http_errors_total", error="not_found") == 3
    assert room_id not in scrape(metered).get_data(as_text=True)


def test_method_that_nobody_knows_makes_no_series_of_its_own(metered: FlaskClient) -> None:
    rise = Rise(metered)

    metered.open("/health", method="BREW")

    assert rise("chatapi_http_requests_total", method="other", route="none", status="405") == 1
    assert "BREW" not in scrape(metered).get_data(as_text=True)


def test_request_that_asks_to_wait_is_counted_and_not_timed(metered: FlaskClient) -> None:
    rise = Rise(metered)

    metered.get("/health", headers={"Prefer": "wait=10"})
    metered.get("/health")

    assert rise("chatapi_http_requests_total", method="GET", route="/health", status="200") == 2
    assert rise("chatapi_http_request_seconds_count", method="GET", route="/health") == 1


def test_refusals_are_told_apart_by_the_limit_that_they_are_from(make_app: Callable[..., Flask]) -> None:
    client = make_app(METRICS_TOKEN=TOKEN, RATE_LIMIT_MAX_REQUESTS="4", AUTH_IP_LIMIT="2").test_client()
    client.environ_base["REMOTE_ADDR"] = "198.51.100.77"
    rise = Rise(client)

    wrong = {"mobile_number": "+15550001111", "password": "not the password"}
    statuses = [client.post("/auth/login", json=wrong).status_code for _ in range(6)]

    assert statuses == [401, 401, 429, 429, 429, 429]
    assert rise("chatapi_http_errors_total", error="invalid_credentials") == 2
    assert rise("chatapi_http_errors_total", error="sign_in_rate_limited") == 2
    assert rise("chatapi_http_errors_total", error="rate_limited") == 2


def test_refused_webhooks_are_counted(metered: FlaskClient) -> None:
    rise = Rise(metered)

    metered.post("/webhook/stripe", json={}, headers={"Stripe-Signature": "t=1,v1=00"})

    assert rise("chatapi_http_errors_total", error="invalid_signature") == 1


def test_request_is_timed_from_its_arrival_the_wait_for_a_place_included(
    make_app: Callable[..., Flask],
) -> None:
    app = make_app(METRICS_TOKEN=TOKEN, WEB_THREADS="1")
    client, rise = app.test_client(), Rise(app.test_client())
    places = threading.Semaphore(0)

    def release() -> None:
        while rise("chatapi_requests_waiting") != 1:
            time.sleep(0.02)
        time.sleep(0.3)
        places.release()

    waker = threading.Thread(target=release)
    waker.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Permit, "__init__", lambda permit, _: permit.__dict__.update(_places=places, _is_held=False))
        client.get("/health")
    waker.join()

    assert rise("chatapi_http_request_seconds_count", method="GET", route="/health") == 1
    assert rise("chatapi_http_request_seconds_bucket", method="GET", route="/health", le="0.25") == 0
    assert rise("chatapi_requests_waiting") == rise("chatapi_requests_running") == 0


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "answered"),
        (GeminiCancelled("stopped"), "cancelled"),
        (GeminiRetryable("429"), "unavailable"),
        (GeminiRetryable("slow", timed_out=True), "timed_out"),
        (GeminiRejected("no", reason="safety_blocked"), "safety_blocked"),
        (ZeroDivisionError(), "broken"),
    ],
)
def test_calls_of_models_are_counted_by_how_they_end(
    metered: FlaskClient, error: GeminiError | None, outcome: str
) -> None:
    rise = Rise(metered)

    def call() -> None:
        with metered_call("flash"):
            if error is not None:
                raise error

    if error is None:
        call()
    else:
        with pytest.raises(type(error)):
            call()

    assert rise("chatapi_model_calls_total", model="flash", outcome=outcome) == 1
    assert rise("chatapi_model_call_seconds_count", model="flash") == 1


def test_redis_that_fails_is_counted_once_until_it_is_asked_again(metered: FlaskClient) -> None:
    rise, breaker = Rise(metered), RedisBreaker("cache")

    def fail() -> None:
        raise OSError

    for _ in range(3):
        with pytest.raises(CircuitOpenError):
            breaker.call(fail, "here")

    assert rise("chatapi_redis_failures_total", use="cache") == 1


def test_redis_that_goes_on_refusing_one_slot_is_counted_again_after_a_while(metered: FlaskClient) -> None:
    rise, breaker = Rise(metered), RedisBreaker("cache", rest_seconds=0.4)

    def fail() -> None:
        raise AskError("1 here:1")

    ends_at = time.monotonic() + 1.0
    while time.monotonic() < ends_at:
        with pytest.raises(CircuitOpenError) as caught:
            breaker.call(fail, "a slot")
        assert isinstance(caught.value.__cause__, AskError)  # It was tried each time.
        time.sleep(0.02)

    assert 2 <= rise("chatapi_redis_failures_total", use="cache") <= 3


def test_connections_are_counted_while_they_are_in_use(metered_app: Flask, metered: FlaskClient) -> None:
    metrics.started("web")
    rise = Rise(metered)

    with metered_app.app_context(), db.engine.connect(), db.engine.connect():
        assert rise("chatapi_database_connections") == 2

    assert rise("chatapi_database_connections") == 0


def test_sign_in_and_sweepers_are_shown_as_postgresql_has_them(metered_app: Flask, metered: FlaskClient) -> None:
    with metered_app.app_context():
        db.session.execute(text("DELETE FROM otp_outbox"))
        db.session.execute(text("DELETE FROM auth_failures"))
        db.session.execute(text("DELETE FROM auth_limits WHERE name = 'sweeps'"))
        db.session.execute(
            text(
                "INSERT INTO otp_outbox (id, payload, created_at, expires_at) VALUES "
                "(gen_random_uuid(), '', now() - interval '70 s', now() + interval '1 hour'), "
                "(gen_random_uuid(), '', now() - interval '400 s', now() - interval '100 s')"
            )
        )
        db.session.execute(
            text("INSERT INTO auth_failures (began_at, failures) VALUES (now() - interval '11 minutes', 50)")
        )
        db.session.commit()
        for _ in range(2):
            in_transaction(count_failure)
    before = read(metered)
    with metered_app.app_context():
        in_transaction(beat)
        in_transaction(beat)
        db.session.execute(text("UPDATE auth_limits SET hits = ARRAY[now() - interval '45 s'] WHERE name = 'sweeps'"))
        db.session.commit()
    found = read(metered)

    assert found("chatapi_codes_undelivered") == 1
    assert 70 <= found("chatapi_codes_undelivered_seconds") < 100
    assert found("chatapi_sign_in_failures") == 2
    assert found("chatapi_sign_in_failures_limit") == metered_app.config["OTP_GLOBAL_FAILURES"]
    with pytest.raises(KeyError):
        before("chatapi_sweep_age_seconds")
    assert 45 <= found("chatapi_sweep_age_seconds") < 75
    with metered_app.app_context():
        db.session.execute(text("DELETE FROM otp_outbox"))
        db.session.commit()


def test_replies_that_sweepers_leave_alone_are_shown_and_those_that_wait_their_turn_are_not(
    metered_app: Flask, metered: FlaskClient, account: Account
) -> None:
    with metered_app.app_context():
        db.session.execute(text("DELETE FROM reply_jobs"))
        db.session.commit()
    room_id = account.open_room()
    first, second = account.prompt(room_id, "one"), account.prompt(room_id, "two")

    def overdue(reply_id: str, seconds: int) -> None:
        with metered_app.app_context():
            statement = "UPDATE reply_jobs SET ring_at = now() - make_interval(secs => :seconds) WHERE message_id = :id"
            db.session.execute(text(statement), {"seconds": seconds, "id": reply_id})
            db.session.commit()

    overdue(second, 500)
    assert read(metered)("chatapi_sweep_overdue_seconds") == 0
    overdue(first, 70)
    assert 70 <= read(metered)("chatapi_sweep_overdue_seconds") < 100


def test_scrape_says_which_redis_is_away(make_app: Callable[..., Flask]) -> None:
    nowhere = f"redis://127.0.0.1:{free_port()}"
    found = read(make_app(METRICS_TOKEN=TOKEN, CACHE_REDIS_URL=nowhere).test_client())

    assert [found("chatapi_redis_up", use=use) for use in ("queue", "cache", "limits")] == [1, 0, 1]
    assert found("chatapi_build_info", version=API_VERSION) == 1


def test_scrape_answers_within_its_time_when_redis_hangs(metered: FlaskClient, services: Services) -> None:
    pid = services.valkey_process.pid or 0
    os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        found = read(metered)
        seconds = time.monotonic() - began
    finally:
        os.kill(pid, signal.SIGCONT)

    assert found("chatapi_redis_up", use="queue") == 0
    assert found("chatapi_database_up") == 1
    assert seconds < 3


def test_scrape_is_never_kept_nor_read_by_other_web_sites(make_app: Callable[..., Flask]) -> None:
    client = make_app(METRICS_TOKEN=TOKEN, CORS_ORIGINS="https://chat.example").test_client()
    headers: dict[str, Any] = {"Authorization": f"Bearer {TOKEN}", "Origin": "https://chat.example"}

    answer = client.get("/metrics", headers=headers)

    assert answer.status_code == HTTPStatus.OK
    assert answer.headers["Cache-Control"] == "no-store"
    assert "Access-Control-Allow-Origin" not in answer.headers
