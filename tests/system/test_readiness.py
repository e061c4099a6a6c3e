"""Readiness while what it asks about is away or hangs: an answer within a second, however often it is asked."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support import wait_for
from tests.system.freezing import children_of, postgres_frozen, threads_of
from tests.system.support import System

pytestmark = pytest.mark.slow

PROBES = 100
AT_ONCE = 10
MOST_SECONDS = 1.0
POOL_SIZE = 10
"""Connections to PostgreSQL that a process keeps, of those that it needed at once."""


class Held(NamedTuple):
    """What a process has: threads, connections to PostgreSQL, and files and connections beside those."""

    threads: int
    to_postgres: int
    files: int


def ask(system: System) -> tuple[float, int, dict[str, Any]]:
    answer = system.client.get("/health/ready")
    assert ("Retry-After" in answer.headers) == (answer.status_code == 503)
    return answer.seconds, answer.status_code, answer.get_json()


def ask_often(system: System) -> list[tuple[float, int, dict[str, Any]]]:
    """Ask a hundred times, ten at once, over some ten seconds."""
    found = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in range(PROBES // AT_ONCE):
            found += pool.map(lambda _: ask(system), range(AT_ONCE))
            time.sleep(0.2)
    return found


def held(system: System) -> list[Held]:
    """Return what each web process has. PostgreSQL is the only one that they talk to by Unix sockets."""
    found = []
    for pid in children_of(system["web"].pid or 0):
        unix_sockets = {line.split()[6] for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()}
        names = []
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # It was closed meanwhile.
                names.append(os.readlink(file))
        to_postgres = sum(name.startswith("socket:") and name[8:-1] in unix_sockets for name in names)
        found.append(Held(threads_of(pid), to_postgres, len(names) - to_postgres))
    return found


@contextmanager
def all_frozen(system: System) -> Iterator[None]:
    with postgres_frozen(system.services), system.valkey_frozen():
        yield


@pytest.mark.parametrize(
    ("freeze", "status", "checks"),
    [
        (lambda system: postgres_frozen(system.services), 503, {"redis": "ok"}),
        (lambda system: system.valkey_frozen(), 200, {"postgresql": "ok"}),
        (all_frozen, 503, {}),
    ],
    ids=["postgresql", "redis", "both"],
)
def test_readiness_answers_within_a_second_and_holds_nothing_when_something_freezes(
    system: System, freeze: Callable[[System], Any], status: int, checks: dict[str, str]
) -> None:
    ask_often(system)  # What is held by then is what so many at once need.
    before = held(system)
    with freeze(system):
        found = ask_often(system)
        during = held(system)

    assert max(seconds for seconds, *_ in found) < MOST_SECONDS
    assert {answered for _, answered, _ in found} == {status}
    assert {body["status"] for *_, body in found} == {"unavailable" if status == 503 else "degraded"}
    for *_, body in found:
        assert body["checks"].items() >= checks.items()
        assert set(body["checks"].values()) - {"ok"}
    # Beside what the first round made: one check of each kind, and its connections. What is kept to PostgreSQL comes
    # back one by one after the server was away.
    for had, has in zip(before, during, strict=True):
        assert has.threads <= had.threads + 4
        assert has.to_postgres <= max(had.to_postgres, POOL_SIZE) + 2
        assert has.files <= had.files + 6
    wait_for(lambda: ask(system)[1:] == (200, {**ask(system)[2], "status": "ok"}), seconds=10)


def test_readiness_says_503_when_postgresql_is_away_and_200_when_it_is_back(system: System) -> None:
    system.services.postgres_process.stop()
    found = [ask(system) for _ in range(20)]
    system.services.postgres_process.start()

    assert Counter(status for _, status, _ in found) == {503: 20}
    assert max(seconds for seconds, *_ in found) < MOST_SECONDS
    wait_for(lambda: ask(system)[1] == 200, seconds=10)


def test_readiness_is_200_when_redis_is_away_or_the_schema_is_newer(system: System) -> None:
    with ExitStack() as stack:
        stack.callback(
            system.rows, "UPDATE alembic_version SET version_num = split_part(version_num, ' ', 1) RETURNING 1"
        )
        system.rows("UPDATE alembic_version SET version_num = version_num || ' newer' RETURNING 1")
        system.kill_valkey()
        seconds, status, body = ask(system)

    assert (status, body["status"], body["checks"]["postgresql"]) == (200, "degraded", "ok")
    assert seconds < MOST_SECONDS
