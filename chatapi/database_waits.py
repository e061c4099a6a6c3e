"""How long a process waits for PostgreSQL: a server that hangs is given up, as one that is gone would be.

The server's own time-outs end what takes too long, but a server that stands still (a frozen machine, a disk that hangs)
does not keep them, and its kernel goes on answering for it. So all waiting is done here, by psycopg2's wait callback,
and a connection on which nothing has come for too long is closed.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import psycopg2
from flask import Flask
from psycopg2 import extensions
from sqlalchemy import event, text
from sqlalchemy.exc import InvalidatePoolError

from chatapi.extensions import db

STATEMENT_TIMEOUT_SECONDS = 10
"""The server's own bound, which comes first wherever the server lives."""
SERVER_BOUNDS = {
    "idle_in_transaction_session_timeout": "30s",
    "lock_timeout": "5s",
    "statement_timeout": f"{STATEMENT_TIMEOUT_SECONDS}s",
}
"""What PostgreSQL itself ends. Each connection asks for it; where a pooler drops that, the role's settings have it."""
SLACK_SECONDS = 3
CONNECT_SECONDS = 3
PING_SECONDS = 2
"""For what PostgreSQL has nothing to do for: to find out if a connection is still good before its next use, say."""
UNASKED_SECONDS = 1.0
"""For how long after its last use a connection is taken for good unless its socket says otherwise.

Asking costs a round trip at each use, as much as most statements do.
"""
REST_SECONDS = 2.0
"""For how long nobody else tries to connect to a server that did not answer. Many would take their turn at waiting."""

_USED_AT = "used_at"
_EVENTS = {extensions.POLL_READ: select.POLLIN, extensions.POLL_WRITE: select.POLLOUT}


class DatabaseSilentError(psycopg2.OperationalError):
    """PostgreSQL has said nothing for too long. The connection is closed."""


class BoundedConnection(extensions.connection):
    """A connection that is closed when PostgreSQL says nothing for `patience_seconds`."""

    patience_seconds: float = CONNECT_SECONDS

    def rollback(self) -> None:
        """Undo the transaction. A connection that breaks over it has undone it too, and is found out at its next use.

        Otherwise an answer that was made already would be lost for nothing. Undoing takes PostgreSQL no time. It may
        be asked for twice, by the session and then by the pool.
        """
        if self.closed:
            return
        patience_seconds, self.patience_seconds = self.patience_seconds, PING_SECONDS
        try:
            super().rollback()
        except psycopg2.OperationalError:
            if not self.closed:
                raise
        finally:
            self.patience_seconds = patience_seconds


def _wait(connection: extensions.connection) -> None:
    """Wait until the server has answered."""
    patience = _patience(connection)
    bound = None if patience is None else patience * 1000
    waiting = None
    while (state := connection.poll()) != extensions.POLL_OK:
        if waiting is None:
            waiting = select.poll()
        # Made known anew each time: a connection that is being made may change its socket.
        waiting.register(connection, _EVENTS[state])
        if not waiting.poll(bound):
            raise DatabaseSilentError("PostgreSQL does not answer")


def _patience(connection: extensions.connection) -> float | None:
    """Return how many seconds of silence to bear; None is for ever, as on connections not ours such as migrations'.

    While those are made it is what they ask for: libpq keeps that only where it does the waiting.
    """
    if isinstance(connection, BoundedConnection):
        return connection.patience_seconds
    if connection.status in (extensions.STATUS_READY, extensions.STATUS_BEGIN):
        return None
    asked_for = connection.info.dsn_parameters.get("connect_timeout")
    return float(asked_for) if asked_for else None


class ConnectRest:
    """Keeps a process from trying to connect again and again to a server that does not answer."""

    def __init__(self) -> None:
        self._until = 0.0
        self._lock = threading.Lock()

    def connect(self, dialect: Any, _record: Any, arguments: Any, options: Any) -> Any:
        """Connect as SQLAlchemy would, or fail at once while the server is left alone."""
        with self._lock:
            is_resting = time.monotonic() < self._until
        if is_resting:
            raise DatabaseSilentError("PostgreSQL did not answer a moment ago")
        try:
            return dialect.connect(*arguments, **options)
        except DatabaseSilentError:
            with self._lock:
                self._until = time.monotonic() + REST_SECONDS
            raise


def init_database_waits(app: Flask) -> None:
    """Bound how long the application waits for PostgreSQL."""
    extensions.set_wait_callback(_wait)
    with app.app_context():
        event.listen(db.engine, "do_connect", ConnectRest().connect)
        event.listen(db.engine, "checkin", _note_end)
        event.listen(db.engine, "checkout", _begin_use)


@contextmanager
def patient_statements(seconds: int) -> Iterator[None]:
    """Let statements of the transaction take longer within the block than they usually may."""
    connection = cast("BoundedConnection", db.session.connection().connection.driver_connection)
    db.session.execute(text(f"SET LOCAL statement_timeout = '{seconds}s'"))
    connection.patience_seconds = seconds + SLACK_SECONDS
    try:
        yield
    finally:
        connection.patience_seconds = STATEMENT_TIMEOUT_SECONDS + SLACK_SECONDS


def _note_end(connection: BoundedConnection | None, record: Any) -> None:
    if connection is not None:  # None when it was given up.
        record.info[_USED_AT] = time.monotonic()


def _begin_use(connection: BoundedConnection, record: Any, _proxy: Any) -> None:
    """Find out if the server is still there; if not, the pool makes all its connections anew."""
    used_at = record.info.get(_USED_AT)
    # One that has just been made is not asked: if it is broken too, that is no matter of making all anew.
    if used_at is not None and (_has_news(connection) or time.monotonic() >= used_at + UNASKED_SECONDS):
        connection.patience_seconds = PING_SECONDS
        try:
            db.engine.dialect.do_ping(cast("Any", connection))
        except psycopg2.Error as error:
            raise InvalidatePoolError(str(error)) from error
    connection.patience_seconds = STATEMENT_TIMEOUT_SECONDS + SLACK_SECONDS


def _has_news(connection: BoundedConnection) -> bool:
    """Return whether something has come unasked, as when a server says goodbye, or whether all is closed."""
    if connection.closed:
        return True
    looking = select.poll()
    looking.register(connection, select.POLLIN)
    return bool(looking.poll(0))
