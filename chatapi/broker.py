"""Dramatiq on Redis: the doorbell. What it forgets, the sweeper finds again in PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from uuid import UUID

import dramatiq
import redis
import structlog
from dramatiq import Message, Middleware
from dramatiq.brokers.redis import RedisBroker, _RedisConsumer
from dramatiq.errors import ConnectionClosed
from flask import Flask, current_app
from sqlalchemy.exc import SQLAlchemyError

from chatapi.breaker import CircuitOpenError, RedisBreaker
from chatapi.errors import log_database_error
from chatapi.extensions import REDIS_OPTIONS

NAMESPACE = "{dramatiq}"
"""In braces, so that all keys of the queue share one slot of a Redis Cluster."""

WORKER_SOCKET_TIMEOUT_SECONDS = 5

log = structlog.get_logger(__name__)


class AppContext(Middleware):
    """Runs every actor within the application's context, a fresh one per message."""

    def __init__(self, app: Flask) -> None:
        self._app = app
        self._local = threading.local()

    def before_process_message(self, broker: Any, message: Any) -> None:  # noqa: ARG002 - dramatiq's signature
        """Enter a context, which also gives the actor a database session of its own."""
        structlog.contextvars.clear_contextvars()
        context = self._app.app_context()
        context.push()
        self._local.context = context

    def after_process_message(
        self,
        broker: Any,  # noqa: ARG002
        message: Any,  # noqa: ARG002
        *,
        result: Any = None,  # noqa: ARG002
        exception: BaseException | None = None,  # noqa: ARG002
    ) -> None:
        """Leave it."""
        context = self._local.__dict__.pop("context", None)
        if context is not None:
            context.pop()

    after_skip_message = after_process_message


class _Consumer(_RedisConsumer):
    """Takes a time-out of Redis for the lost connection that it is.

    The stock consumer knows `redis.ConnectionError` only, and an ack that times out would be dropped
    (https://github.com/Bogdanp/dramatiq/issues/894).
    """

    def ack(self, message: Any) -> None:
        try:
            super().ack(message)
        except redis.TimeoutError as error:
            raise ConnectionClosed(error) from None

    def nack(self, message: Any) -> None:
        try:
            super().nack(message)
        except redis.TimeoutError as error:
            raise ConnectionClosed(error) from None

    def __next__(self) -> Any:
        try:
            return super().__next__()
        except redis.TimeoutError as error:
            raise ConnectionClosed(error) from None


class QueueBroker(RedisBroker):
    """Dramatiq's Redis broker with our consumer and without its `Retries`: retries live in PostgreSQL."""

    @property
    def consumer_class(self) -> type[_Consumer]:
        """What workers read the queue with."""
        return _Consumer


def init_broker(app: Flask) -> None:
    """Give the application the broker that it rings through, within a small budget of time."""
    client = redis.Redis.from_url(app.config["REDIS_URL"], **REDIS_OPTIONS)
    app.extensions["broker"] = QueueBroker(client=client, namespace=NAMESPACE, middleware=[])
    app.extensions["broker_breaker"] = RedisBreaker("ring")


def worker_broker(app: Flask) -> QueueBroker:
    """Return a broker for a worker process to consume from, patient where the web's is not."""
    client = redis.Redis.from_url(
        app.config["REDIS_URL"],
        socket_timeout=WORKER_SOCKET_TIMEOUT_SECONDS,
        socket_connect_timeout=WORKER_SOCKET_TIMEOUT_SECONDS,
    )
    return QueueBroker(client=client, namespace=NAMESPACE, middleware=[AppContext(app)])


def declare_actor(broker: QueueBroker, actor_name: str, queue_name: str, work: Callable[[UUID], None]) -> None:
    """Tell `broker` what a message to `actor_name` asks for: `work` on the row of an id, which is safe to run twice.

    Failures of the database are logged by our own rules, as Dramatiq would log their messages, which quote values. What
    failed is still in PostgreSQL, and the sweeper rings for it again.
    """

    def run(row_id: str) -> None:
        try:
            work(UUID(row_id))
        except SQLAlchemyError as error:
            log_database_error(error)

    dramatiq.actor(actor_name=actor_name, queue_name=queue_name, broker=broker)(run)


def ring(actor_name: str, queue_name: str, row_id: UUID) -> bool:
    """Wake a worker up for what is committed already; return whether Redis took the message.

    The actor is named and not imported, so that ringing needs nothing of what it does. False is no loss: the
    sweeper rings again.
    """
    broker: QueueBroker = current_app.extensions["broker"]
    breaker: RedisBreaker = current_app.extensions["broker_breaker"]
    message: Message[Any] = Message(
        queue_name=queue_name, actor_name=actor_name, args=(str(row_id),), kwargs={}, options={}
    )
    try:
        breaker.call(lambda: broker.enqueue(message))
    except CircuitOpenError:
        return False
    return True


def is_reachable() -> bool:
    """Return whether ringing has a chance; costs little when Redis has just failed."""
    broker: QueueBroker = current_app.extensions["broker"]
    breaker: RedisBreaker = current_app.extensions["broker_breaker"]
    try:
        breaker.call(broker.client.ping)
    except CircuitOpenError:
        return False
    return True


def check_eviction_policy(app: Flask) -> str | None:
    """Return what is wrong with the queue's Redis, or None: one that evicts would drop queued work in silence.

    A Redis that cannot be asked only gets a warning, since the system starts without it.
    """
    client = redis.Redis.from_url(app.config["REDIS_URL"], **REDIS_OPTIONS)
    try:
        policy = client.info("memory").get("maxmemory_policy", "noeviction")
    except (redis.RedisError, OSError) as error:
        log.warning("redis_policy_unknown", reason=type(error).__name__)
        return None
    finally:
        client.close()
    if policy != "noeviction":
        return f"REDIS_URL names a Redis with maxmemory-policy {policy}, which drops queued work; set it to noeviction."
    return None
