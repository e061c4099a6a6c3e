"""PostgreSQL: can it be reached, is it what the service needs, and is the schema that of this code?"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from chatapi.database_waits import SERVER_BOUNDS
from chatapi.doctor.findings import Finding, failed, ok, skipped, warning
from chatapi.doctor.schema import check_schema
from chatapi.doctor.settings import Settings, is_remote, not_set

NAME = "postgresql"
OLDEST_VERSION = 14
CONNECT_SECONDS = 4
STATEMENT_MS = 3000
LARGEST_CLOCK_DIFFERENCE_SECONDS = 5.0
APPLICATION = "chatapi-doctor"

CONNECTIONS = {"web": 20, "worker": 20, "chores": 4, "billing": 4, "sweeper": 1}
"""What each process may open at the most; docs/operating-replies.md has it."""

_SERVER = text("""
    SELECT current_setting('server_version_num')::int / 10000 AS version,
           current_setting('server_version') AS full_version,
           pg_is_in_recovery() OR current_setting('transaction_read_only')::bool AS is_read_only,
           extract(epoch FROM clock_timestamp())::float AS clock,
           current_setting('lock_timeout') = :asked AS has_options,
           array(SELECT name FROM pg_settings WHERE setting = '0' AND name = ANY(:bounds) ORDER BY name) AS unbounded,
           current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int AS room,
           (SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user) AS role_room,
           (SELECT datconnlimit FROM pg_database WHERE datname = current_database()) AS database_room,
           current_user AS role
""")

_MAY_WRITE = text("""
    SELECT coalesce(bool_and(has_table_privilege(class.oid, 'SELECT')
                             AND has_table_privilege(class.oid, 'INSERT')
                             AND has_table_privilege(class.oid, 'UPDATE')
                             AND has_table_privilege(class.oid, 'DELETE')), true)
    FROM pg_class AS class JOIN pg_namespace AS namespace ON namespace.oid = class.relnamespace
    WHERE namespace.nspname = current_schema() AND class.relkind = 'r' AND class.relname <> 'alembic_version'
""")


def check_postgres(settings: Settings) -> Iterator[Finding]:
    """Yield what there is to say of DATABASE_URL, and of DATABASE_DIRECT_URL where that is another."""
    url = settings["DATABASE_URL"]
    if not url:
        yield not_set(NAME, "DATABASE_URL")
        return
    try:
        with _connect(url) as connection:
            yield from _check_server(connection, settings)
            yield from check_schema(connection)
    except (SQLAlchemyError, ArgumentError) as error:
        yield failed(NAME, f"{_place(url)} cannot be used: {_reason(error, url)}", _advice(error, "DATABASE_URL"))
        return
    if settings["DATABASE_DIRECT_URL"] != url:
        yield _check_direct(settings["DATABASE_DIRECT_URL"])


def _check_server(connection: Connection, settings: Settings) -> Iterator[Finding]:
    asked_at = time.time()
    parameters = {"asked": f"{STATEMENT_MS // 1000}s", "bounds": list(SERVER_BOUNDS)}
    server = connection.execute(_SERVER, parameters).one()
    difference = server.clock - (asked_at + time.time()) / 2
    place = _place(settings["DATABASE_URL"])
    if server.version < OLDEST_VERSION:
        advice = f"Use PostgreSQL {OLDEST_VERSION} or newer."
        yield failed(NAME, f"{place} is PostgreSQL {server.full_version}", advice)
    else:
        yield ok(NAME, f"{place}, PostgreSQL {server.full_version}")
    if server.is_read_only:
        yield failed("postgresql writes", "it only lets us read", "Point DATABASE_URL at the primary.")
    elif not connection.scalar(_MAY_WRITE):
        advice = f"GRANT SELECT, INSERT, UPDATE, DELETE on the tables to {server.role}."
        yield failed("postgresql writes", f"{server.role} may not write all tables", advice)
    else:
        yield ok("postgresql writes", f"{server.role} may")
    yield _check_tls(connection, settings)
    yield _check_clock(difference)
    if server.has_options:
        yield check_room(server, settings)
    else:
        yield _check_bounds(server)
        yield skipped("postgresql room", "a pooler is in between: its max_client_conn has to do (docs/scaling.md)")


def _check_tls(connection: Connection, settings: Settings) -> Finding:
    name, host = "postgresql tls", make_url(settings["DATABASE_URL"]).host
    driver: Any = connection.connection.dbapi_connection
    is_used = bool(driver.info.ssl_in_use)
    if is_used:
        return ok(name, "in use")
    if settings.is_production and is_remote(host):
        advice = "Put ?sslmode=verify-full&sslrootcert=system behind DATABASE_URL, or sslmode=require at the least."
        return warning(name, f"not in use on the way to {host}", advice)
    return ok(name, "not in use" + ("" if is_remote(host) else ", and not needed on one machine"))


def _check_bounds(server: Any) -> Finding:
    """Return whether what a pooler drops of our options holds all the same: by the role's own settings."""
    name = "postgresql pooler"
    if server.unbounded:
        sets = "; ".join(
            f"ALTER ROLE {server.role} SET {bound} = '{SERVER_BOUNDS[bound]}'" for bound in server.unbounded
        )
        return warning(name, f"a pooler drops our {' and '.join(server.unbounded)}", f"Run {sets} (docs/scaling.md).")
    return ok(name, "drops our options; the role has bounds of its own")


def _check_clock(difference: float) -> Finding:
    if abs(difference) > LARGEST_CLOCK_DIFFERENCE_SECONDS:
        found = f"PostgreSQL is {abs(difference):.0f} s {'ahead of' if difference > 0 else 'behind'} this machine"
        return warning("clock", found, "Have both keep time by NTP: days turn by one clock, tokens end by the other.")
    return ok("clock", f"{abs(difference):.1f} s from PostgreSQL's; days turn in UTC")


def check_room(server: Any, settings: Settings) -> Finding:
    """Return whether PostgreSQL has room for all that one host's processes may open."""
    name = "postgresql room"
    web, workers = settings["WEB_CONCURRENCY"] or 2, settings["WORKER_PROCESSES"] or 1
    most = web * CONNECTIONS["web"] + workers * CONNECTIONS["worker"]
    most += sum(CONNECTIONS[each] for each in ("chores", "billing", "sweeper"))
    limits = [limit for limit in (server.role_room, server.database_room) if limit is not None and limit >= 0]
    room = min([server.room, *limits])
    if most > room:
        advice = "Raise max_connections (or the role's limit), or lower WEB_CONCURRENCY or WORKER_PROCESSES."
        found = f"one host's processes may open {most} connections, and there is room for {room}"
        return warning(name, found, advice)
    return ok(name, f"{room} connections; one host's processes open {most} at the most")


def _check_direct(url: str) -> Finding:
    name = "postgresql direct"
    try:
        with _connect(url) as connection:
            connection.execute(text("SELECT 1"))
    except (SQLAlchemyError, ArgumentError) as error:
        advice = "Migrations go this way: put DATABASE_DIRECT_URL right."
        return failed(name, f"{_place(url)} cannot be used: {_reason(error, url)}", advice)
    return ok(name, f"{_place(url)}, for migrations")


def _connect(url: str) -> Connection:
    options = f"-c statement_timeout={STATEMENT_MS} -c lock_timeout={STATEMENT_MS}"
    arguments = {"connect_timeout": CONNECT_SECONDS, "application_name": APPLICATION, "options": options}
    engine = create_engine(url, poolclass=NullPool, hide_parameters=True, connect_args=arguments)
    return engine.connect()


def _place(url: str) -> str:
    """Return where it is, without who we are there."""
    try:
        parts = make_url(url)
    except ArgumentError:
        return "the address in it"
    if "@" in (parts.host or ""):
        return "the address in it"
    host = parts.host or dict(parts.query).get("host") or "the usual socket"
    return f"{parts.database or 'the usual database'} at {host}" + (f":{parts.port}" if parts.port else "")


def _reason(error: Exception, url: str) -> str:
    """Return what PostgreSQL or its library says, unless a piece of the password could be in it."""
    try:
        parts = make_url(url)
    except ArgumentError:
        return "it cannot be read"
    if "@" in (parts.host or ""):
        return "there is more than one @ in it; in a password it is written %40"
    said = str(getattr(error, "orig", None) or type(error).__name__).strip().partition("\n")[0]
    reason, password = said.rpartition(" failed: ")[2].rstrip("."), parts.password
    return reason.replace(str(password), "…") if password else reason


def _advice(error: Exception, setting: str) -> str:
    said = str(getattr(error, "orig", "")).lower()
    for sign, advice in _ADVICE.items():
        if sign in said:
            return advice
    return f"Is {setting} right, is the server up, and may this machine reach it?"


_ADVICE = {
    "password authentication failed": "Put user and password in DATABASE_URL right (signs such as @ as %40).",
    "does not exist": "Create it, or put DATABASE_URL right.",
    "too many": "Raise max_connections, or start fewer processes.",
    "unsupported startup parameter": "Have the pooler ignore it: ignore_startup_parameters = options.",
    "certificate": "Does sslrootcert name the server's authority, and is the host name the certificate's?",
    "ssl": "Does the server take TLS? sslmode in DATABASE_URL says whether it must.",
}
