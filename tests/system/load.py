"""People who use the service all the time, each on a connection that is kept alive, and repeat no request."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests import leaks
from tests.support import Account


class Load:
    """What came of everybody's requests: answers by status, and failures in words."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._is_over = threading.Event()
        self._lock = threading.Lock()
        self.statuses: Counter[int] = Counter()
        self.failures: list[str] = []
        self.waited: Counter[str] = Counter()
        self.slowest = 0.0

    @contextmanager
    def running(self, account: Account, room_id: str, people: int = 2, waits: int = 2) -> Iterator[None]:
        """Have so many people read, send and wait within the block."""
        work = [self._read] * people + [self._send] * people + [self._wait] * waits
        threads = [threading.Thread(target=self._run, args=(each, account, room_id)) for each in work]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._is_over.set()
            for thread in threads:
                thread.join()

    def _run(self, work: Any, account: Account, room_id: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=100)
        while not self._is_over.is_set():
            work(connection, account, room_id)
            time.sleep(0.05)
        connection.close()

    def _read(self, connection: http.client.HTTPConnection, account: Account, _room_id: str) -> None:
        self._call(connection, account, "GET", "/user/me")

    def _send(self, connection: http.client.HTTPConnection, account: Account, _room_id: str) -> None:
        self._call(connection, account, "POST", "/chatroom", {"title": "under load"})

    def _wait(self, connection: http.client.HTTPConnection, account: Account, room_id: str) -> None:
        path = f"/chatroom/{room_id}/message"
        answer = self._call(connection, account, "POST", path, {"content": "[[fault=hang]]"}, Prefer="wait=10")
        if not answer:
            return
        reply = answer["ai_message"]
        with self._lock:
            self.waited[reply["status"]] += 1
        self._call(connection, account, "POST", f"{path}/{reply['id']}/stop")

    def _call(
        self,
        connection: http.client.HTTPConnection,
        account: Account,
        method: str,
        path: str,
        body: Any = None,
        **headers: str,
    ) -> Any:
        """Return the answer's body; None for a failure."""
        began_at = time.monotonic()
        more = {"Content-Type": "application/json"} if body is not None else {}
        try:
            connection.request(
                method, path, json.dumps(body) if body is not None else None, {**account.headers, **more, **headers}
            )
            response = connection.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            with self._lock:
                self.failures.append(f"{method} {path}: {error!r}")
            return None
        leaks.SUITE.note_answer(method, path, body, response.status, response.headers.items(), data)
        with self._lock:
            self.statuses[response.status] += 1
            if "Prefer" not in headers:
                self.slowest = max(self.slowest, time.monotonic() - began_at)
            if response.status >= 400:
                self.failures.append(f"{method} {path}: {response.status} {data[:200]!r}")
        return json.loads(data) if response.status < 400 else None
