"""How long is waited for PostgreSQL: a server that stands still is given up, one that works is not."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg2
import psycopg2.errors
import pytest
from flask import Flask
from psycopg2.extras import RealDictCursor
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, OperationalError

from chatapi import database_waits, extensions
from chatapi.database_waits import BoundedConnection, ConnectRest, DatabaseSilentError, patient_statements
from chatapi.dev.embedded import EmbeddedPostgres, free_port
from chatapi.extensions import db, run_alone
from tests.support import Account, Services

pytestmark = pytest.mark.usefixtures("app")


@pytest.fixture(scope="module")
def url_by_tcp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL that listens as one on another machine does."""
    folder: Path = tmp_path_factory.mktemp("tcp")
    postgres, port = EmbeddedPostgres(folder / "postgres"), free_port()
    postgres.prepare()
    child = postgres.child(log=folder / "log")
    child.argv += ["-c", "listen_addresses=127.0.0.1", "-p", str(port), "-c", "fsync=off"]
    child.start()
    url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
    deadline = time.monotonic() + 20
    while True:
        try:
            psycopg2.connect(url).close()
            break
        except psycopg2.OperationalError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    yield url
    child.kill()


def connect(url: str, patience_seconds: float = 0.5) -> BoundedConnection:
    connection = psycopg2.connect(url, connection_factory=BoundedConnection)
    assert isinstance(connection, BoundedConnection)
    connection.patience_seconds = patience_seconds
    return connection


@contextmanager
def standing_still(connection: BoundedConnection) -> Iterator[None]:
    """Have the process that serves a connection stand still within the block."""
    backend = connection.info.backend_pid
    os.kill(backend, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(backend, signal.SIGCONT)


def run(connection: BoundedConnection, statement: str = "SELECT 1") -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)


def read_on(connection: BoundedConnection) -> None:
    """Read through a cursor that lives at the server."""
    with connection.cursor("many") as cursor:
        cursor.execute("SELECT generate_series(1, 10)")
        cursor.fetchall()


@pytest.mark.parametrize("work", [run, read_on, BoundedConnection.commit])
@pytest.mark.parametrize("way", ["socket", pytest.param("tcp", marks=pytest.mark.slow)])
def test_connection_is_given_up_when_the_server_says_nothing(
    services: Services, request: pytest.FixtureRequest, way: str, work: Callable[[BoundedConnection], None]
) -> None:
    connection = connect(request.getfixturevalue("url_by_tcp") if way == "tcp" else services.postgres.url)
    run(connection)
    began = time.monotonic()
    with standing_still(connection), pytest.raises(DatabaseSilentError):
        work(connection)

    assert 0.4 < time.monotonic() - began < 2
    assert connection.closed


def test_rollback_is_done_when_the_server_says_nothing(services: Services) -> None:
    connection = connect(services.postgres.url, patience_seconds=60)
    run(connection)
    began = time.monotonic()

    with standing_still(connection):
        connection.rollback()

    assert time.monotonic() - began < database_waits.PING_SECONDS + 1
    assert connection.closed
    connection.rollback()  # The pool's, after the session's.


def test_answer_is_awaited_for_as_long_as_there_is_patience(services: Services) -> None:
    connection = connect(services.postgres.url, patience_seconds=2)

    run(connection, "SELECT pg_sleep(1)")

    assert not connection.closed
    connection.close()


def test_answer_that_comes_slowly_is_read_to_its_end(services: Services) -> None:
    """Patience is for silence: what keeps coming may take its time."""
    connection = connect(services.postgres.url, patience_seconds=0.5)
    with connection.cursor() as cursor:
        cursor.execute("SELECT repeat('x', 10000), pg_sleep(0.1) FROM generate_series(1, 12)")
        assert len(cursor.fetchall()) == 12
    connection.close()


def test_connections_of_others_wait_for_as_long_as_it_takes(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as those of migrations."""
    monkeypatch.setattr(BoundedConnection, "patience_seconds", 0.1)
    connection = psycopg2.connect(services.postgres.url, cursor_factory=RealDictCursor)
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1 AS one, pg_sleep(0.5)")
        assert cursor.fetchone()["one"] == 1  # type: ignore[index]
    connection.close()


def test_connections_of_others_are_made_within_the_time_they_ask_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(DatabaseSilentError):
            psycopg2.connect(host="127.0.0.1", port=silent.getsockname()[1], connect_timeout=1)

    assert 0.9 < time.monotonic() - began < 3


def test_server_that_takes_connections_and_says_nothing_is_given_up_and_then_left_alone(
    monkeypatch: pytest.MonkeyPatch, app: Flask
) -> None:
    monkeypatch.setattr(BoundedConnection, "patience_seconds", 0.5)
    monkeypatch.setattr(database_waits, "REST_SECONDS", 0.5)
    with app.app_context():
        dialect = db.engine.dialect
    rest = ConnectRest()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        options = {"host": "127.0.0.1", "port": silent.getsockname()[1], "connection_factory": BoundedConnection}
        seconds = []
        for pause in (0.0, 0.0, 0.6):
            time.sleep(pause)
            began = time.monotonic()
            with pytest.raises(DatabaseSilentError):
                rest.connect(dialect, None, (), options)
            seconds.append(time.monotonic() - began)

    assert seconds[0] > 0.4
    assert seconds[1] < 0.2
    assert seconds[2] > 0.4


@pytest.mark.usefixtures("in_app")
def test_bounds_of_a_pooled_connection_follow_what_it_is_used_for() -> None:
    ordinary = database_waits.STATEMENT_TIMEOUT_SECONDS + database_waits.SLACK_SECONDS
    driver = db.session.connection().connection.driver_connection
    assert isinstance(driver, BoundedConnection)
    assert driver.patience_seconds == ordinary

    with patient_statements(120):
        assert driver.patience_seconds == 120 + database_waits.SLACK_SECONDS
        assert db.session.scalar(text("SHOW statement_timeout")) == "2min"
    assert driver.patience_seconds == ordinary

    db.session.remove()
    assert db.session.scalar(text("SHOW statement_timeout")) == "10s"
    db.session.remove()


@pytest.mark.usefixtures("in_app")
def test_statement_takes_its_time_when_it_may() -> None:
    driver = db.session.connection().connection.driver_connection
    assert isinstance(driver, BoundedConnection)
    driver.patience_seconds = 0.3

    with patient_statements(5):
        db.session.execute(text("SELECT pg_sleep(0.8)"))

    assert not driver.closed
    db.session.remove()


@pytest.mark.usefixtures("in_app")
def test_pool_replaces_a_connection_whose_server_stood_still(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = db.session.connection().connection.driver_connection
    assert isinstance(driver, BoundedConnection)
    driver.patience_seconds = 0.5
    with standing_still(driver), pytest.raises(OperationalError) as failure:
        db.session.execute(text("SELECT 1"))
    assert failure.value.connection_invalidated
    db.session.rollback()

    assert db.session.scalar(text("SELECT 1")) == 1
    db.session.remove()


@pytest.fixture
def pings(in_app: None, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """For what patience each connection was asked if it is still there."""
    db.engine.dispose()  # There is one connection then, and all use that.
    found: list[float] = []
    ping = db.engine.dialect.do_ping

    def note(connection: Any) -> bool:
        found.append(connection.patience_seconds)
        return ping(connection)

    monkeypatch.setattr(db.engine.dialect, "do_ping", note)
    return found


def use_connection() -> Any:
    """Return the process that serves the connection which is taken and given back."""
    (row,) = run_alone("SELECT pg_backend_pid()", {})
    return row[0]


def test_connection_is_asked_if_it_is_there_only_after_a_pause(
    pings: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = use_connection()
    pings.clear()

    assert [use_connection(), use_connection()] == [first, first]
    assert pings == []

    monkeypatch.setattr(database_waits, "UNASKED_SECONDS", 0.0)
    assert use_connection() == first
    assert pings == [database_waits.PING_SECONDS]


def test_connection_that_was_ended_meanwhile_is_never_used(pings: list[float], services: Services) -> None:
    first = use_connection()
    pings.clear()
    with psycopg2.connect(services.postgres.url) as other, other.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s, 5000)", [first])
        assert cursor.fetchall() == [(True,)]
    other.close()

    assert use_connection() != first
    assert len(pings) == 1


@pytest.mark.usefixtures("pings")
def test_statement_that_runs_alone_leaves_the_connection_as_it_was() -> None:
    before = use_connection()

    with pytest.raises(DBAPIError) as failure:
        run_alone("SELECT 1 / %(nothing)s", {"nothing": 0})
    assert failure.value.orig is not None
    assert "0" not in str(failure.value).replace(str(failure.value.orig), "")
    assert not failure.value.connection_invalidated

    assert db.session.scalar(text("SELECT pg_backend_pid()")) == before
    driver = db.session.connection().connection.driver_connection
    assert isinstance(driver, BoundedConnection)
    assert not driver.autocommit
    db.session.remove()


@pytest.mark.usefixtures("pings")
def test_statement_that_runs_alone_gives_a_silent_server_up() -> None:
    driver = db.session.connection().connection.driver_connection
    assert isinstance(driver, BoundedConnection)
    db.session.remove()

    began_at = time.monotonic()
    with standing_still(driver), pytest.raises(OperationalError) as failure:
        run_alone("SELECT 1", {}, 0.5)
    assert time.monotonic() - began_at < 5
    assert failure.value.connection_invalidated
    assert run_alone("SELECT 1", {}) == [(1,)]


@pytest.mark.usefixtures("in_app")
def test_deadlock_of_a_statement_that_runs_alone_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def fail_twice(statement: str, *_: Any) -> list[tuple[Any, ...]]:
        tried.append(statement)
        if len(tried) < extensions.MAX_TRANSACTION_ATTEMPTS:
            error = psycopg2.errors.DeadlockDetected()
            monkeypatch.setattr(type(error), "pgcode", extensions.DEADLOCK_DETECTED, raising=False)
            raise OperationalError(statement, None, error)
        return [(1,)]

    monkeypatch.setattr(extensions, "_run_alone", fail_twice)

    assert run_alone("SELECT 1", {}) == [(1,)]
    assert len(tried) == extensions.MAX_TRANSACTION_ATTEMPTS


def test_caller_whose_row_is_locked_away_is_given_up_by_postgresql_too(
    app: Flask, account: Account, services: Services
) -> None:
    """It would go on waiting for the lock, on a connection that nobody has any more, while the pool makes another."""
    with psycopg2.connect(services.environ["DATABASE_URL"]) as locking, locking.cursor() as cursor:
        cursor.execute("LOCK TABLE sessions IN ACCESS EXCLUSIVE MODE")
        began = time.monotonic()
        answer = account.call("GET", "/chatroom")
        seconds = time.monotonic() - began
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        waiting = cursor.fetchone()

    assert (answer.status_code, waiting) == (503, (0,))
    assert int(answer.headers["Retry-After"]) > 0
    assert seconds < 4
    assert account.call("GET", "/chatroom").status_code == 200


def test_broken_connection_that_was_just_made_is_left_to_its_first_statement(services: Services) -> None:
    """Asked about a second one too, the pool would give up with an error that is none of PostgreSQL's."""
    connection = connect(services.environ["DATABASE_URL"])
    connection.close()

    database_waits._begin_use(connection, SimpleNamespace(info={}), None)

    assert connection.closed


def test_answer_is_503_while_the_schema_is_older_than_the_code(make_app: Callable[..., Flask]) -> None:
    app = make_app()

    @app.get("/older")
    def older() -> str:
        run_alone("SELECT function_of_the_next_migration()", {})
        return "never"

    answer = app.test_client().get("/older")

    assert (answer.status_code, answer.get_json()["error"]) == (503, "service_unavailable")
    assert int(answer.headers["Retry-After"]) > 0
