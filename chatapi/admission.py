"""Who may hold a thread: ordinary requests a few at a time, and those that wait for replies beside them, in bounds.

A web process has `WEB_THREADS` + `MAX_OPEN_STREAMS` threads. Ordinary requests share the first number, as there are
database connections for no more; streams and waits have the others to themselves, so neither starves the other.
"""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, cast

from flask import Flask, current_app, request
from werkzeug.wsgi import ClosingIterator

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

PERMIT = "chatapi.permit"
UNGATED = frozenset({"/health/live", "/health/ready", "/metrics"})
"""Who watches the service must be answered just when it is full."""


class Permit:
    """A request's place among the ordinary ones."""

    def __init__(self, places: threading.Semaphore) -> None:
        self._places = places
        self._is_held = False

    def take(self) -> None:
        """Wait for a place."""
        self._places.acquire()
        self._is_held = True

    def give_back(self) -> None:
        """Make room; harmless when it was done already."""
        if self._is_held:
            self._is_held = False
            self._places.release()


class RequestGate:
    """WSGI middleware that lets `most` ordinary requests run at once; the others wait their turn."""

    def __init__(self, application: WSGIApplication, most: int) -> None:
        self._application = application
        self._places = threading.Semaphore(most)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] in UNGATED:
            return self._application(environ, start_response)
        permit = environ[PERMIT] = Permit(self._places)
        permit.take()
        try:
            body = self._application(environ, start_response)
        except BaseException:
            permit.give_back()
            raise
        return ClosingIterator(body, permit.give_back)


class WaitingRoom:
    """Counts who waits for replies in this process, be it on a stream or by `Prefer: wait`; no more than `most`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._inside = 0
        self._lock = threading.Lock()
        self.is_closing = False
        """Set when the process is asked to stop: whoever waits shall leave."""

    def enter(self) -> bool:
        """Take a place, and give one of the ordinary back; False when there is none left."""
        with self._lock:
            if self.is_closing or self._inside >= self._most:
                return False
            self._inside += 1
        permit = request.environ.get(PERMIT)
        if permit is not None:
            cast("Permit", permit).give_back()
        return True

    def leave(self) -> None:
        """Give a place back."""
        with self._lock:
            self._inside -= 1

    @contextmanager
    def visit(self) -> Iterator[bool]:
        """Be among those who wait within the block, if there is a place (True), and among the ordinary ones after."""
        is_inside = self.enter()
        try:
            yield is_inside
        finally:
            if is_inside:
                self.leave()
                permit = request.environ.get(PERMIT)
                if permit is not None:
                    cast("Permit", permit).take()


def init_admission(app: Flask) -> None:
    """Bound what runs at once."""
    app.wsgi_app = RequestGate(app.wsgi_app, app.config["WEB_THREADS"])  # type: ignore[method-assign]
    app.extensions["waiting_room"] = WaitingRoom(app.config["MAX_OPEN_STREAMS"])


def waiting_room() -> WaitingRoom:
    """Return this process's."""
    return cast("WaitingRoom", current_app.extensions["waiting_room"])


def is_client_gone() -> bool:
    """Return whether the client has closed its connection, as far as the server lets us see.

    Nothing would tell before the next write fails, and a place would be held until then.
    """
    connection = request.environ.get("gunicorn.socket")
    if connection is None:
        return False
    poll = select.poll()
    with suppress(OSError, ValueError):  # It may be closed here, or cannot be looked into, such as TLS.
        poll.register(connection, select.POLLIN)
        return bool(poll.poll(0)) and cast("bytes", connection.recv(1, socket.MSG_PEEK)) == b""
    return False
