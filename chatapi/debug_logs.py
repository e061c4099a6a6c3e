"""What `LOG_LEVEL=debug` shows of PostgreSQL and Redis: statements and commands with their time, and no values.

Nothing here is attached at other levels, so that they pay nothing for it.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable
from typing import Any

import psycopg2.extensions
import redis
import structlog
from flask import Flask
from redis.client import Pipeline
from sqlalchemy import Engine, event

from chatapi.extensions import db

FIRST_KEY = frozenset(
    {
        "BLPOP", "DEL", "EXISTS", "EXPIRE", "GET", "GETDEL", "HDEL", "HGET", "HGETALL", "HSET", "INCR", "INCRBY",
        "LLEN", "LPUSH", "LRANGE", "MGET", "PEXPIRE", "PTTL", "RPUSH", "SADD", "SCARD", "SET", "SETEX", "SMEMBERS",
        "SREM", "TTL", "UNLINK", "XADD", "XLEN", "XRANGE", "XREVRANGE", "ZADD", "ZRANGEBYSCORE", "ZREM",
    }
)  # fmt: skip
"""Commands whose first argument is a key. Of others only the name is shown: AUTH and HELLO have passwords there."""

SCRIPTS = ("EVAL", "EVALSHA")
MOST_COMMANDS = 20

_SPACE = re.compile(r"\s+")
# Limits of those who are not signed in are kept by their address.
_ADDRESS = re.compile(r"(?<=\bip:)[0-9a-fA-F:.]+(?:/64)?")
_STARTS = "chatapi_statement_starts"

log = structlog.get_logger(__name__)


def init_debug_logs(app: Flask) -> None:
    """Attach what there is to see to the application's database and to Redis, if it is to be seen."""
    if app.config["LOG_LEVEL"] == "debug":
        with app.app_context():
            watch_database(db.engine)
        app.extensions["watched_cursor"] = WatchedCursor
        watch_redis()


def watch_database(engine: Engine) -> None:
    """Log each statement of `engine`, without its parameters, which are prompts, numbers and hashes."""
    event.listen(engine, "before_cursor_execute", _begin_statement)
    event.listen(engine, "after_cursor_execute", _end_statement)
    event.listen(engine, "handle_error", _fail_statement)
    event.listen(engine, "commit", lambda _connection: log.debug("sql", statement="COMMIT"))
    event.listen(engine, "rollback", lambda _connection: log.debug("sql", statement="ROLLBACK"))


class WatchedCursor(psycopg2.extensions.cursor):
    """Logs the statements that are run past SQLAlchemy (`run_alone`)."""

    def execute(self, query: Any, vars: Any = None) -> None:  # noqa: A002 - psycopg2's signature
        """Run a statement."""
        began_at, reason, sqlstate = time.perf_counter(), None, None
        try:
            super().execute(query, vars)
        except psycopg2.Error as error:
            reason, sqlstate = type(error).__name__, error.pgcode
            raise
        finally:
            log.debug(
                "sql",
                statement=_one_line(query),
                **({"rows": self.rowcount} if reason is None else {"sqlstate": sqlstate, "reason": reason}),
                milliseconds=_since(began_at),
            )


def _begin_statement(connection: Any, *_rest: Any) -> None:
    connection.info.setdefault(_STARTS, []).append(time.perf_counter())


def _end_statement(connection: Any, cursor: Any, statement: str, *_rest: Any) -> None:
    log.debug("sql", statement=_one_line(statement), rows=cursor.rowcount, milliseconds=_taken(connection))


def _fail_statement(context: Any) -> None:
    if context.statement is not None and context.connection is not None:
        log.debug(
            "sql",
            statement=_one_line(context.statement),
            sqlstate=getattr(context.original_exception, "pgcode", None),
            reason=type(context.original_exception).__name__,
            milliseconds=_taken(context.connection),
        )


def _taken(connection: Any) -> float | None:
    starts: list[float] = connection.info.get(_STARTS) or []
    return _since(starts.pop()) if starts else None


def _one_line(statement: str) -> str:
    return _SPACE.sub(" ", statement).strip()


def watch_redis() -> None:
    """Log each command of any of this process's clients, by name and key. They have no hook of their own for it."""
    _watch(redis.Redis, "execute_command", lambda _client, arguments: _command(arguments))
    _watch(
        Pipeline, "execute", lambda pipeline, _: [_command(each[0]) for each in pipeline.command_stack[:MOST_COMMANDS]]
    )


def _watch(owner: Any, name: str, describe: Callable[[Any, tuple[Any, ...]], Any]) -> None:
    inner = getattr(owner, name)
    if hasattr(inner, "is_watched"):
        return

    @functools.wraps(inner)
    def watched(self: Any, *arguments: Any, **options: Any) -> Any:
        command, began_at, reason = describe(self, arguments), time.perf_counter(), None
        try:
            return inner(self, *arguments, **options)
        except redis.RedisError as error:
            reason = type(error).__name__
            raise
        finally:
            log.debug("redis", command=command, reason=reason, milliseconds=_since(began_at))

    watched.is_watched = True  # type: ignore[attr-defined]
    setattr(owner, name, watched)


def _command(arguments: tuple[Any, ...]) -> str:
    """Return a command's name and keys."""
    name = str(arguments[0]).upper() if arguments else ""
    keys: tuple[Any, ...] = ()
    if name in FIRST_KEY:
        keys = arguments[1:2]
    elif name in SCRIPTS:
        keys = arguments[3 : 3 + int(arguments[2])]
    return _ADDRESS.sub("<address>", " ".join([name, *map(_key, keys)]))


def _key(key: Any) -> str:
    if isinstance(key, list | tuple):
        return " ".join(map(_key, key))
    return key.decode(errors="replace") if isinstance(key, bytes) else str(key)


def _since(began_at: float) -> float:
    return round((time.perf_counter() - began_at) * 1000, 2)
