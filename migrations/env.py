"""Alembic's environment: one run at a time, over DATABASE_DIRECT_URL, waiting for locks as little as can be.

What it takes and why is in docs/migrations.md.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog
from alembic import context
from alembic.util import CommandError
from flask import current_app
from sqlalchemy import Connection, Engine, create_engine, event, pool, text
from sqlalchemy.exc import DBAPIError

import chatapi.auth.models
import chatapi.chatrooms.models
import chatapi.quota
import chatapi.subscriptions.models  # noqa: F401 - all models must be known before a comparison
from chatapi.errors import log_database_error
from chatapi.extensions import Base
from chatapi.logs import logs_to_stderr

LOCK_TIMEOUT_SECONDS = 2.0
"""Everybody behind a migration that waits for a lock waits too, so it gives up before their own patience ends."""

LOCK_ATTEMPTS = 8
LONGEST_PAUSE_SECONDS = 8.0

RUNNER_WAIT_SECONDS = 300.0
"""How long a run waits for another one, started from another machine perhaps."""

RUNNER_LOCK = "hashtext('chatapi-migrations')"

LOCK_NOT_AVAILABLE = "55P03"
DEADLOCK_DETECTED = "40P01"

SESSION = {
    # An index on a large table takes as long as it takes, whatever the server's own limit is.
    "statement_timeout": "0",
    # Locks of a runner that stands still, or whose machine is gone, are not held for long.
    "idle_in_transaction_session_timeout": "60s",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}

log = structlog.get_logger("chatapi.migrations")


def run_online() -> None:
    """Run what is asked for; each migration has a transaction to itself, and is tried again if it gets no lock."""
    engine = create_engine(
        current_app.config["DATABASE_DIRECT_URL"],
        poolclass=pool.NullPool,
        hide_parameters=True,
        connect_args={
            "connect_timeout": 5,
            "application_name": "chatapi-migrations",
            "options": " ".join(f"-c {name}={value}" for name, value in SESSION.items()),
        },
    )
    try:
        with engine.connect() as connection:
            _configure(connection)
            if context.get_context().opts.get("dont_mutate"):
                context.run_migrations()
            elif not _is_done_by_newer_code(connection):
                with _only_runner(engine):
                    _run_patiently(engine, connection)
    except DBAPIError as error:
        raise CommandError(_sentence(error)) from None
    finally:
        engine.dispose()


def run_offline() -> None:
    """Print the statements instead of running them."""
    # With no connection there is nothing to ask, and the URL is a secret.
    context.configure(
        dialect_name="postgresql",
        target_metadata=Base.metadata,
        literal_binds=True,
        transaction_per_migration=True,
    )
    with logs_to_stderr(), context.begin_transaction():
        context.get_context().impl.static_output(f"SET lock_timeout = '{_lock_timeout()}';")
        context.run_migrations()


def _configure(connection: Connection) -> None:
    began = time.monotonic()

    def note(step: Any, **_: Any) -> None:
        nonlocal began
        seconds, began = time.monotonic() - began, time.monotonic()
        direction = "up" if step.is_upgrade else "down"
        log.info("migration_run", revision=step.up_revision_id, direction=direction, seconds=round(seconds, 2))

    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        compare_server_default=True,
        transaction_per_migration=True,
        on_version_apply=note,
    )

    @event.listens_for(connection, "begin")
    def limit_waiting(connection: Connection) -> None:
        # Not in autocommit: CREATE INDEX CONCURRENTLY waits for old transactions, with nobody behind it.
        if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_lock_timeout()}'")


def _is_done_by_newer_code(connection: Connection) -> bool:
    """Return whether a newer release has been here, when this one wants to upgrade: as after going back to it."""
    runner = context.get_context()
    known = {script.revision for script in context.script.walk_revisions()}
    current = set(runner.get_current_heads())
    connection.rollback()
    if getattr(runner.opts.get("fn"), "__name__", "") != "upgrade" or current <= known:
        return False
    log.warning("schema_newer_than_code", revisions=sorted(current - known))
    return True


@contextmanager
def _only_runner(engine: Engine) -> Iterator[None]:
    """Keep other runs out, waiting for one that is under way.

    The lock belongs to a transaction and not to a session, so it cannot stay behind in a pooler. It is asked for and
    not waited for in the server: a waiting statement has a snapshot, for whose end CREATE INDEX CONCURRENTLY waits.
    """
    deadline = time.monotonic() + _option("wait", RUNNER_WAIT_SECONDS)
    with engine.connect() as guard:
        while True:
            guard.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
            if guard.scalar(text(f"SELECT pg_try_advisory_xact_lock({RUNNER_LOCK})")):
                break
            guard.rollback()
            if time.monotonic() > deadline:
                raise CommandError(
                    "Another run of migrations is under way on this database; try again when it is over."
                )
            time.sleep(0.2)
        yield


def _run_patiently(engine: Engine, connection: Connection) -> None:
    attempts = int(_option("attempts", LOCK_ATTEMPTS))
    for attempt in range(1, attempts + 1):
        try:
            context.run_migrations()
        except DBAPIError as error:
            connection.rollback()
            if _sqlstate(error) not in (LOCK_NOT_AVAILABLE, DEADLOCK_DETECTED):
                raise
            log.warning("migration_got_no_lock", attempt=attempt, attempts=attempts)
            if attempt == attempts:
                raise CommandError(
                    f"A migration got no lock within {_lock_timeout()}, {attempts} times, and was rolled back. "
                    f"Run this again when the long transactions have ended{_long_transactions(engine)}."
                ) from None
            time.sleep(min(2.0 ** (attempt - 1), LONGEST_PAUSE_SECONDS))
        else:
            connection.commit()
            return


def _long_transactions(engine: Engine) -> str:
    """Return the oldest transactions of others, as the end of a sentence."""
    statement = text(
        "SELECT pid, application_name, state, round(extract(epoch FROM now() - xact_start)) AS age "
        "FROM pg_stat_activity WHERE datname = current_database() AND xact_start < now() - interval '1 second' "
        "AND application_name <> 'chatapi-migrations' ORDER BY xact_start LIMIT 3"
    )
    with engine.connect() as connection:
        rows = connection.execute(statement).all()
    named = [f"process {row.pid} ({row.application_name or 'no name'}, {row.state}, {row.age} s)" for row in rows]
    return f": {', '.join(named)}" if named else ""


def _sentence(error: DBAPIError) -> str:
    """Return what to tell of a failure; values that PostgreSQL quotes from rows are not among it."""
    state = _sqlstate(error)
    if state is None:
        reason = " ".join(str(error.orig).split())
        return f"The PostgreSQL of DATABASE_DIRECT_URL, or DATABASE_URL, cannot be reached: {reason}"
    log_database_error(error)
    is_about_data = state.startswith(("22", "23"))
    reason = "its data do not allow it" if is_about_data else error.orig.diag.message_primary
    return f"A migration failed and was rolled back ({state}): {reason}"


def _sqlstate(error: DBAPIError) -> str | None:
    return getattr(error.orig, "pgcode", None)


def _lock_timeout() -> str:
    return f"{round(_option('lock_timeout', LOCK_TIMEOUT_SECONDS) * 1000)}ms"


def _option(name: str, default: float) -> float:
    """Return what `-x name=seconds` says on the command line."""
    given = context.get_x_argument(as_dictionary=True).get(name, default)
    try:
        return float(str(given))
    except ValueError:
        raise CommandError(f"-x {name}={given} is not a number.") from None


if context.is_offline_mode():
    run_offline()
else:
    run_online()
