"""How messages come from Redis to a worker: real workers, on a Valkey that may be killed."""

from __future__ import annotations

import os
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from queue import Queue
from uuid import UUID, uuid4

import pytest
import redis
from dramatiq import Message, Worker
from flask import Flask

from chatapi.bell import TOKENS, bell_of
from chatapi.breaker import RedisBreaker
from chatapi.broker import NAMESPACE, QueueBroker, declare_actor, init_broker, ring, worker_broker
from chatapi.dev.embedded import EmbeddedValkey, free_port
from chatapi.dev.processes import Child
from tests.support import wait_for

QUEUE = "work"

SOON_SECONDS = 0.3
"""Much for waking up, little for one who looks every now and then."""


class Log:
    """What was done, and when; `hold` makes whoever takes a message up wait with it."""

    def __init__(self) -> None:
        self.done: dict[UUID, float] = {}
        self.times: Counter[UUID] = Counter()
        self.go_on = threading.Event()
        self.go_on.set()

    def __call__(self, row_id: UUID) -> None:
        self.times[row_id] += 1
        self.done[row_id] = time.monotonic()
        self.go_on.wait(30)

    def hold(self) -> None:
        self.go_on.clear()


@pytest.fixture(scope="module")
def valkey_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[EmbeddedValkey, Child]]:
    folder: Path = tmp_path_factory.mktemp("valkey")
    valkey = EmbeddedValkey(folder / "data", free_port())
    valkey.prepare()
    child = valkey.child(log=folder / "log")
    child.start()
    assert valkey.wait_ready()
    yield valkey, child
    child.stop()


@pytest.fixture
def valkey(valkey_process: tuple[EmbeddedValkey, Child]) -> Iterator[redis.Redis]:
    """An empty Valkey."""
    with closing(redis.Redis.from_url(valkey_process[0].url)) as client:
        client.flushall()
        yield client


@pytest.fixture
def queue_app(valkey_process: tuple[EmbeddedValkey, Child], valkey: redis.Redis) -> Iterator[Flask]:
    app = Flask("queue")
    app.config["REDIS_URL"] = valkey_process[0].url
    init_broker(app)
    app.extensions["broker_breaker"] = RedisBreaker("ring", rest_seconds=0.0)
    with app.app_context():
        yield app
    app.extensions["broker"].client.close()


@contextmanager
def working(app: Flask, work: Callable[[UUID], None], threads: int = 4) -> Iterator[Worker]:
    """Run a worker that fetches no more than it has threads for, as ours do."""
    broker = worker_broker(app)
    declare_actor(broker, "note", QUEUE, work)
    worker = Worker(broker, queues={QUEUE}, worker_threads=threads)
    worker.queue_prefetch = threads
    worker.start()
    try:
        yield worker
    finally:
        worker.stop()
        broker.client.close()


def commands(client: redis.Redis) -> int:
    return sum(stats["calls"] for stats in client.info("commandstats").values())


def rung() -> UUID:
    row_id = uuid4()
    assert ring("note", QUEUE, row_id)
    return row_id


def test_message_is_taken_up_at_once_when_the_worker_is_idle(queue_app: Flask) -> None:
    log = Log()
    delays = []
    with working(queue_app, log):
        for pause in (1.2, *[0.1] * 20):  # The first for a worker that has waited in vain.
            time.sleep(pause)
            began = time.monotonic()
            row_id = rung()
            wait_for(lambda row_id=row_id: row_id in log.done, seconds=5, every=0.002)
            delays.append(log.done[row_id] - began)

    assert statistics.median(delays) < SOON_SECONDS / 6
    assert delays[0] < SOON_SECONDS


@pytest.mark.slow
def test_redis_is_asked_seldom_when_the_worker_is_idle(queue_app: Flask, valkey: redis.Redis) -> None:
    with working(queue_app, Log()):
        time.sleep(0.5)
        before = commands(valkey)
        time.sleep(2)
        # Two INFOs and FLUSHALL are ours, and what a script calls is counted too.
        assert commands(valkey) - before <= 20


@pytest.mark.slow
def test_message_is_taken_up_at_once_when_a_busy_worker_has_a_slot_again(queue_app: Flask) -> None:
    log = Log()
    with working(queue_app, log, threads=1):
        for _ in range(3):
            log.hold()
            first = rung()
            wait_for(lambda first=first: first in log.done, seconds=5, every=0.002)
            second = rung()
            time.sleep(0.7)
            assert second not in log.done
            freed = time.monotonic()
            log.go_on.set()
            wait_for(lambda second=second: second in log.done, seconds=5, every=0.002)
            assert log.done[second] - freed < SOON_SECONDS


@pytest.mark.slow
def test_busy_worker_shows_life_and_asks_for_nothing(queue_app: Flask, valkey: redis.Redis) -> None:
    log = Log()
    with working(queue_app, log, threads=1) as worker:
        log.hold()
        row_id = rung()
        wait_for(lambda: row_id in log.done)
        waiting = rung()
        before = commands(valkey)
        time.sleep(2.5)
        asked = commands(valkey) - before
        seen = valkey.zscore(f"{NAMESPACE}:__heartbeats__", worker.broker.broker_id)
        assert waiting not in log.done
        log.go_on.set()

    assert asked <= 15
    assert time.time() - seen / 1000 < 2.5


@pytest.mark.slow
def test_each_message_is_taken_up_once_and_soon_when_workers_share_a_queue(queue_app: Flask) -> None:
    log = Log()
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(working(queue_app, log))
        time.sleep(0.3)
        began = time.monotonic()
        row_ids = [rung() for _ in range(200)]
        wait_for(lambda: len(log.done) == len(row_ids), every=0.01)
        assert max(log.done.values()) - began < 2.0

    assert log.times == Counter(row_ids)


def test_worker_leaves_new_messages_to_others_while_it_ends(queue_app: Flask) -> None:
    slow, log = Log(), Log()
    slow.hold()
    with working(queue_app, slow) as ending, ThreadPoolExecutor() as pool:
        in_work = rung()
        wait_for(lambda: in_work in slow.done, every=0.002)
        stopped = pool.submit(ending.stop)
        wait_for(lambda: ending.broker.is_draining, every=0.002)
        with working(queue_app, log):
            time.sleep(0.2)
            began = time.monotonic()
            # Its token goes to the ending worker, which has waited longer, and is given on.
            row_ids = [rung()]
            wait_for(lambda: len(log.done) == 1, seconds=5, every=0.002)
            assert log.done[row_ids[0]] - began < SOON_SECONDS
            row_ids += [rung() for _ in range(20)]
            wait_for(lambda: len(log.done) == len(row_ids), seconds=5, every=0.01)
        slow.go_on.set()
        stopped.result(timeout=5)

    assert set(slow.done) == {in_work}


def test_bell_does_not_grow_when_nobody_listens(queue_app: Flask, valkey: redis.Redis) -> None:
    for _ in range(TOKENS * 3):
        rung()

    bell = bell_of(NAMESPACE, QUEUE)
    assert valkey.llen(bell) == TOKENS
    assert 0 < valkey.ttl(bell) <= 60
    assert valkey.llen(f"{NAMESPACE}:{QUEUE}") == TOKENS * 3


def test_worker_still_hears_when_redis_was_emptied(queue_app: Flask, valkey: redis.Redis) -> None:
    log = Log()
    with working(queue_app, log):
        time.sleep(0.3)
        valkey.flushall()
        valkey.script_flush()
        began = time.monotonic()
        row_id = rung()
        wait_for(lambda: row_id in log.done, seconds=5, every=0.002)
        assert log.done[row_id] - began < SOON_SECONDS


def test_consumer_waits_for_nothing_but_its_bell(queue_app: Flask, valkey: redis.Redis) -> None:
    for _ in range(TOKENS):
        rung()
    valkey.delete(f"{NAMESPACE}:{QUEUE}")
    broker = worker_broker(queue_app)
    with closing(broker.client):
        consumer = broker.consume(QUEUE, timeout=1000)
        began = time.monotonic()
        assert [next(consumer) for _ in range(TOKENS)] == [None] * TOKENS
        # Dramatiq's own would sleep longer and longer after each look in vain, and hear no bell meanwhile.
        assert time.monotonic() - began < 0.5


def test_worker_ends_soon_when_it_is_idle(queue_app: Flask) -> None:
    with working(queue_app, Log()) as worker:
        time.sleep(0.3)
        began = time.monotonic()
        worker.stop()
        assert time.monotonic() - began < 2.5


def test_ending_worker_waits_for_what_is_in_work_when_it_has_many_threads(queue_app: Flask) -> None:
    slow, at_work = Log(), Queue[threading.Thread]()
    slow.hold()

    def work(row_id: UUID) -> None:
        at_work.put(threading.current_thread())
        slow(row_id)

    with working(queue_app, work, threads=128) as worker, ThreadPoolExecutor() as pool:
        rung()
        last = at_work.get(timeout=5)
        worker.workers.remove(last)
        worker.workers.append(last)
        stopped = pool.submit(worker.stop, 10_000)
        wait_for(lambda: not any(thread.is_alive() for thread in worker.workers[:-1]), seconds=5, every=0.01)
        time.sleep(0.5)
        assert not stopped.done()
        slow.go_on.set()
        stopped.result(timeout=5)
        assert not last.is_alive()


def test_ending_worker_waits_for_no_longer_than_it_may(queue_app: Flask) -> None:
    slow = Log()
    slow.hold()
    with working(queue_app, slow) as worker:
        in_work = rung()
        wait_for(lambda: in_work in slow.done, every=0.002)
        began = time.monotonic()
        worker.stop(1500)
        assert 1.4 < time.monotonic() - began < 4
        slow.go_on.set()


def test_delayed_message_is_refused(queue_app: Flask) -> None:
    broker: QueueBroker = queue_app.extensions["broker"]
    message = Message(queue_name=QUEUE, actor_name="note", args=(), kwargs={}, options={})

    with pytest.raises(ValueError, match="PostgreSQL"):
        broker.enqueue(message, delay=1000)


@pytest.mark.slow
def test_worker_hears_again_when_redis_was_killed_and_is_back(
    queue_app: Flask, valkey_process: tuple[EmbeddedValkey, Child]
) -> None:
    valkey, child = valkey_process
    log = Log()
    with working(queue_app, log):
        time.sleep(0.3)
        child.kill()
        time.sleep(1)
        child.start()
        assert valkey.wait_ready()
        row_id = rung()
        wait_for(lambda: row_id in log.done, seconds=10)
        assert took_up_soon(log)


@pytest.mark.slow
def test_worker_hears_again_when_redis_was_frozen(
    queue_app: Flask, valkey_process: tuple[EmbeddedValkey, Child], caplog: pytest.LogCaptureFixture
) -> None:
    pid = valkey_process[1].pid
    assert pid is not None
    log = Log()
    with working(queue_app, log):
        time.sleep(0.3)
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(7)  # Beyond the sockets' time-out.
        finally:
            os.kill(pid, signal.SIGCONT)
        row_id = rung()
        wait_for(lambda: row_id in log.done, seconds=15)
        assert took_up_soon(log)
    assert "connection error" in caplog.text
    assert "unexpected error" not in caplog.text


def took_up_soon(log: Log) -> bool:
    """Whether the worker is back to hearing each message at once; what it found first it may have found by looking."""

    def delay() -> float:
        began = time.monotonic()
        row_id = rung()
        wait_for(lambda: row_id in log.done, seconds=10, every=0.002)
        return log.done[row_id] - began

    return statistics.median(delay() for _ in range(5)) < SOON_SECONDS / 3
