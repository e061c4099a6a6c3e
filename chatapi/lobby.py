"""Where a web worker's connections wait for their clients, and hold no thread meanwhile.

Either for the rest of a request, or for the client to hang up after the last answer. Everything here runs in the main
loop, and nothing in it waits.
"""

from __future__ import annotations

import math
import selectors
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any

from gunicorn import util

from chatapi.arrival import Arrival, State

HEAD_SECONDS = 10.0
"""From the first byte, on a new connection from its beginning, to the end of the head, however it drips in."""
BODY_SECONDS = 20.0
"""For all of the body after that."""
HANG_UP_SECONDS = 2.0
"""Closing at once would reset the connection of who still sends, and take the answer from it before it is read."""
MAX_BYTES = 64 * 1024 * 1024
"""Of all requests on the way, and of those that are served."""
SMALL_BYTES = 128 * 1024
"""What is no longer is served in any case."""
PIECE_BYTES = 64 * 1024


@dataclass
class _Wait:
    """What is awaited, a request or (without an arrival) the end, and until when."""

    arrival: Arrival | None
    deadline: float
    is_for_body: bool = False

    @property
    def has_begun(self) -> bool:
        return self.arrival is not None and bool(self.arrival.data)


class Lobby:
    """Takes gunicorn's connections; each leaves by `serve`, with a whole request, or by `close`."""

    def __init__(self, poller: Any, serve: Callable[[Any, Arrival], None], close: Callable[[Any], None]) -> None:
        self._poller = poller
        self._serve = serve
        self._close = close
        self._waits: dict[Any, _Wait] = {}
        """The oldest first."""
        self.served_bytes = 0

    def receive(self, conn: Any) -> None:
        """Wait for a whole request, of which the parser's buffer may hold the beginning."""
        if conn.sock.gettimeout() != 0.0:
            conn.sock.setblocking(False)
        arrival = Arrival(conn.parser.unreader.take_buffered() if conn.parser else b"")
        wait = _Wait(arrival, time.monotonic() + HEAD_SECONDS)
        if arrival.data:
            self._judge(conn, wait, arrival)
        else:
            self._read(conn, wait)

    def see_off(self, conn: Any) -> None:
        """Send nothing more, and wait for the client to hang up."""
        self._leave(conn)
        try:
            conn.sock.setblocking(False)
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._close(conn)
        else:
            self._stay(conn, _Wait(None, time.monotonic() + HANG_UP_SECONDS))

    def sweep(self, silent_until: float = math.inf) -> None:
        """End what takes too long or too much; what has not begun, at the time given at the latest."""
        now, held = time.monotonic(), self.served_bytes
        for conn, wait in reversed(list(self._waits.items())):
            held += len(wait.arrival.data) if wait.arrival else 0
            if now > wait.deadline or held > MAX_BYTES or (now > silent_until and not wait.has_begun):
                self._end(conn, wait)

    def end_oldest(self) -> None:
        """Make room at once. Whoever sends a request without a pause is never the oldest."""
        conn, wait = next(iter(self._waits.items()), (None, None))
        if conn is None or wait is None:
            return
        if wait.has_begun:
            with suppress(OSError):
                util.write_error(conn.sock, HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.REQUEST_TIMEOUT.phrase, "")
        self._leave(conn)
        self._close(conn)

    def is_full_for(self, arrival: Arrival) -> bool:
        """Return whether so much is held already that a long request cannot be served as well."""
        return len(arrival.data) > SMALL_BYTES and self.served_bytes + len(arrival.data) > MAX_BYTES

    def _end(self, conn: Any, wait: _Wait) -> None:
        if wait.has_begun:
            self._refuse(conn, HTTPStatus.REQUEST_TIMEOUT)
        else:
            self._leave(conn)
            self._close(conn)

    def _refuse(self, conn: Any, status: HTTPStatus) -> None:
        with suppress(OSError):
            util.write_error(conn.sock, status.value, status.phrase, "")
        self.see_off(conn)

    def _on_readable(self, conn: Any, wait: _Wait, _sock: Any) -> None:
        # It may have left since the poller saw it.
        if self._waits.get(conn) is wait:
            self._read(conn, wait)

    def _read(self, conn: Any, wait: _Wait) -> None:
        try:
            data = conn.sock.recv(PIECE_BYTES)
        except BlockingIOError:
            self._stay(conn, wait)
            return
        except OSError:
            data = b""
        if not data and wait.has_begun:  # It may have closed its side alone.
            self._refuse(conn, HTTPStatus.BAD_REQUEST)
        elif not data:
            self._leave(conn)
            self._close(conn)
        elif wait.arrival is not None:
            wait.arrival.add(data)
            self._judge(conn, wait, wait.arrival)

    def _judge(self, conn: Any, wait: _Wait, arrival: Arrival) -> None:
        """Serve what is whole, refuse what can never be, wait for the rest."""
        if arrival.state is State.REFUSED:
            self._refuse(conn, arrival.refusal)
        elif self.is_full_for(arrival):
            self._refuse(conn, HTTPStatus.SERVICE_UNAVAILABLE)
        elif arrival.state in (State.WHOLE, State.TOO_LONG):
            self._leave(conn)
            self._serve(conn, arrival)
        else:
            if arrival.state is State.BODY and not wait.is_for_body:
                wait.is_for_body, wait.deadline = True, time.monotonic() + BODY_SECONDS
                if arrival.expects_continue:
                    with suppress(OSError):
                        conn.sock.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._stay(conn, wait)

    def _stay(self, conn: Any, wait: _Wait) -> None:
        if conn not in self._waits:
            self._waits[conn] = wait
            self._poller.register(conn.sock, selectors.EVENT_READ, partial(self._on_readable, conn, wait))

    def _leave(self, conn: Any) -> None:
        if self._waits.pop(conn, None) is not None:
            self._poller.unregister(conn.sock)
