"""The system in its real processes, on servers of its own that can be killed."""

from __future__ import annotations

import os
import signal
from typing import Any

import psycopg2
import psycopg2.extras
import requests

from chatapi.dev.embedded import free_port
from chatapi.dev.processes import Child, stop_all
from chatapi.dev.system import health, system_children
from tests import leaks
from tests.support import Account, Services, wait_for


class HttpAnswer:
    """A response as Flask's test client would show it."""

    def __init__(self, response: requests.Response) -> None:
        self.status_code = response.status_code
        self.headers = response.headers
        self.seconds = response.elapsed.total_seconds()
        self._response = response

    def get_json(self) -> Any:
        return self._response.json()


class HttpClient:
    """Calls the running system in the way of Flask's test client."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    def open(self, path: str, method: str = "GET", json: Any = None, headers: Any = None) -> HttpAnswer:
        response = requests.request(method, self._url + path, json=json, headers=headers, timeout=30)
        leaks.SUITE.note_answer(method, path, json, response.status_code, response.headers.items(), response.content)
        return HttpAnswer(response)

    def get(self, path: str, **options: Any) -> HttpAnswer:
        return self.open(path, "GET", **options)

    def post(self, path: str, **options: Any) -> HttpAnswer:
        return self.open(path, "POST", **options)


class System:
    """Web, worker, chores and sweeper on servers of their own."""

    def __init__(self) -> None:
        self.services = Services()
        self.services.start()
        self.port = free_port()
        self.client = HttpClient(self.port)
        environ = {**os.environ, **self.services.environ, "BASIC_DAILY_PROMPTS": "1000", "WEB_CONCURRENCY": "2"}
        self.logs = self.services.folder / "logs"
        self.logs.mkdir()
        self.children = {child.name: child for child in system_children(environ, self.port, self.logs)}
        for child in self.children.values():
            child.start()
        wait_for(lambda: health(self.port))

    def __getitem__(self, name: str) -> Child:
        return self.children[name]

    def kill(self, name: str) -> None:
        """End a process and all it started with SIGKILL, as the kernel would."""
        pid = self.children[name].pid
        assert pid is not None
        os.killpg(pid, signal.SIGKILL)
        self.children[name].kill()

    def rows(self, statement: str, *parameters: Any) -> list[Any]:
        connection = psycopg2.connect(self.services.postgres.url, cursor_factory=psycopg2.extras.NamedTupleCursor)
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(statement, parameters)
                return cursor.fetchall()
        finally:
            connection.close()

    def stop(self) -> None:
        stop_all(list(self.children.values()))
        self.services.stop()


def finished(account: Account, room_id: str, reply_ids: list[str]) -> list[dict[str, Any]] | None:
    """Return the replies once they all have ended."""
    replies = [account.read(room_id, reply_id) for reply_id in reply_ids]
    return replies if all(reply["status"] in ("completed", "failed", "stopped") for reply in replies) else None
