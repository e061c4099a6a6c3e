"""Who may hold a thread: ordinary requests a few at a time, and those that wait for replies beside them, in bounds.

A web process has `WEB_THREADS` + `MAX_OPEN_STREAMS` threads. Ordinary requests share the first number, as there are
database connections for no more; streams and waits have the others to themselves, so neither starves the other.
"""

from __future__ import annotations

import io
import select
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from flask import Flask, current_app, request
from werkzeug.wsgi import ClosingIterator

from chatapi import metrics
from chatapi.arrival import MAX_DIGITS
from chatapi.parsing import MAX_WEBHOOK_BYTES, max_body_bytes

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
        if not self._places.acquire(blocking=False):
            metrics.wait_begun()
            self._places.acquire()
            metrics.wait_ended()
        self._is_held = True
        metrics.place_taken()

    def give_back(self) -> None:
        """Make room; harmless when it was done already."""
        if self._is_held:
            self._is_held = False
            self._places.release()
            metrics.place_given_back()


class RequestGate:
    """WSGI middleware that lets `most` ordinary requests run at once; the others wait their turn.

    A body is read before its request takes a place: otherwise, on a server that calls the application before the body
    has arrived, a few clients that announce one and send nothing would keep everybody out.
    """

    def __init__(self, application: WSGIApplication, most: int) -> None:
        self._application = application
        self._places = threading.Semaphore(most)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] in UNGATED:
            return self._application(environ, start_response)
        _receive_body(environ)
        permit = environ[PERMIT] = Permit(self._places)
        permit.take()
        try:
            body = self._application(environ, start_response)
        except BaseException:
            permit.give_back()
            raise
        return ClosingIterator(body, permit.give_back)


class _CutBody:
    """Stands for a body that did not arrive."""

    def read(self, _size: int = -1) -> bytes:
        """Fail, as reading it has failed."""
        raise TimeoutError("The body did not arrive")


def _receive_body(environ: WSGIEnvironment) -> None:
    """Take the request's body off the connection; whoever reads it finds out if it did not arrive.

    So is one that is longer than it may be here but not anywhere, as its end is where the next request begins. One that
    is longer still is left to be refused unread, and its connection to be closed (chatapi/web_worker.py).
    """
    length = environ.get("CONTENT_LENGTH") or ""
    is_chunked = bool(environ.get("wsgi.input_terminated")) and not length
    announced = int(length) if length.isascii() and length.isdigit() and len(length) <= MAX_DIGITS else 0
    if not is_chunked and not 0 < announced <= MAX_WEBHOOK_BYTES:
        return
    try:
        body = environ["wsgi.input"].read(MAX_WEBHOOK_BYTES + 1 if is_chunked else announced)
        # What is refused need not be held until its turn comes.
        body = body[: max_body_bytes(environ["PATH_INFO"]) + 1]
    except Exception:  # noqa: BLE001 - each server has its own for what is wrong with a body
        environ["wsgi.input"] = _CutBody()
    else:
        environ["wsgi.input"] = io.BytesIO(body)


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
        give_place_back()
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


def give_place_back(_error: BaseException | None = None) -> None:
    """Make room for the next request; to be called when a request is done with, and its answer still to be sent.

    A client that does not read its answer holds a thread for a while, and never a place. Answers that are made while
    they are sent, such as exports, are done with when they are sent.
    """
    permit = request.environ.get(PERMIT)
    if permit is not None:
        cast("Permit", permit).give_back()


def init_admission(app: Flask) -> None:
    """Bound what runs at once."""
    app.teardown_request(give_place_back)
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
    try:
        poll.register(connection, select.POLLIN)
        return bool(poll.poll(0)) and cast("bytes", connection.recv(1, socket.MSG_PEEK)) == b""
    except ConnectionError:  # It was reset.
        return True
    except (OSError, ValueError):  # It cannot be looked into, such as TLS.
        return False
