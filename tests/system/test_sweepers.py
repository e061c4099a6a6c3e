"""Sweepers killed, frozen and kept waiting in the middle of it: what is due is rung for once a window, by somebody."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
import redis

from tests.support import Account, wait_for
from tests.system.support import System, sleep_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

PEOPLE, ROOMS_EACH = 10, 45
WINDOWS = (0.0, 5.0, 15.0)
"""When a row is rung for that nobody takes up, in seconds from when it is due first."""
LOOKED_AT_SECONDS = 25.0
FROZEN_SECONDS = 8.0
STALL_SECONDS = 1.5
BATCH = 200


def rings(queue: redis.Redis) -> dict[str, list[float]]:
    """Return for each reply when it was rung for, by what waits in the queue."""
    found = defaultdict(list)
    for payload in queue.hvals("{dramatiq}:replies.msgs"):
        message = json.loads(payload)
        found[message["args"][0]].append(message["message_timestamp"] / 1000)
    return {reply_id: sorted(times) for reply_id, times in found.items()}


def fill_rooms(sign_in: Callable[..., Account], system: System) -> set[str]:
    """Send a prompt to each of several hundred rooms, without a worker; return the ids of the replies."""
    system["worker"].stop()
    people = [sign_in(via=system.client) for _ in range(PEOPLE)]

    def fill(person: Account) -> list[str]:
        return [person.prompt(person.open_room(title="due"), "due") for _ in range(ROOMS_EACH)]

    with ThreadPoolExecutor(PEOPLE) as pool:
        return {reply_id for found in pool.map(fill, people) for reply_id in found}


def make_due(system: System, queue: redis.Redis) -> float:
    """Let all replies be due at once, for the first time; return when, as soon as one was rung for."""
    queue.flushall()
    system.rows("UPDATE reply_jobs SET ring_at = clock_timestamp(), rings = 0 RETURNING 1")
    began = time.monotonic()
    wait_for(lambda: queue.hlen("{dramatiq}:replies.msgs") > 0, every=0.001)
    return began


def test_each_due_row_is_rung_for_once_a_window_when_one_of_three_sweepers_is_killed_and_one_frozen(
    system: System, sign_in: Callable[..., Account]
) -> None:
    replies = fill_rooms(sign_in, system)
    with (
        system.another("sweeper"),
        system.another("sweeper") as frozen,
        redis.Redis.from_url(system.services.valkey.url) as queue,
    ):
        time.sleep(5)  # All three are up.
        logs = [Path(sweeper.log or "") for sweeper in (system["sweeper"], frozen)]  # The two others share one.
        said = [len(log.read_text()) for log in logs]
        began = make_due(system, queue)
        system.kill("sweeper")
        os.kill(frozen.pid or 0, signal.SIGSTOP)
        try:
            sleep_until(began + FROZEN_SECONDS)
        finally:
            os.kill(frozen.pid or 0, signal.SIGCONT)
        sleep_until(began + LOOKED_AT_SECONDS)
        found = rings(queue)
        logged = "".join(log.read_text()[length:] for log, length in zip(logs, said, strict=True))

    assert set(found) == replies, logged
    # What the killed one had taken and not rung for misses a window; what the frozen one had taken is rung for late.
    assert {len(times) for times in found.values()} <= {len(WINDOWS) - 1, len(WINDOWS), len(WINDOWS) + 1}, logged
    whole = [times for times in found.values() if len(times) == len(WINDOWS)]
    assert len(whole) >= len(replies) - 2 * BATCH, logged
    close = [times for times in found.values() if min(b - a for a, b in pairwise(times)) < 3]
    assert len(close) <= BATCH, logged


def test_no_due_row_misses_a_window_when_redis_stalls(system: System, sign_in: Callable[..., Account]) -> None:
    replies = fill_rooms(sign_in, system)
    with redis.Redis.from_url(system.services.valkey.url) as queue:
        began = make_due(system, queue)
        with system.valkey_frozen():
            time.sleep(STALL_SECONDS)
        sleep_until(began + LOOKED_AT_SECONDS)
        found = rings(queue)

    assert set(found) == replies
    assert {len(times) for times in found.values()} == {len(WINDOWS)}
