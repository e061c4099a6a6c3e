"""The lobby by itself: who is ended when there is no more room, and what is served when much is held."""

from __future__ import annotations

import selectors
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

import chatapi.lobby
from chatapi.arrival import Arrival
from chatapi.lobby import SMALL_BYTES, Lobby

HEAD = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n"


class Room:
    """A lobby, and what came of the connections in it."""

    def __init__(self, poller: selectors.BaseSelector) -> None:
        self.served: list[Any] = []
        self.closed: list[Any] = []
        self.lobby = Lobby(poller, self._serve, self._close)

    def _serve(self, connection: Any, _arrival: Arrival) -> None:
        self.served.append(connection)

    def _close(self, connection: Any) -> None:
        connection.sock.close()
        self.closed.append(connection)

    def visit(self, data: bytes) -> tuple[Any, socket.socket]:
        """Have a client send this; return our end of the connection and the client's."""
        ours, theirs = socket.socketpair()
        theirs.sendall(data)
        connection = SimpleNamespace(sock=ours, parser=None)
        # No mapping compares them by what they hold.
        visitor = type("Connection", (), vars(connection))()
        self.lobby.receive(visitor)
        return visitor, theirs


@pytest.fixture
def room() -> Iterator[Room]:
    with selectors.DefaultSelector() as poller:
        yield Room(poller)


@pytest.mark.parametrize("begun", [b"", b"GET / HT", HEAD % 9 + b"{"])
def test_oldest_makes_room_at_once(room: Room, begun: bytes) -> None:
    oldest, client = room.visit(begun)
    younger, other = room.visit(begun)

    room.lobby.end_oldest()

    assert room.closed == [oldest]
    assert (b" 408 " in client.recv(4096)) == bool(begun)
    client.close()
    other.close()
    younger.sock.close()


def test_nobody_makes_room_when_nobody_waits(room: Room) -> None:
    room.lobby.end_oldest()

    assert room.closed == []


@pytest.mark.parametrize(("served_bytes", "is_ended"), [(0, False), (60_000, False), (85_000, True)])
def test_oldest_that_is_on_its_way_is_ended_when_it_and_those_that_are_served_are_too_much(
    room: Room, monkeypatch: pytest.MonkeyPatch, served_bytes: int, *, is_ended: bool
) -> None:
    monkeypatch.setattr(chatapi.lobby, "MAX_BYTES", 100_000)
    visitors = [room.visit(HEAD % 50_000 + b"x" * 10_000) for _ in range(2)]
    room.lobby.served_bytes = served_bytes

    room.lobby.sweep()

    said = []
    for ours, client in visitors:
        client.setblocking(False)
        try:
            said.append(client.recv(4096))
        except BlockingIOError:
            said.append(b"")
        client.close()
        ours.sock.close()
    assert [b" 408 " in each for each in said] == [is_ended, False]


@pytest.mark.parametrize(("length", "is_served"), [(SMALL_BYTES - 100, True), (SMALL_BYTES + 1, False)])
def test_long_requests_are_refused_when_much_is_held(
    room: Room, monkeypatch: pytest.MonkeyPatch, length: int, *, is_served: bool
) -> None:
    monkeypatch.setattr(chatapi.lobby, "MAX_BYTES", 200_000)
    room.lobby.served_bytes = 150_000
    request = HEAD % length + b"x" * length

    visitor, client = room.visit(request[:1000])
    client.settimeout(5)
    sent = 1000
    while visitor not in room.served and visitor in room.lobby._waits and sent < len(request):
        client.sendall(request[sent : sent + 8192])
        sent += 8192
        room.lobby._read(visitor, room.lobby._waits[visitor])

    assert (visitor in room.served) is is_served
    if not is_served:
        assert b" 503 " in client.recv(4096)
    client.close()
    visitor.sock.close()
