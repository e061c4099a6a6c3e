"""Clients that begin a request and do not end it: they keep nobody waiting, and are ended."""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import pytest

from chatapi.lobby import BODY_SECONDS, HEAD_SECONDS
from tests.support import Account
from tests.system.support import System

HEAD = b"POST /auth/login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
KINDS = {
    "silent": b"",
    "request line": b"GET /user/me HT",
    "dripping head": b"GET /user/me HTTP/1.1\r\nX-Drip: ",
    "dripping body": HEAD + b"Content-Length: 500\r\n\r\n{",
    "chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\n64\r\n{",
    "announced body": HEAD + b"Expect: 100-continue\r\nContent-Length: 500\r\n\r\n",
    "second request": b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\nGET /user",
    "does not hang up": b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
}
SLACK = 4.0
"""For the sweep, once a second, and a busy machine."""


@dataclass
class Visitor:
    """One who has sent something, and what came of it."""

    kind: str
    connection: socket.socket
    came_at: float = field(default_factory=time.monotonic)
    received: bytes = b""
    seconds: float | None = None


@contextmanager
def visited(system: System, count: int, kinds: list[str]) -> Iterator[list[Visitor]]:
    """Have so many connections open, of all kinds in turns."""
    visitors = []
    with ExitStack() as stack:
        for index in range(count):
            kind = kinds[index % len(kinds)]
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", system.port), timeout=20))
            connection.sendall(KINDS[kind])
            # Who has asked for something is answered first: that is work, and not what is tested.
            answer = connection.recv(65536) if b"/health/live" in KINDS[kind] else b""
            visitors.append(Visitor(kind, connection, received=answer))
        yield visitors


def read_and_drip(visitors: list[Visitor], seconds: float) -> None:
    """Send a byte each other second where that is the kind, and note what comes, until all have been ended."""
    until, drip_at = time.monotonic() + seconds, 0.0
    with selectors.DefaultSelector() as selector:
        for visitor in visitors:
            selector.register(visitor.connection, selectors.EVENT_READ, visitor)
        while selector.get_map() and time.monotonic() < until:
            for key, _ in selector.select(0.2):
                _read(selector, key.data)
            if time.monotonic() > drip_at:
                drip_at = time.monotonic() + 2
                for key in list(selector.get_map().values()):
                    _drip(key.data)


def _read(selector: selectors.BaseSelector, visitor: Visitor) -> None:
    try:
        data = visitor.connection.recv(65536)
    except ConnectionError:
        data = b""
    visitor.received += data
    if not data:
        visitor.seconds = time.monotonic() - visitor.came_at
        selector.unregister(visitor.connection)


def _drip(visitor: Visitor) -> None:
    if visitor.kind.startswith("dripping"):
        try:
            visitor.connection.send(b"x")
        except OSError:
            return


def ask(system: System, times: int) -> list[float]:
    """Return how long ordinary requests took, all of which are answered."""
    answers = [system.client.get(path) for path in ("/health", "/health/live") * (times // 2)]
    assert {answer.status_code for answer in answers} == {200}
    return [answer.seconds for answer in answers]


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_requests_are_answered_in_under_a_second_when_many_connections_are_half_open(
    system: System, someone: Account, count: int
) -> None:
    with visited(system, count, list(KINDS)):
        seconds = ask(system, 20)
        answers = [someone.call("POST", "/chatroom", {"title": "meanwhile"}) for _ in range(5)]

    assert max(seconds) < 1
    assert {answer.status_code for answer in answers} == {201}
    assert max(answer.seconds for answer in answers) < 1


@pytest.mark.slow
def test_requests_are_answered_in_under_a_second_when_many_bodies_are_half_sent(
    system: System, someone: Account
) -> None:
    with visited(system, 1200, ["dripping body", "chunks", "announced body"]):
        seconds = ask(system, 20)
        answers = [someone.call("POST", "/chatroom", {"title": "meanwhile"}) for _ in range(5)]

    assert max(seconds) < 1
    assert {answer.status_code for answer in answers} == {201}


@pytest.mark.slow
def test_half_open_connections_are_ended_within_their_bounds_however_they_drip(system: System) -> None:
    with visited(system, 80, list(KINDS)) as visitors:
        read_and_drip(visitors, HEAD_SECONDS + BODY_SECONDS + SLACK)

    assert [visitor.kind for visitor in visitors if visitor.seconds is None] == []
    for visitor in visitors:
        has_body = "body" in visitor.kind or visitor.kind == "chunks"
        if visitor.kind != "does not hang up":
            assert abs(visitor.seconds - (BODY_SECONDS if has_body else HEAD_SECONDS)) < SLACK, visitor.kind  # type: ignore[operator]
    ends = {visitor.kind: visitor.received.split(b"\r\n\r\n")[-2:] for visitor in visitors}
    assert ends.pop("silent") == [b""]
    assert ends.pop("does not hang up")[0].startswith(b"HTTP/1.1 200 ")
    for kind, (head, body) in ends.items():
        assert b"HTTP/1.1 408 Request Timeout\r\n" in head, kind
        assert b'"error": "request_timeout"' in body, kind


def test_clients_that_do_not_hang_up_keep_nobody_waiting(system: System) -> None:
    """gunicorn's own worker waits two seconds for each of them, and accepts nobody meanwhile."""
    with visited(system, 40, ["does not hang up"]):
        assert max(ask(system, 6)) < 1
