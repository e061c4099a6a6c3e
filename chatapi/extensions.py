"""The Flask extensions, unbound; `create_app` binds them."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar, cast
from uuid import UUID

import psycopg2
from cachelib.serializers import BaseSerializer
from flask import Flask, current_app, g, request
from flask_caching import Cache
from flask_caching.backends.rediscache import RedisCache
from flask_jwt_extended import JWTManager
from flask_limiter import Limiter
from flask_smorest import Api
from flask_sqlalchemy import SQLAlchemy
from psycopg2.extensions import connection as PGConnection  # noqa: N812
from sqlalchemy import ColumnElement, CursorResult, MetaData, delete, func, select, tuple_, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase

from chatapi.redis_nodes import Nodes, Routed, connect
from chatapi.schemas import ErrorSchema

T = TypeVar("T")

REDIS_BUDGET_SECONDS = 0.3
"""What one use of Redis may cost a request. Redis is never the truth, so giving it up early loses nothing."""

REDIS_OPTIONS: dict[str, Any] = {
    "socket_timeout": REDIS_BUDGET_SECONDS,
    "socket_connect_timeout": REDIS_BUDGET_SECONDS,
}

MAX_TRANSACTION_ATTEMPTS = 3
DELETE_BATCH = 2000
SERIALIZATION_FAILURE = "40001"
DEADLOCK_DETECTED = "40P01"


class Base(DeclarativeBase):
    """Base of all models; constraints have names, so that migrations can address them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_N_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class JSONCacheSerializer(BaseSerializer):
    """Keeps cached values as JSON: Flask-Caching's default would unpickle whatever it finds in Redis."""

    def dumps(self, value: Any, *_args: Any, **_kwargs: Any) -> bytes:
        """Return `value` as JSON."""
        return json.dumps(value).encode()

    def loads(self, bvalue: bytes | None, *_args: Any, **_kwargs: Any) -> Any:
        """Return what `bvalue` holds, or None when it is no JSON: somebody else's entry is a miss."""
        if bvalue is None:
            return None
        try:
            return json.loads(bvalue)
        except ValueError:
            return None


class NodesCache(RedisCache):
    """Flask-Caching's Redis, in any of the places that a Redis URL may name. One key at a time."""

    nodes: Nodes

    @classmethod
    def factory(cls, _app: Flask, config: dict[str, Any], args: list[Any], kwargs: dict[str, Any]) -> NodesCache:
        """Return the cache that the configuration names; Flask-Caching calls it."""
        nodes = connect(config["CACHE_REDIS_URL"], **config["CACHE_OPTIONS"])
        kwargs.update(host=Routed(nodes), key_prefix=config["CACHE_KEY_PREFIX"])
        made = cls(*args, **kwargs)
        made.nodes = nodes
        return made

    def place_of(self, key: str) -> str:
        """Return where the server is that has a key."""
        return self.nodes.place_of(f"{self._get_prefix()}{key}")


class EnvelopeApi(Api):  # type: ignore[misc]
    """flask-smorest's Api, leaving errors to the application's own handlers."""

    ERROR_SCHEMA = ErrorSchema

    def _register_error_handlers(self) -> None:
        pass


def rate_limit_key() -> str:
    """Return whose budget this request is charged to: the user's, or the address's when anonymous."""
    key: str = g.get("rate_limit_key") or f"ip:{request.remote_addr}"
    return key


def request_budget() -> str:
    """Return the one budget over all routes, as Flask-Limiter spells it."""
    config = current_app.config
    return f"{config['RATE_LIMIT_MAX_REQUESTS']} per {config['RATE_LIMIT_WINDOW_MS'] // 1000} second"


# Objects outlive their transaction as they were in it: reading them again after the commit would cost a round trip,
# show what others did since, and fail for what they deleted.
db = SQLAlchemy(metadata=Base.metadata, session_options={"expire_on_commit": False})
jwt = JWTManager()
limiter = Limiter(key_func=rate_limit_key, application_limits=[request_budget])
cache = Cache()
api = EnvelopeApi()


def delete_some(model: type[Base], *conditions: ColumnElement[bool]) -> int:
    """Delete up to `DELETE_BATCH` rows that meet the conditions, passing over locked ones; return how many it was."""
    key = [getattr(model, column.key) for column in model.__table__.primary_key]
    some = select(*key).where(*conditions).limit(DELETE_BATCH).with_for_update(skip_locked=True)
    statement = delete(model).where(tuple_(*key).in_(some)).execution_options(synchronize_session=False)
    return cast("CursorResult[Any]", db.session.execute(statement)).rowcount


def take_due(model: type[Base], limit: int, seconds: float, *conditions: ColumnElement[bool]) -> list[UUID]:
    """Return the ids of up to `limit` rows that are due and meet the conditions, to be rung for after commit.

    They are due again after so many seconds; locked ones are passed over.
    """
    row_id, due_at = model.__table__.c.id, model.__table__.c.due_at
    due = select(row_id).where(due_at <= func.now(), *conditions).order_by(due_at).limit(limit)
    statement = (
        update(model)
        .where(row_id.in_(due.with_for_update(skip_locked=True)))
        .values(due_at=func.now() + timedelta(seconds=seconds))
        .returning(row_id)
        .execution_options(synchronize_session=False)
    )
    return list(db.session.scalars(statement))


def in_batches(work: Callable[[], int], seconds: float = math.inf) -> int:
    """Run `work` in one transaction after another until there is nothing left for it to do; return how much it was.

    After `seconds` it is left at that.
    """
    total, deadline = 0, time.monotonic() + seconds
    while (done := in_transaction(work)) and time.monotonic() < deadline:
        total += done
    return total + done


def run_alone(
    statement: str, parameters: Mapping[str, Any], patience_seconds: float | None = None
) -> list[tuple[Any, ...]]:
    """Run one statement in a transaction of its own, in one round trip, and return its rows.

    `statement` has psycopg2's placeholders, such as `%(user_id)s`. It is handed to psycopg2 as it is: for what is asked
    at each request SQLAlchemy takes three times as long. A deadlock is tried again as by `in_transaction`; raises
    what SQLAlchemy would. PostgreSQL may be silent for `patience_seconds`, or for as long as it usually may.
    """
    attempt = 1
    while True:
        try:
            return _run_alone(statement, parameters, patience_seconds)
        except DBAPIError as error:
            if not _is_worth_repeating(error, attempt):
                raise
            attempt += 1


def _run_alone(statement: str, parameters: Mapping[str, Any], patience_seconds: float | None) -> list[tuple[Any, ...]]:
    connection = None
    try:
        connection = db.engine.raw_connection()
        driver = cast("Any", connection.driver_connection)
        if patience_seconds is not None:
            driver.patience_seconds = patience_seconds
        return _run_on(driver, statement, parameters)
    except psycopg2.Error as error:
        is_broken = connection is not None and bool(cast("PGConnection", connection.driver_connection).closed)
        if connection is not None and is_broken:
            connection.invalidate(error)
        raise DBAPIError.instance(  # What the rest of the application knows.
            statement,
            None,
            error,
            psycopg2.Error,
            hide_parameters=True,
            connection_invalidated=is_broken,
            dialect=db.engine.dialect,
        ) from error
    finally:
        if connection is not None:
            connection.close()


def _run_on(driver: PGConnection, statement: str, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    driver.autocommit = True
    try:
        with driver.cursor(cursor_factory=current_app.extensions.get("watched_cursor")) as cursor:
            cursor.execute(statement, parameters)
            rows: list[tuple[Any, ...]] = cursor.fetchall()
            return rows
    finally:
        if not driver.closed:
            driver.autocommit = False


def in_transaction(work: Callable[[], T]) -> T:
    """Run `work` and commit. A deadlock or serialisation failure repeats the whole of it, three times at most.

    Whatever else `work` raises rolls back and goes on to the caller. `work` may run more than once, so it must
    do nothing that a rollback does not undo.
    """
    attempt = 1
    while True:
        try:
            result = work()
            db.session.commit()
        except DBAPIError as error:
            db.session.rollback()
            if not _is_worth_repeating(error, attempt):
                raise
            attempt += 1
        except BaseException:
            db.session.rollback()
            raise
        else:
            return result


def _is_worth_repeating(error: DBAPIError, attempt: int) -> bool:
    state = getattr(error.orig, "pgcode", None)
    return state in (SERIALIZATION_FAILURE, DEADLOCK_DETECTED) and attempt < MAX_TRANSACTION_ATTEMPTS
