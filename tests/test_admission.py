"""Who may hold a thread: the gate for ordinary requests, and the room for those that wait."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
from flask import Flask, request, request_started
from werkzeug.test import Client, create_environ

from chatapi.admission import PERMIT, Permit, RequestGate, WaitingRoom, is_client_gone, waiting_room
from tests.support import race, wait_for


class Busy:
    """A WSGI application that works until it is let go, and counts who is inside; `/fails` raises."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.inside = self.most_inside = 0
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/fails":
            raise RuntimeError("on purpose")
        with self._lock:
            self.inside += 1
            self.most_inside = max(self.most_inside, self.inside)
        if environ["PATH_INFO"] == "/":
            self.go.wait(10)
        start_response("200 OK", [])
        with self._lock:
            self.inside -= 1
        return [b"ok"]


def get(gate: RequestGate, path: str = "/") -> int:
    """Call a route and read its answer to the end."""
    return Client(gate).get(path, buffered=True).status_code


def places(permits: threading.Semaphore) -> int:
    """How many places are free."""
    count = 0
    while permits.acquire(blocking=False):
        count += 1
    for _ in range(count):
        permits.release()
    return count


def gate_of(app: Flask) -> threading.Semaphore:
    """Return the places of the gate that an application's requests pass."""
    permits: list[Permit] = []

    def note(_sender: Flask, **_rest: Any) -> None:
        permits.append(request.environ[PERMIT])

    with request_started.connected_to(note, app):
        app.test_client().get("/health")
    return permits[0]._places


def test_no_more_run_at_once_than_there_are_places() -> None:
    busy = Busy()
    gate = RequestGate(busy, 3)
    with ThreadPoolExecutor(10) as pool:
        answers = [pool.submit(get, gate) for _ in range(10)]
        wait_for(lambda: busy.inside == 3, every=0.01)
        time.sleep(0.2)
        busy.go.set()

        assert [answer.result() for answer in answers] == [200] * 10

    assert busy.most_inside == 3


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/metrics"])
def test_who_watches_is_answered_when_it_is_full(path: str) -> None:
    busy = Busy()
    gate = RequestGate(busy, 1)
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(get, gate)
        wait_for(lambda: busy.inside, every=0.01)

        assert get(gate, path) == 200
        late = pool.submit(get, gate, "/health")
        time.sleep(0.1)
        assert not late.done()
        busy.go.set()
        assert (waiting.result(), late.result()) == (200, 200)


def test_place_is_free_again_after_an_exception() -> None:
    gate = RequestGate(Busy(), 1)
    for _ in range(3):
        with pytest.raises(RuntimeError):
            get(gate, "/fails")
        assert places(gate._places) == 1

    assert get(gate, "/quick") == 200


def test_place_is_held_until_the_answer_is_closed_and_no_longer() -> None:
    gate = RequestGate(Busy(), 1)
    body = gate(create_environ("/quick"), lambda *_: lambda _data: None)
    assert places(gate._places) == 0

    body.close()  # type: ignore[attr-defined]
    body.close()  # type: ignore[attr-defined]

    assert places(gate._places) == 1


def test_permit_is_given_back_once() -> None:
    semaphore = threading.Semaphore(2)
    permit = Permit(semaphore)
    permit.give_back()
    assert places(semaphore) == 2

    permit.take()
    assert places(semaphore) == 1
    permit.give_back()
    permit.give_back()

    assert places(semaphore) == 2


def test_waiting_room_takes_no_more_than_its_bound(app: Flask) -> None:
    room = WaitingRoom(5)

    def enter(_index: int) -> bool:
        with app.test_request_context():
            return room.enter()

    assert sorted(race(20, enter)) == [False] * 15 + [True] * 5
    room.leave()
    assert sorted(race(3, enter)) == [False, False, True]


def test_waiting_room_without_places_takes_nobody(app: Flask) -> None:
    with app.test_request_context():
        assert not WaitingRoom(0).enter()


def test_waiting_room_that_is_closing_takes_nobody(app: Flask) -> None:
    room = WaitingRoom(5)
    room.is_closing = True

    with app.test_request_context():
        assert not room.enter()


@pytest.fixture
def held() -> Permit:
    """The only ordinary place there is, taken."""
    permit = Permit(threading.Semaphore(1))
    permit.take()
    return permit


def test_who_waits_has_given_an_ordinary_place_back_and_queues_up_again(app: Flask, held: Permit) -> None:
    room = WaitingRoom(1)

    def visit() -> None:
        with room.visit() as is_inside:
            assert is_inside
            assert places(held._places) == 1
            assert not room.enter()
            raise RuntimeError("on purpose")

    with app.test_request_context(environ_overrides={PERMIT: held}):
        with pytest.raises(RuntimeError):
            visit()
        assert places(held._places) == 0
        assert room.enter()

    held.give_back()
    assert places(held._places) == 1


@pytest.mark.parametrize("is_closing", [False, True])
def test_who_finds_no_room_keeps_the_ordinary_place(app: Flask, held: Permit, *, is_closing: bool) -> None:
    room = WaitingRoom(1)
    with app.test_request_context():
        assert room.enter()
    room.is_closing = is_closing

    with app.test_request_context(environ_overrides={PERMIT: held}):
        with room.visit() as is_inside:
            assert not is_inside
            assert places(held._places) == 0
        assert places(held._places) == 0

    room.is_closing = False
    room.leave()
    with app.test_request_context():
        assert [room.enter(), room.enter()] == [True, False]


def test_bounds_are_the_operators(make_app: Callable[..., Flask]) -> None:
    app = make_app(WEB_THREADS="7", MAX_OPEN_STREAMS="9")

    assert places(gate_of(app)) == 7
    with app.test_request_context():
        assert [waiting_room().enter() for _ in range(10)] == [True] * 9 + [False]


def test_every_place_is_free_after_answers_and_refusals(make_app: Callable[..., Flask]) -> None:
    app = make_app(WEB_THREADS="4")
    client = app.test_client()

    statuses = [client.get(path).status_code for path in ("/", "/health", "/nowhere", "/chatroom", "/docs")]

    assert statuses == [200, 200, 404, 401, 200]
    assert places(gate_of(app)) == 4


@pytest.mark.parametrize("path", ["/auth/login", "/chatroom"])
def test_clients_that_never_send_their_body_keep_nobody_out(app: Flask, path: str) -> None:
    """As many as there are places, and more, each on a connection that stays silent."""
    gate = RequestGate(lambda *_: [b"ok"], 1)
    silent, sent = threading.Event(), threading.Event()

    class Silent:
        def read(self, _size: int) -> bytes:
            silent.set()
            sent.wait(10)
            return b""

    def call_silent(_index: int) -> None:
        environ = create_environ(path, method="POST", content_length=100, environ_overrides={"wsgi.input": Silent()})
        with closing(gate(environ, lambda *_: None)):  # type: ignore[type-var]
            pass

    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(call_silent, index) for index in range(3)]
        assert silent.wait(5)
        assert places(gate._places) == 1
        sent.set()
        for call in calls:
            call.result(5)


@pytest.mark.parametrize(
    ("length", "is_received", "kept"),
    [(65_536, True, 65_536), (1_048_576, True, 65_537), (1_048_577, False, 1_048_577)],
)
def test_body_is_received_before_its_request_takes_a_place_unless_it_is_too_long_anywhere(
    length: int, *, is_received: bool, kept: int
) -> None:
    places_when_read: list[int] = []

    class Body:
        def read(self, size: int = -1) -> bytes:
            places_when_read.append(places(gate._places))
            return b"x" * size

    gate = RequestGate(lambda environ, _start: [environ["wsgi.input"].read(length)], 2)
    overrides = {"wsgi.input": Body(), "CONTENT_LENGTH": str(length)}
    environ = create_environ("/health", method="POST", environ_overrides=overrides)

    assert len(next(iter(gate(environ, lambda *_: None)))) == kept  # type: ignore[arg-type,return-value]
    assert places_when_read == [2 if is_received else 1]


def test_place_is_free_before_the_answer_is_sent(make_app: Callable[..., Flask]) -> None:
    app = make_app(WEB_THREADS="1")
    permits: list[Permit] = []
    with request_started.connected_to(lambda *_, **__: permits.append(request.environ[PERMIT]), app):
        answer = app.test_client().get("/health", buffered=False)

    assert places(permits[0]._places) == 1
    answer.close()
    assert places(permits[0]._places) == 1


@pytest.mark.parametrize("how", ["closed", "reset", "silent"])
def test_client_that_has_left_is_noticed(app: Flask, how: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        connection, _ = server.accept()
        with connection, client:
            if how == "reset":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if how != "silent":
                client.close()
                time.sleep(0.1)
            with app.test_request_context(environ_overrides={"gunicorn.socket": connection}):
                assert is_client_gone() == (how != "silent")
