"""Redis hung or down: what it costs requests, what the log says of it, and that counting is taken up again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import redis
import requests

from chatapi.dev.gemini_standin import Fault
from tests.support import Account, wait_for
from tests.system.support import HttpAnswer, System, send

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

SETTINGS = {"MAX_IN_FLIGHT_PER_USER": "1000"}
PEOPLE = 32
MORE_SECONDS = 1.0
"""What a request may cost more than with a Redis that is well."""
REST_SECONDS = 5.5


@contextmanager
def valkey_down(system: System) -> Iterator[None]:
    system.kill_valkey()
    try:
        yield
    finally:
        system.services.valkey_process.restart()
        assert system.services.valkey.wait_ready()


OUTAGES: dict[str, Callable[[System], object]] = {"hung": System.valkey_frozen, "down": valkey_down}


def slowest(work: Callable[[int], HttpAnswer], status: int) -> float:
    """Return the seconds that the slowest of many requests took, all sent at once."""
    with ThreadPoolExecutor(PEOPLE) as pool:
        answers = list(pool.map(work, range(PEOPLE)))
    assert {answer.status_code for answer in answers} == {status}
    return max(answer.seconds for answer in answers)


@pytest.mark.parametrize("outage", OUTAGES)
def test_requests_cost_little_more_when_redis_is_away(system: System, someone: Account, outage: str) -> None:
    room = someone.open_room(title="budget")
    works: list[tuple[Callable[[int], HttpAnswer], int]] = [
        (lambda _: someone.call("GET", "/chatroom"), 200),
        (lambda number: send(someone, room, f"budget {number}"), 201),
        (lambda _: someone.client.get("/health"), 200),
    ]
    system.services.gemini.add_fault(Fault(latency_ms=60_000))
    usual = [slowest(*work) for work in works]
    seen = len(system.log_of("web"))

    with OUTAGES[outage](system):  # type: ignore[attr-defined]
        at_first, afterwards = [], []
        for work in works:
            at_first.append(slowest(*work))
            afterwards.append(slowest(*work))
            time.sleep(REST_SECONDS)  # So that each kind of request finds it out anew.

    for before, first, after in zip(usual, at_first, afterwards, strict=True):
        assert first < before + MORE_SECONDS
        assert after < before + MORE_SECONDS
    log = system.log_of("web")[seen:]
    assert "Traceback" not in log
    # Two processes; each has limiter, ring, cache and live replies, which rest for five seconds.
    assert 2 <= log.count("redis_unavailable") <= 2 * 4 * 5


@pytest.mark.parametrize("seconds", [1, 3])
def test_wait_for_a_reply_ends_in_time_when_redis_hangs_meanwhile(
    system: System, someone: Account, seconds: int
) -> None:
    system.services.gemini.add_fault(Fault(latency_ms=60_000))
    room = someone.open_room(title="waits")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(send, someone, room, "waited for", Prefer=f"wait={seconds}")
        time.sleep(0.5)
        with system.valkey_frozen():
            answer = waiting.result()

    assert (answer.status_code, answer.get_json()["ai_message"]["status"]) == (201, "pending")
    assert answer.seconds < seconds + MORE_SECONDS


def test_requests_are_counted_in_redis_again_when_it_is_back(system: System) -> None:
    url = f"http://127.0.0.1:{system.port}/health"

    def counted() -> int:
        requests.get(url, timeout=10).raise_for_status()
        with redis.Redis.from_url(system.services.valkey.url) as store:
            return sum(int(store.get(key) or 0) for key in store.scan_iter("chatapi:limits:*"))

    with valkey_down(system):
        for _ in range(10):
            requests.get(url, timeout=10).raise_for_status()

    wait_for(lambda: counted() >= 3, seconds=10)
