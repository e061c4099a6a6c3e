"""What processes need: memory, time to start, commands to Redis while there is nothing to do."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

from bench.figures import Figure, Target
from bench.load import Asked, wrk
from bench.model_alone import PROMPT
from bench.rig import Rig
from chatapi.chatrooms import prompts
from chatapi.dev.processes import Child, wait_until

IN_FLIGHT = 100
IDLE_SECONDS = 10.0


def measure(rig: Rig, rounds: int, seconds: float) -> Iterator[Figure]:
    """Start the web, and the worker, some times; look at each before and during its work."""
    person = rig.people(1, rooms=IN_FLIGHT)[0]
    starts, webs = [], []
    for _ in range(rounds):
        began_at = time.monotonic()
        with rig.running("web") as children:
            starts.append(time.monotonic() - began_at)
            wrk(rig.port, [Asked("/chatroom", person.token)], seconds, rig.folder)
            webs.append(max(map(megabytes, processes_of(children["web"], "gunicorn"))))
    yield Figure("web: until it answers", starts, "s")
    yield Figure("web: one worker process", webs, "MB", Target("at most", 90))
    starts, idle, busy, commands = [], [], [], []
    for _ in range(rounds):
        rig.forget_prompts()
        _send(rig, person.id, person.rooms[:1])
        began_at = time.monotonic()
        with rig.running("worker") as children:
            _wait(lambda: not _unfinished(rig))
            starts.append(time.monotonic() - began_at)
            commands.append(_commands_a_second(rig))
            (worker,) = processes_of(children["worker"], "chatapi.consume")
            idle.append(megabytes(worker))
            rig.gemini(latency_ms=6000)
            _send(rig, person.id, person.rooms)
            time.sleep(4)
            busy.append((megabytes(worker) - idle[-1]) / IN_FLIGHT)
            rig.gemini()
    yield Figure("worker: until the first reply is stored", starts, "s")
    yield Figure("worker: one process", idle, "MB")
    yield Figure("worker: each reply in flight", busy, "MB", Target("at most", 0.5))
    yield Figure("worker: Redis commands while idle", commands, "1/s", Target("at most", 20))


def processes_of(child: Child, words: str) -> list[int]:
    """Return the pids of the processes that a master has started, and that run its command."""
    children = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
    return [int(pid) for pid in children if words in Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")]


def megabytes(pid: int) -> float:
    """Return what a process holds in memory, shared parts in proportion (PSS)."""
    found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) / 1024


def _send(rig: Rig, user_id: str, rooms: list[str]) -> None:
    with rig.app.app_context():
        for room in rooms:
            prompts.announce(prompts.post_message(UUID(user_id), room, PROMPT))


def _unfinished(rig: Rig) -> int:
    return int(rig.sql("SELECT count(*) FROM reply_jobs")[0][0])


def _wait(is_so: Callable[[], bool]) -> None:
    assert wait_until(is_so, 60)


def _commands_a_second(rig: Rig) -> float:
    time.sleep(2)
    with rig.redis() as server:
        before = server.info("stats")["total_commands_processed"]
        time.sleep(IDLE_SECONDS)
        return float((server.info("stats")["total_commands_processed"] - before - 1) / IDLE_SECONDS)
