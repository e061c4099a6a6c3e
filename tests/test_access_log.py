"""The line that each request leaves, and what `LOG_LEVEL=debug` shows of PostgreSQL and Redis."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
import structlog
from flask import Flask, Response
from flask.testing import FlaskClient
from redis.client import Pipeline
from sqlalchemy import event, text

from chatapi import access_log, debug_logs
from chatapi.extensions import db, run_alone
from tests.support import Account, Services

Lines = Callable[[str], list[dict[str, Any]]]


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Lines:
    """Return what has been logged of an event by us."""
    caplog.set_level(logging.DEBUG)

    def lines(name: str) -> list[dict[str, Any]]:
        said = [record.msg for record in caplog.records if isinstance(record.msg, dict)]
        return [each for each in said if each["event"] == name]

    return lines


def test_request_is_logged_with_its_user_route_status_and_time(account: Account, lines: Lines) -> None:
    room_id = account.open_room()
    answer = account.call("GET", f"/chatroom/{room_id}?limit=3")

    line = lines("request")[-1]
    assert line["milliseconds"] > 0
    assert {name: line[name] for name in ("level", "method", "route", "status", "user_id", "request_id")} == {
        "level": "info",
        "method": "GET",
        "route": "/chatroom/<chatroom_id>",
        "status": 200,
        "user_id": account.id,
        "request_id": answer.headers["X-Request-ID"],
    }
    assert room_id not in json.dumps(line)


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer nonsense"}])
def test_request_of_a_stranger_is_logged_without_user_and_address(
    client: FlaskClient, lines: Lines, headers: dict[str, str]
) -> None:
    client.get("/user/me", headers=headers)

    line = lines("request")[-1]
    assert (line["status"], line["user_id"]) == (401, None)
    assert "127.0.0.1" not in json.dumps(line)


def test_path_that_leads_nowhere_is_not_logged(client: FlaskClient, lines: Lines) -> None:
    client.get("/secret-of-mine?and=more")

    line = lines("request")[-1]
    assert (line["route"], line["status"]) == (None, 404)
    assert "secret" not in json.dumps(line)


@pytest.mark.parametrize(
    ("path", "level"),
    [("/health/live", "debug"), ("/health/ready", "debug"), ("/health", "info"), ("/metrics", "info")],
)
def test_probe_is_logged_at_debug_only_when_it_went_well(
    client: FlaskClient, lines: Lines, path: str, level: str
) -> None:
    client.get(path)  # /metrics is 404 here, as it has no token.

    assert [line["level"] for line in lines("request")] == [level]


def test_end_of_a_stream_is_logged_with_its_whole_time(lines: Lines) -> None:
    app = Flask(__name__)
    app.before_request(access_log.begin_request)
    app.after_request(access_log.end_request)
    app.add_url_rule("/stream", view_func=lambda: Response(iter("ab"), mimetype="text/plain"))

    with app.test_client().get("/stream", headers={"X-Request-ID": "mine"}) as answer:
        assert lines("stream_ended") == []
        assert answer.text == "ab"

    (begun,), (ended,) = lines("request"), lines("stream_ended")
    assert (ended["route"], ended["request_id"]) == ("/stream", "mine")
    assert ended["milliseconds"] >= begun["milliseconds"]


def test_plain_answer_has_no_end_of_its_own(client: FlaskClient, lines: Lines) -> None:
    client.get("/docs/assets/swagger-ui.css")
    client.get("/health")

    assert lines("stream_ended") == []


def test_thread_has_nothing_of_a_request_when_it_is_over(client: FlaskClient) -> None:
    client.get("/health", headers={"X-Request-ID": "mine"})

    assert structlog.contextvars.get_contextvars() == {}


@pytest.fixture
def debug_app(make_app: Callable[..., Flask]) -> Iterator[Flask]:
    """An application at debug; Redis' clients are left as they were."""
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((redis.Redis, "execute_command"), (Pipeline, "execute")):
            patch.setattr(owner, name, getattr(owner, name))
        yield make_app(LOG_LEVEL="debug")


def test_statements_are_shown_at_debug_without_their_values(debug_app: Flask, lines: Lines) -> None:
    debug_app.test_client().post("/auth/login", json={"mobile_number": "+15550001111", "password": "grandmother"})

    shown = lines("sql")
    (request,) = lines("request")
    assert {each["request_id"] for each in shown} == {request["request_id"]}
    statements = [each for each in shown if "milliseconds" in each]
    assert any("FROM users" in each["statement"] for each in statements)
    assert all(each["milliseconds"] >= 0 for each in statements)
    assert not any(secret in json.dumps(shown) for secret in ("15550001111", "grandmother", "\n"))


def test_statements_that_go_past_sessions_are_shown_at_debug_without_their_values(
    debug_app: Flask, lines: Lines
) -> None:
    with debug_app.app_context():
        run_alone("SELECT %(secret)s::text", {"secret": "grandmother"})
        with pytest.raises(Exception, match="division by zero"):
            run_alone("SELECT 1 / %(zero)s::int", {"zero": "0"})

    well, failed = lines("sql")
    assert (well["statement"], failed["statement"]) == ("SELECT %(secret)s::text", "SELECT 1 / %(zero)s::int")
    assert well["milliseconds"] >= 0
    assert (failed["sqlstate"], failed["reason"]) == ("22012", "DivisionByZero")
    assert "grandmother" not in json.dumps([well, failed])


def test_statement_that_failed_is_shown_at_debug_without_its_values(debug_app: Flask, lines: Lines) -> None:
    with debug_app.app_context(), pytest.raises(Exception, match="division by zero"):
        db.session.execute(text("SELECT 1 / CAST(:zero AS int)"), {"zero": "0"})

    (shown,) = [each for each in lines("sql") if "reason" in each]
    assert (shown["sqlstate"], shown["reason"]) == ("22012", "DivisionByZero")
    assert shown["milliseconds"] >= 0


def test_redis_commands_are_shown_at_debug_by_name_and_key(debug_app: Flask, lines: Lines, services: Services) -> None:
    client = redis.Redis.from_url(services.valkey.url)
    client.set("a-key", "grandmother")
    client.pipeline().xadd("a-stream", {"text": "grandmother"}).expire("a-stream", 9).execute()
    with pytest.raises(redis.AuthenticationError):
        client.execute_command("HELLO", 3, "AUTH", "someone", "grandmother")
    client.close()

    shown = lines("redis")
    assert [each["command"] for each in shown] == ["SET a-key", ["XADD a-stream", "EXPIRE a-stream"], "HELLO"]
    assert [each["reason"] for each in shown] == [None, None, "AuthenticationError"]
    assert "grandmother" not in json.dumps(shown)


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (("EVALSHA", "abc", 2, "one", b"two", "value"), "EVALSHA one two"),
        (("GET", "chatapi:limits:LIMITER/ip:203.0.113.9/global"), "GET chatapi:limits:LIMITER/ip:<address>/global"),
        (("INCRBY", b"LIMITER/ip:2001:db8:1::/64/global", 1), "INCRBY LIMITER/ip:<address>/global"),
        (("BLPOP", ["bell", "other"], 2), "BLPOP bell other"),
        (("AUTH", "hunter-22"), "AUTH"),
        (("CONFIG SET", "requirepass", "hunter-22"), "CONFIG SET"),
        ((), ""),
    ],
)
def test_redis_command_is_shown_with_keys_and_nothing_else(arguments: tuple[Any, ...], shown: str) -> None:
    assert debug_logs._command(arguments) == shown


def test_nothing_is_watched_at_other_levels(app: Flask) -> None:
    with app.app_context():
        assert not event.contains(db.engine, "before_cursor_execute", debug_logs._begin_statement)
    assert "watched_cursor" not in app.extensions
    assert not hasattr(redis.Redis.execute_command, "is_watched")
    assert not hasattr(Pipeline.execute, "is_watched")
