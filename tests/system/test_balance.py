"""Connections among the web's workers: who has more leaves new ones to the others."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.support import wait_for
from tests.system.support import System

EACH = 40
ESTABLISHED = "01"
REQUEST = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"


def workers_of(system: System) -> list[int]:
    pid = system["web"].pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def connections_of(pid: int, port: int) -> int:
    """Count what a process holds of the connections to `port`."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    inodes = {f"socket:[{row[9]}]" for row in rows if row[1].endswith(f":{port:04X}") and row[3] == ESTABLISHED}
    return sum(os.readlink(link) in inodes for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink())


def ready(system: System) -> set[int]:
    """Return the workers that have begun to serve."""
    log = system["web"].log
    assert log is not None
    return {int(pid) for pid in re.findall(r"Worker ready \(pid: (\d+)\)", log.read_text())} & set(workers_of(system))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def connect(system: System, stack: ExitStack) -> None:
    """Open a connection that stays, once it was served."""
    client = stack.enter_context(socket.create_connection(("127.0.0.1", system.port), timeout=20))
    client.sendall(REQUEST)
    assert client.recv(4096).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("turn", [1, -1])  # Whichever of them the kernel wakes up first.
def test_worker_that_was_away_gets_new_connections_until_it_has_as_many_as_the_other(
    system: System, stack: ExitStack, turn: int
) -> None:
    wait_for(lambda: len(ready(system)) == 2)
    wait_for(lambda: sum(connections_of(pid, system.port) for pid in workers_of(system)) == 0)
    one, other = workers_of(system)[::turn]
    os.kill(other, signal.SIGSTOP)
    try:
        for _ in range(EACH):
            connect(system, stack)
    finally:
        os.kill(other, signal.SIGCONT)
    assert (connections_of(one, system.port), connections_of(other, system.port)) == (EACH, 0)

    time.sleep(0.3)
    for _ in range(EACH):
        connect(system, stack)

    # On a busy machine it may be too late for some.
    assert connections_of(other, system.port) >= EACH * 3 // 4


def test_workers_count_again_after_one_has_died(system: System, stack: ExitStack) -> None:
    before = workers_of(system)
    for _ in range(10):
        connect(system, stack)
    os.kill(before[0], signal.SIGKILL)
    wait_for(lambda: before[0] not in workers_of(system) and len(workers_of(system)) == 2)
    wait_for(lambda: len(ready(system)) == 2)

    def connect_some() -> bool:
        for _ in range(EACH):
            connect(system, stack)
        return all(connections_of(pid, system.port) >= EACH // 4 for pid in workers_of(system))

    # On a busy machine the first may be too late for the new one.
    assert any(connect_some() for _ in range(3))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_worker_that_is_told_to_end_while_it_leaves_connections_to_others_ends_in_good_order(
    system: System, stack: ExitStack, number: signal.Signals
) -> None:
    """It has most connections, of which some have sent half a request, and others come and go all the time."""
    wait_for(lambda: len(ready(system)) == 2)
    wait_for(lambda: sum(connections_of(pid, system.port) for pid in workers_of(system)) == 0)
    one, other = workers_of(system)
    os.kill(other, signal.SIGSTOP)
    try:
        halves = [stack.enter_context(socket.create_connection(("127.0.0.1", system.port))) for _ in range(8)]
        for half in halves:
            half.sendall(REQUEST[:10])
        wait_for(lambda: connections_of(one, system.port) == len(halves))
    finally:
        os.kill(other, signal.SIGCONT)
    is_over = threading.Event()

    def come_and_go() -> None:
        while not is_over.is_set():
            with suppress(OSError), socket.create_connection(("127.0.0.1", system.port), timeout=5) as visitor:
                visitor.sendall(REQUEST)
                visitor.recv(4096)

    visitors = [threading.Thread(target=come_and_go) for _ in range(3)]
    for visitor in visitors:
        visitor.start()
    try:
        time.sleep(0.5)
        os.kill(one, signal.SIGTERM) if number == signal.SIGTERM else os.kill(system["web"].pid or 0, number)
        time.sleep(0.2)
        for half in halves:
            half.sendall(REQUEST[10:])
        answers = [half.recv(4096) for half in halves]
    finally:
        is_over.set()
        for visitor in visitors:
            visitor.join()

    assert [answer[:12] for answer in answers] == [b"HTTP/1.1 200"] * len(halves)
    log = system["web"].log
    assert log
    assert "Exception in worker" not in log.read_text()
    wait_for(lambda: one not in workers_of(system) and len(ready(system)) == 2, seconds=30)
