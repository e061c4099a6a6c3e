"""The system in its real processes, on servers of its own that can be killed."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.extras
import requests
from psycopg2.sql import SQL, Identifier

from chatapi.dev.embedded import free_port
from chatapi.dev.gemini_standin import RecordedRequest
from chatapi.dev.processes import Child
from chatapi.dev.system import child_environment, health, system_children
from tests import leaks
from tests.support import WEBHOOK_SECRET, Account, Services, wait_for

METRICS_TOKEN = "scrapes-only-5d0e8a41"
FINAL = ("completed", "failed", "stopped")
BREAKER_SECONDS = 5.0
"""For how long a process may leave Redis alone after it was away."""

CONTRADICTIONS = """
    SELECT 'prompt without reply' AS what, prompt.id FROM messages AS prompt
    WHERE message_type = 'user' AND NOT EXISTS (SELECT FROM messages WHERE reply_to = prompt.id)
    UNION ALL
    SELECT 'reply without prompt', id FROM messages WHERE message_type = 'ai' AND reply_to IS NULL
    UNION ALL
    SELECT 'unfinished reply without job', id FROM messages
    WHERE status IN ('pending', 'processing') AND NOT EXISTS (SELECT FROM reply_jobs WHERE message_id = messages.id)
    UNION ALL
    SELECT 'job without unfinished reply', message_id FROM reply_jobs
    WHERE NOT EXISTS (SELECT FROM messages WHERE id = message_id AND status IN ('pending', 'processing'))
    UNION ALL
    SELECT 'wrong message_count', id FROM chatrooms
    WHERE message_count <> (SELECT count(*) FROM messages WHERE room_id = chatrooms.id)
"""


class HttpAnswer:
    """A response as Flask's test client would show it."""

    def __init__(self, response: requests.Response) -> None:
        self.status_code = response.status_code
        self.headers = response.headers
        self.seconds = response.elapsed.total_seconds()
        self._response = response

    @property
    def text(self) -> str:
        return self._response.text

    def get_json(self) -> Any:
        return self._response.json()


class HttpClient:
    """Calls the running system in the way of Flask's test client."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._url = f"http://127.0.0.1:{port}"

    def open(self, path: str, method: str = "GET", json: Any = None, headers: Any = None) -> HttpAnswer:
        response = requests.request(method, self._url + path, json=json, headers=headers, timeout=70)
        leaks.SUITE.note_answer(method, path, json, response.status_code, response.headers.items(), response.content)
        return HttpAnswer(response)

    def get(self, path: str, **options: Any) -> HttpAnswer:
        return self.open(path, "GET", **options)

    def post(self, path: str, **options: Any) -> HttpAnswer:
        return self.open(path, "POST", **options)


class System:
    """Web, worker, chores, billing and sweeper on servers of their own; `use` starts them."""

    def __init__(self) -> None:
        self.services = Services()
        self.services.start()
        self.port = free_port()
        self.client = HttpClient(self.port)
        self.services.stripe.add_webhook(f"http://127.0.0.1:{self.port}/webhook/stripe", WEBHOOK_SECRET)
        self.logs = self.services.folder / "logs"
        self.logs.mkdir()
        self._environ = {
            **os.environ,
            **self.services.environ,
            "BASIC_DAILY_PROMPTS": "1000",
            "WEB_CONCURRENCY": "2",
            "METRICS_TOKEN": METRICS_TOKEN,
            "PROMETHEUS_MULTIPROC_DIR": str(self.services.folder / "metrics"),
        }
        self._settings: dict[str, str] | None = None
        self._was_valkey_away = False
        self.children = {child.name: child for child in system_children(self._environ, self.port, self.logs)}

    def __getitem__(self, name: str) -> Child:
        return self.children[name]

    def start(self) -> None:
        for child in self.children.values():
            child.start()
        wait_for(lambda: health(self.port))

    def use(self, settings: Mapping[str, str]) -> None:
        """Run with these settings beside the usual ones; starts everything again if they are others than now."""
        if dict(settings) == self._settings:
            return
        self._settings = dict(settings)
        for child in self.children.values():
            child.kill()
            child.env = {**child_environment(self._environ), "PORT": str(self.port), **settings}
        self.start()

    def mend(self) -> None:
        """Make everything whole again after what a test did to it."""
        self.services.gemini.clear()
        self.services.stripe.clear()
        servers = (self.services.postgres_process, self.services.valkey_process)
        for child in (*servers, *self.children.values()):
            if child.is_running():
                os.killpg(child.pid or 0, signal.SIGCONT)
            else:
                child.restart()
        wait_for(lambda: (health(self.port) or {}).get("status") == "ok")
        if self._was_valkey_away:
            time.sleep(BREAKER_SECONDS)
            self._was_valkey_away = False
        self.end_replies()
        self.services.gemini.forget_requests()

    def end_replies(self) -> None:
        """Delete all rooms, with all that is under way in them: it would be in the way of what comes next."""
        self.rows("WITH gone AS (DELETE FROM chatrooms RETURNING id) SELECT count(*) FROM gone")

    def kill(self, name: str) -> None:
        """End a process and all it started with SIGKILL, as the kernel would."""
        self.signal(name, signal.SIGKILL)
        self.children[name].kill()

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a process and all it started."""
        os.killpg(self.children[name].pid or 0, number)

    @contextmanager
    def frozen(self, name: str) -> Iterator[None]:
        """Have a process, and all it started, stand still within the block."""
        self.signal(name, signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(name, signal.SIGCONT)

    @contextmanager
    def valkey_frozen(self) -> Iterator[None]:
        self._was_valkey_away = True
        pid = self.services.valkey_process.pid or 0
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def kill_valkey(self) -> None:
        self._was_valkey_away = True
        os.kill(self.services.valkey_process.pid or 0, signal.SIGKILL)
        wait_for(lambda: not self.services.valkey_process.is_running())

    @contextmanager
    def another(self, name: str) -> Iterator[Child]:
        """Run one more process of a kind within the block."""
        like = self.children[name]
        more = Child(f"another {name}", like.argv, env=like.env, log=self.logs / f"another-{name}.log")
        more.start()
        try:
            yield more
        finally:
            more.kill()

    def log_of(self, name: str) -> str:
        return (self.logs / f"{name}.log").read_text()

    def events_of(self, name: str, reply_id: str) -> set[str]:
        """Return what a process has logged of a reply."""
        lines = [line for line in self.log_of(name).splitlines() if reply_id in line]
        return {word for line in lines for word in re.findall(r"[a-z]+(?:_[a-z]+)+", line)}

    def rows(self, statement: str, *parameters: Any) -> list[Any]:
        """Return what a statement yields; its parameters come one by one, or by name as one mapping."""
        values = parameters[0] if parameters and isinstance(parameters[0], Mapping) else parameters or None
        connection = psycopg2.connect(self.services.postgres.url, cursor_factory=psycopg2.extras.NamedTupleCursor)
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(statement, values)
                return cursor.fetchall()
        finally:
            connection.close()

    @contextmanager
    def locked(self, table: str, row_id: str) -> Iterator[None]:
        """Have whoever changes a row wait within the block."""
        connection = psycopg2.connect(self.services.postgres.url)
        try:
            with connection.cursor() as cursor:
                cursor.execute(SQL("SELECT FROM {} WHERE id = %s FOR UPDATE").format(Identifier(table)), (row_id,))
            yield
        finally:
            connection.close()

    def contradictions(self) -> list[Any]:
        """Return what in the database cannot be, were every change whole."""
        return self.rows(CONTRADICTIONS)

    def asked(self, content: str) -> list[RecordedRequest]:
        """Return the model requests for prompts that hold `content`; not those for titles."""
        return [each for each in self.services.gemini.requests if content in prompt_of(each) and not is_title(each)]

    def stop(self) -> None:
        """End everything at once: in good order it would wait for answers of a model that hangs."""
        for child in self.children.values():
            child.kill()
        self.services.stop()


def chance(seed: int) -> random.Random:
    """Return what chooses moments and cuts: any, but the same ones each time."""
    return random.Random(seed)  # noqa: S311 - nothing is guarded by it


def prompt_of(request: RecordedRequest) -> str:
    """Return the user's text that a model request ends with."""
    return str(request.body["contents"][-1]["parts"][0]["text"])


def is_title(request: RecordedRequest) -> bool:
    return "Write a title" in str(request.body.get("systemInstruction"))


def send(account: Account, room_id: str, content: str, **headers: str) -> HttpAnswer:
    """Send a prompt with more headers; underscores in their names stand for hyphens."""
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    path = f"/chatroom/{room_id}/message"
    return account.client.post(path, json={"content": content}, headers={**account.headers, **more})


def stop_reply(account: Account, room_id: str, reply_id: str) -> dict[str, Any]:
    """Stop a reply, and hold that this takes few seconds; return the reply."""
    answer = account.call("POST", f"/chatroom/{room_id}/message/{reply_id}/stop")
    assert answer.status_code == 200, answer.get_json()
    assert answer.seconds < 6
    message: dict[str, Any] = answer.get_json()["message"]
    return message


def finished(account: Account, room_id: str, reply_ids: list[str]) -> list[dict[str, Any]] | None:
    """Return the replies once they all have ended."""
    replies = [account.read(room_id, reply_id) for reply_id in reply_ids]
    return replies if all(reply["status"] in FINAL for reply in replies) else None


def finish(account: Account, room_id: str, reply_id: str, seconds: float = 60) -> dict[str, Any]:
    """Wait for the end of a reply; return it."""
    (reply,) = wait_for(lambda: finished(account, room_id, [reply_id]), seconds=seconds)
    return reply


def wait_all_ended(system: System, seconds: float) -> None:
    """Wait until no reply is under way, and hold that nothing was left half-made."""
    wait_for(lambda: system.rows("SELECT count(*) AS open FROM reply_jobs")[0].open == 0, seconds=seconds)
    # A job is deleted in the transaction that ends its reply, so there is nothing to wait for beyond it.
    assert system.contradictions() == []


def sleep_until(moment: float) -> None:
    """Sleep until the monotonic clock says `moment`."""
    time.sleep(max(0.0, moment - time.monotonic()))


def members_of(leader: int) -> list[int]:
    """Return the processes of the group that `leader` leads."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[2]) == leader:
                found.append(int(entry.name))
    return found
