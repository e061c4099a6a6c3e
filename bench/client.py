"""A client that costs little itself: one connection that is kept, and no library around it."""

from __future__ import annotations

import http.client
import json
import time
from typing import Any


class Client:
    """One connection to 127.0.0.1."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def call(
        self, method: str, path: str, token: str | None = None, body: Any = None, **headers: str
    ) -> tuple[float, Any]:
        """Return the milliseconds until a request was answered, and its answer, which must be a success."""
        began_at = time.perf_counter()
        response = self._send(method, path, token, body, headers)
        data = response.read()
        took = (time.perf_counter() - began_at) * 1000
        assert response.status < 300, (method, path, response.status, data)
        return took, json.loads(data) if response.getheader("Content-Type") == "application/json" else data

    def first_text(self, path: str, token: str) -> float:
        """Follow a stream to its end; return when its first text, or its end, had come (`time.perf_counter`)."""
        response, came_at = self._send("GET", path, token, None, {}), 0.0
        for line in response:
            if not came_at and line in {b"event: delta\n", b"event: done\n"}:
                came_at = time.perf_counter()
        assert came_at, path
        return came_at

    def close(self) -> None:
        """Close it."""
        self._connection.close()

    def _send(
        self, method: str, path: str, token: str | None, body: Any, headers: dict[str, str]
    ) -> http.client.HTTPResponse:
        sent = None if body is None else json.dumps(body)
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        if sent is not None:
            headers["Content-Type"] = "application/json"
        self._connection.request(method, path, sent, headers)
        return self._connection.getresponse()
