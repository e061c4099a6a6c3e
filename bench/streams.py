"""Open streams, while others are served."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections.abc import Iterator, Sequence

import requests

from bench.figures import Figure, Target, percentile
from bench.resources import megabytes, processes_of
from bench.rig import Person, Rig

EVERYTHING = ("web", "worker", "chores", "billing", "sweeper")
SLOWLY = "Tell me a story [[words=3000 chunk_ms=250]]"
"""A reply that takes minutes."""


class Readers:
    """Clients of many streams, in one thread."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._selector = selectors.DefaultSelector()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._is_over = False
        self._is_begun: dict[socket.socket, bool] = {}
        self.received = 0
        self.refused = 0
        self.ended = 0

    def open(self, person: Person, room: str, reply: str) -> None:
        """Follow a reply."""
        connection = socket.create_connection(("127.0.0.1", self._port))
        head = f"GET /chatroom/{room}/message/{reply}/stream HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        connection.sendall(f"{head}Authorization: Bearer {person.token}\r\n\r\n".encode())
        self._is_begun[connection] = False
        self._selector.register(connection, selectors.EVENT_READ)

    @property
    def are_open(self) -> int:
        """How many are being answered."""
        return sum(self._is_begun.values()) - self.ended - self.refused

    def __enter__(self) -> Readers:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_over = True
        self._thread.join()
        for connection in self._is_begun:
            connection.close()

    def _run(self) -> None:
        while not self._is_over:
            for key, _ in self._selector.select(0.2):
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                data = connection.recv(65536)
                if data and not self._is_begun[connection]:
                    self._is_begun[connection] = True
                    self.refused += not data.startswith(b"HTTP/1.1 200")
                self.received += len(data)
                if not data:
                    self.ended += 1
                    self._selector.unregister(connection)


def measure(rig: Rig, rounds: int, seconds: float, count: int, target: Target | None) -> Iterator[Figure]:
    """Open `count` streams, as many of them being written as the worker has threads; look at other requests."""
    people = rig.people(25)
    figures: dict[str, list[float]] = {name: [] for name in ("open", "live", "list", "memory")}
    for _ in range(rounds):
        rig.forget_prompts()
        with rig.running(*EVERYTHING, MAX_OPEN_STREAMS=str(count)) as children:
            webs = processes_of(children["web"], "gunicorn")
            times_of(rig, "/health/live", None, 20)
            before = sum(map(megabytes, webs))
            with Readers(rig.port) as readers:
                open_streams(rig, people, readers, count)
                figures["live"].append(percentile(times_of(rig, "/health/live", None, round(seconds * 20)), 0.99))
                figures["list"].append(percentile(times_of(rig, "/chatroom", people[0], round(seconds * 20)), 0.99))
                figures["open"].append(readers.are_open)
                figures["memory"].append((sum(map(megabytes, webs)) - before) / count)
            for child in children.values():
                child.kill()  # Replies that take minutes are not waited for.
    yield Figure(f"of {count} streams open", figures["open"])
    yield Figure(f"/health/live beside {count} streams, p99", figures["live"], "ms", target)
    yield Figure(f"room list beside {count} streams, p99", figures["list"], "ms")
    yield Figure(f"web: each of {count} open streams", figures["memory"], "MB")


def open_streams(rig: Rig, people: Sequence[Person], readers: Readers, count: int) -> None:
    """Send `count` prompts, each in a room of its own, and follow their replies."""
    url = f"http://127.0.0.1:{rig.port}"
    with requests.Session() as session:
        for index in range(count):
            person = people[index % len(people)]
            room = session.post(f"{url}/chatroom", json={"title": "A story"}, headers=person.headers).json()["chatroom"]
            path = f"{url}/chatroom/{room['id']}/message"
            sent = session.post(path, json={"content": SLOWLY}, headers=person.headers).json()
            readers.open(person, room["id"], sent["ai_message"]["id"])
    time.sleep(3)


def times_of(rig: Rig, path: str, person: Person | None, count: int) -> list[float]:
    """Return the milliseconds of requests on connections of their own."""
    found = []
    for _ in range(count):
        began_at = time.perf_counter()
        headers = person.headers if person else {}
        requests.get(f"http://127.0.0.1:{rig.port}{path}", headers=headers, timeout=30).raise_for_status()
        found.append((time.perf_counter() - began_at) * 1000)
        time.sleep(0.02)
    return found
