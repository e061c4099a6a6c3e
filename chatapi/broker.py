"""Dramatiq on Redis: the doorbell. What it forgets, the sweeper finds again in PostgreSQL."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from uuid import UUID

import dramatiq
import dramatiq.worker
import redis
import structlog
from dramatiq import Message, Middleware
from dramatiq.brokers.redis import RedisBroker
from flask import Flask, current_app
from sqlalchemy.exc import SQLAlchemyError

from chatapi.bell import NAMESPACE, RING_SCRIPT, BellConsumer
from chatapi.breaker import CircuitOpenError, RedisBreaker
from chatapi.errors import kind_of, log_database_error
from chatapi.extensions import REDIS_OPTIONS
from chatapi.redis_nodes import Bound, Nodes, connect
from chatapi.request_ids import continue_request

CHORES_QUEUE = "chores"
"""Codes on their way to their owners. Nothing slow may keep them waiting, so they have a process of their own."""

BILLING_QUEUE = "billing"
"""What is done with Stripe, in a process of its own too: while Stripe hangs, it holds every thread it has."""

PATIENT_SOCKET_TIMEOUT_SECONDS = 5
"""What a process waits for Redis that keeps no request waiting: workers, and the sweeper."""

log = structlog.get_logger(__name__)


def _join_all(threads: Iterable[threading.Thread], timeout: float) -> None:
    """Wait until all `threads` have ended, for `timeout` milliseconds in all."""
    deadline = time.monotonic() + timeout / 1000
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


# Dramatiq's own takes the time since the beginning off once for each thread, so that a worker of a hundred threads has
# none left after a second, and ends with replies under way.
dramatiq.worker.join_all = _join_all  # type: ignore[attr-defined]  # There is no setting for it.


class AppContext(Middleware):
    """Runs every actor within the application's context, a fresh one per message."""

    def __init__(self, app: Flask) -> None:
        self._app = app
        self._local = threading.local()

    def before_process_message(self, broker: Any, message: Any) -> None:  # noqa: ARG002 - dramatiq's signature
        """Enter a context, which also gives the actor a database session of its own."""
        # Not what the thread did before; whose this is the message may say, else the row that it names.
        structlog.contextvars.clear_contextvars()
        request_id = message.options.get("request_id")
        continue_request(request_id if isinstance(request_id, str) else None)
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


class Drain(Middleware):
    """Keeps a worker that is about to end from taking messages that it would no longer get to."""

    def before_worker_shutdown(self, broker: Any, worker: Any) -> None:  # noqa: ARG002
        """Let the consumers fetch no more; what is in work is finished."""
        broker.is_draining = True


class QueueBroker(RedisBroker):
    """Dramatiq's Redis broker with our consumer, a bell, and nothing that is ever late.

    There are no `Retries` and no delayed messages, so no worker needs to look after delay queues: when to come again
    is kept in PostgreSQL.
    """

    longest_wait_seconds = PATIENT_SOCKET_TIMEOUT_SECONDS / 2
    """A consumer's blocking command must be over before the socket's time is."""

    def __init__(self, nodes: Nodes, middleware: list[Middleware]) -> None:
        """Use the one of `nodes` that has the queue."""
        client = Bound(nodes, NAMESPACE)
        super().__init__(client=client, namespace=NAMESPACE, middleware=middleware)
        self.nodes = nodes
        self.is_draining = False
        dispatch: Any = self.scripts["dispatch"].script
        self.scripts["dispatch"] = client.register_script(dispatch + RING_SCRIPT)

    @property
    def place(self) -> str:
        """Where the queue is now."""
        return self.nodes.place_of(NAMESPACE)

    @property
    def consumer_class(self) -> type[BellConsumer]:
        """What workers read the queue with."""
        return BellConsumer

    def declare_queue(self, queue_name: str) -> None:
        """Declare a queue, without the delay queue that Dramatiq gives to each."""
        if queue_name not in self.queues:
            self.emit_before("declare_queue", queue_name)
            self.queues.add(queue_name)
            self.emit_after("declare_queue", queue_name)

    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        """Put a message on its queue and wake a worker up."""
        if delay is not None:
            raise ValueError("Nothing is delayed in Redis; let PostgreSQL say when it is due.")
        enqueued: Message[Any] = super().enqueue(message)
        return enqueued


def init_broker(app: Flask) -> None:
    """Give the application the broker that it rings through, within a small budget of time."""
    app.extensions["broker"] = QueueBroker(connect(app.config["REDIS_URL"], **REDIS_OPTIONS), middleware=[])
    app.extensions["broker_breaker"] = RedisBreaker("ring")


def ring_patiently(app: Flask) -> None:
    """Have the application wait for Redis as long as workers do when it rings, which is for a process of no requests.

    Who rings for hundreds of rows, each of which is due again only later, must not take a short stall for an outage.
    """
    app.extensions["broker"] = QueueBroker(_patient_nodes(app), middleware=[])


def worker_broker(app: Flask) -> QueueBroker:
    """Return a broker for a worker process to consume from, patient where the web's is not."""
    return QueueBroker(_patient_nodes(app), middleware=[AppContext(app), Drain()])


def _patient_nodes(app: Flask) -> Nodes:
    return connect(
        app.config["REDIS_URL"],
        socket_timeout=PATIENT_SOCKET_TIMEOUT_SECONDS,
        socket_connect_timeout=PATIENT_SOCKET_TIMEOUT_SECONDS,
    )


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


def ring(actor_name: str, queue_name: str, row_id: UUID, *, request_id: str | None = None) -> bool:
    """Wake a worker up for what is committed already; return whether Redis took the message.

    The actor is named and not imported, so that ringing needs nothing of what it does. False is no loss: the
    sweeper rings again. `request_id` is for work that has no row of its own which could say whose it is.
    """
    broker: QueueBroker = current_app.extensions["broker"]
    breaker: RedisBreaker = current_app.extensions["broker_breaker"]
    options = {} if request_id is None else {"request_id": request_id}
    message: Message[Any] = Message(
        queue_name=queue_name, actor_name=actor_name, args=(str(row_id),), kwargs={}, options=options
    )
    try:
        breaker.call(lambda: broker.enqueue(message), broker.place)
    except CircuitOpenError:
        return False
    return True


def read_lengths(queue_names: Sequence[str]) -> dict[str, int] | None:
    """Return how many messages wait in each queue, in one round trip.

    None means that ringing has no chance either; it costs little when Redis has just failed.
    """
    broker: QueueBroker = current_app.extensions["broker"]
    breaker: RedisBreaker = current_app.extensions["broker_breaker"]

    def read(client: redis.Redis) -> list[int]:
        pipeline = client.pipeline(transaction=False)
        for queue_name in queue_names:
            pipeline.llen(f"{NAMESPACE}:{queue_name}")
        return pipeline.execute()

    try:
        lengths = breaker.call(lambda: broker.nodes.run(NAMESPACE, read), broker.place)
    except CircuitOpenError:
        return None
    return dict(zip(queue_names, lengths, strict=True))


def check_eviction_policy(app: Flask) -> str | None:
    """Return what is wrong with the queue's Redis, or None: one that evicts would drop queued work in silence.

    A Redis that cannot be asked only gets a warning, since the system starts without it.
    """
    nodes = connect(app.config["REDIS_URL"], **REDIS_OPTIONS)
    try:
        policies = nodes.each(_policy_of)
    except (redis.RedisError, OSError) as error:
        log.warning("redis_policy_unknown", reason=kind_of(error))
        return None
    finally:
        nodes.close()
    evicts = next((policy for policy in policies if policy not in {None, "noeviction"}), None)
    if evicts is None:
        return None
    return f"REDIS_URL names a Redis with maxmemory-policy {evicts}, which drops queued work; set it to noeviction."


def _policy_of(client: redis.Redis) -> str | None:
    """Return what a server does when it is full; None if it cannot be asked, whatever the others say."""
    try:
        memory: dict[str, str] = client.info("memory")
        return memory.get("maxmemory_policy")
    except (redis.RedisError, OSError) as error:
        log.warning("redis_policy_unknown", reason=kind_of(error))
        return None
