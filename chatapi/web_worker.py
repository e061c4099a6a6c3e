"""gunicorn's gthread worker, but that no thread waits for a client (docs/decisions/0030).

A connection is in the lobby until a request has arrived on it whole, and again after the last. Nothing here knows the
application. gunicorn's master imports it, and does not read it anew on a reload.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers.gthread import STOP_KEEPALIVE_LINGER, ThreadWorker

from chatapi.arrival import Arrival, State
from chatapi.balance import MARGIN, Load
from chatapi.lobby import Lobby

STALL_SECONDS = 15
"""A floor: no read in a thread lasts longer, should gunicorn's parser ever ask for more than has come."""

SWEEP_SECONDS = 0.5
LEAVE_SECONDS = 0.005
"""For how long a new connection is left to workers that have fewer; they may be busy, or hang."""
TAKE_SECONDS = 0.05
"""For how long nothing is left to a worker that has not stirred."""
PIECE_BYTES = 8192

TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)


class Pieces(SocketUnreader):  # type: ignore[misc]
    """Gives the parser what has come in pieces such as a socket would.

    It copies what it was given and has no use for yet at each chunk of a body: all the rest, if it had it all.
    """

    def read(self, size: int | None = None, read_ahead: int | None = None) -> bytes:
        """Return `size` bytes, or a piece."""
        held = self.buf.getbuffer().nbytes
        if size is None and held > PIECE_BYTES:
            size = min(held, max(PIECE_BYTES, read_ahead or 0))
        return bytes(super().read(size, read_ahead))


class LobbyWorker(ThreadWorker):  # type: ignore[misc]
    """All methods are gunicorn's own, extended."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.when_stopping: Callable[[], None] = lambda: None
        """Called, in any thread, once the worker is to end, whatever the reason; perhaps more than once."""
        self.load: Load | None = None
        """Given by the server, where others are to know how many connections this worker has."""
        self._leaves_until, self._takes_until = 0.0, 0.0
        self._least = 0
        super().__init__(*args, **options)

    @property
    def alive(self) -> bool:
        """Whether the worker takes connections; a signal ends that, and `max_requests`."""
        return self._is_alive

    @alive.setter
    def alive(self, value: bool) -> None:
        self._is_alive = value
        if not value:
            self._stopped_at = time.monotonic()
            self.when_stopping()

    def init_process(self) -> None:
        """Begin to work."""
        for listener in self.sockets:  # Its connections take this over.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", STALL_SECONDS, 0))
        super().init_process()

    def run(self) -> None:
        """Work until the end."""
        self._lobby = Lobby(self.poller, self._serve, self._close)
        self._next_sweep_at = 0.0
        if not self.alive:  # It was asked to stop while it was starting, when nobody could be told.
            self.when_stopping()
        super().run()

    def is_parent_alive(self) -> bool:
        """Return whether the master is there; without it the worker ends."""
        is_there = bool(super().is_parent_alive())
        if not is_there:
            self.alive = False
        return is_there

    def set_accept_enabled(self, enabled: bool) -> None:
        """Begin or pause to accept. At the end of the worker, take in who is in the queue and leave it for good.

        The kernel would connect clients to an open listener as long as the last worker serves its last requests, and
        reset them then. A proxy that is refused a connection turns to another instance.
        """
        if enabled and self._leaves_until:
            return
        super().set_accept_enabled(enabled)
        if not enabled and not self.alive:
            for listener in self.sockets:
                queue = select.poll()
                queue.register(listener, select.POLLIN)
                for _ in range(self.cfg.backlog):  # More may come as fast as these are taken.
                    if not queue.poll(0):
                        break
                    self.accept(listener)
                listener.close()

    def accept(self, listener: Any) -> None:
        """Accept a connection, or leave it for a moment to a worker that has fewer."""
        if self._begins_to_leave():
            self.set_accept_enabled(False)
            return
        try:
            super().accept(listener)
        except OSError as error:
            if error.errno not in TOO_MANY_FILES:
                raise
            self.log.warning("There are more connections than file descriptors")
            self._lobby.end_oldest()
            time.sleep(0.01)

    def enqueue_req(self, conn: Any) -> None:
        """Wait for a request on a connection that is new, or is readable, or has the beginning of one in its buffer."""
        if self.nr_conns >= self.worker_connections:
            self._lobby.end_oldest()
        if self.cfg.is_ssl:
            super().enqueue_req(conn)
        else:
            self._lobby.receive(conn)

    def handle(self, conn: Any) -> Any:
        """Serve a request, in a thread."""
        if not self.cfg.is_ssl:
            conn.data_ready = True
            conn.init()
            if not isinstance(conn.parser.unreader, Pieces):
                conn.parser.unreader = Pieces(conn.sock)
            conn.parser.unreader.unread(bytes(conn.arrival.data))
        return super().handle(conn)

    def handle_request(self, req: Any, conn: Any) -> Any:
        """Serve a request that has been parsed."""
        if not self.cfg.is_ssl:
            req._expected_100_continue = False  # noqa: SLF001 - who waits for that word has had it
            if conn.arrival.state is State.TOO_LONG or _wants_close(req.headers):
                req.force_close()
            conn.arrival = None  # Its bytes are the parser's now.
        return super().handle_request(req, conn)

    def finish_request(self, conn: Any, fs: Future[Any]) -> None:
        """Go on with a connection after its answer; gunicorn halts the main loop until the client hangs up."""
        self._lobby.served_bytes -= getattr(conn, "request_bytes", 0)
        if self.cfg.is_ssl or not (fs.cancelled() or fs.exception() or not fs.result()):
            super().finish_request(conn, fs)
        else:
            self._lobby.see_off(conn)

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """Wait for whatever comes next, and do it; accept what was left to others and is still there."""
        if self._leaves_until and self.alive:
            timeout = min(timeout, max(0.0, self._leaves_until - time.monotonic()))
        super().wait_for_and_dispatch_events(timeout)
        if self._leaves_until and self.alive and time.monotonic() >= self._leaves_until:
            self._take_what_was_left()
            self._leaves_until = 0.0

    def murder_pending(self) -> None:
        """End what has taken too long; called at each turn of the main loop."""
        super().murder_pending()
        if self.load and self.alive:
            self.load.tell(self.nr_conns)
        elif self.load:
            self.load.retire()
        if time.monotonic() < self._next_sweep_at:
            return
        self._next_sweep_at = time.monotonic() + SWEEP_SECONDS
        if self.alive:
            self._lobby.sweep()
        else:
            self._lobby.sweep(silent_until=self._stopped_at + STOP_KEEPALIVE_LINGER)

    def _begins_to_leave(self) -> bool:
        now = time.monotonic()
        if self.load is None or not self.alive or self._leaves_until or now < self._takes_until:
            return False
        self.load.tell(self.nr_conns)
        self._least = self.load.least_of_others(self.nr_conns)
        if self._least > self.nr_conns - MARGIN:
            return False
        self._leaves_until = now + LEAVE_SECONDS
        return True

    def _take_what_was_left(self) -> None:
        """Accept some of what is still there, the more the more there are: a thousand are not to come one by one."""
        before = self.nr_conns
        for _ in range(1 + before // 8):
            for listener in self.sockets:
                if self.nr_conns < self.worker_connections:
                    self.accept(listener)
        if self.load and self.nr_conns > before and self.load.least_of_others(before) == self._least:
            self._takes_until = time.monotonic() + TAKE_SECONDS

    def _serve(self, conn: Any, arrival: Arrival) -> None:
        conn.arrival = arrival
        conn.request_bytes = len(arrival.data)
        self._lobby.served_bytes += conn.request_bytes
        super().enqueue_req(conn)

    def _close(self, conn: Any) -> None:
        self.nr_conns -= 1
        conn.close()


def _wants_close(headers: Iterable[tuple[str, str]]) -> bool:
    """Return whether the client will send no other request (RFC 9112, 9.6); gunicorn knows the word by itself only."""
    words = (word for name, value in headers if name == "CONNECTION" for word in value.lower().split(","))
    return any(word.strip() == "close" for word in words)
