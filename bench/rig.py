"""The system as an operator runs it, on servers of its own, with limits and logs on and the limits set high."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psycopg2
import redis
import requests
from flask import Flask

from chatapi.app import create_app
from chatapi.dev.embedded import EmbeddedPostgres, EmbeddedValkey, free_port
from chatapi.dev.processes import Child, stop_all, wait_until
from chatapi.dev.system import get, migration, system_children

MANY = "1000000"
ROOMS = 20
"""Rooms that each person has: a page of the list."""


@dataclass
class Person:
    """Somebody who is signed in, with `rooms`."""

    id: str
    token: str
    rooms: list[str] = field(default_factory=list)

    @property
    def headers(self) -> dict[str, str]:
        """What their requests have."""
        return {"Authorization": f"Bearer {self.token}"}


class Rig:
    """Servers that run all the time, and the processes of the system, of which each measurement takes what it needs."""

    def __init__(self, **settings: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="chatapi-bench-"))
        self.port, self.bare_port, self.gemini_port = free_port(), free_port(), free_port()
        self._postgres = EmbeddedPostgres(self.folder / "postgres")
        self._valkey = EmbeddedValkey(self.folder / "valkey", free_port())
        self._postgres.prepare()
        self._valkey.prepare()
        self._servers = [
            self._postgres.child(log=self.folder / "postgres.log"),
            self._valkey.child(log=self.folder / "valkey.log"),
            self._python("gemini", "chatapi.dev.gemini_standin", "--port", str(self.gemini_port)),
        ]
        self.environ = {
            "PATH": os.environ["PATH"],
            "HOME": os.environ.get("HOME", "/"),
            "PYTHONUNBUFFERED": "1",
            "APP_ENV": "production",
            "HOST": "127.0.0.1",
            "DATABASE_URL": self._postgres.url,
            "REDIS_URL": self._valkey.url,
            "GEMINI_API_KEY": "a key",
            "GEMINI_API_ENDPOINT": f"http://127.0.0.1:{self.gemini_port}",
            "JWT_SECRET": secrets.token_urlsafe(48),
            "JWT_ACCESS_TTL_SECONDS": "86400",
            "OTP_DELIVERY": "webhook",
            "OTP_WEBHOOK_URL": "http://127.0.0.1:9/",
            "OTP_WEBHOOK_SECRET": secrets.token_urlsafe(32),
            "PUBLIC_URL": "https://chat.example.com",
            "AUTH_IP_LIMIT": "0",
            "RATE_LIMIT_MAX_REQUESTS": MANY,
            "BASIC_DAILY_PROMPTS": MANY,
            "MAX_BACKLOG": MANY,
            "MAX_IN_FLIGHT_PER_USER": MANY,
            **settings,
        }
        self._running: list[Child] = []

    def __enter__(self) -> Self:
        try:
            for server in self._servers:
                server.start()
            assert self._postgres.wait_ready()
            assert self._valkey.wait_ready()
            upgrade = migration(self.environ, self.folder)
            upgrade.start()
            assert wait_until(lambda: upgrade.poll() is not None, 60)
            assert upgrade.poll() == 0, (self.folder / "migrations.log").read_text()
        except BaseException:
            self.__exit__()
            raise
        # For what is made ready beside what is measured: people, rooms, prompts that wait.
        self.app: Flask = create_app(
            {**self.environ, "APP_ENV": "development", "OTP_DELIVERY": "echo", "LOG_LEVEL": "warning"}
        )
        return self

    def __exit__(self, *exception: object) -> None:
        stop_all(self._running)
        stop_all(self._servers)
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def running(self, *names: str, web: Sequence[str] = (), **settings: str) -> Iterator[dict[str, Child]]:
        """Run these processes of the system within the block; `bare` is the yardstick of requests.

        `web` are further words for its gunicorn, `settings` the environment of all.
        """
        environ = {**self.environ, **settings}
        found = {child.name: child for child in system_children(environ, self.port, self.folder)}
        found["web"].argv += web
        words = ["--config", "bench/bare_conf.py", "bench.bare:app"]
        found["bare"] = self._python("bare", "gunicorn", *words, env={**environ, "PORT": str(self.bare_port)})
        children = {name: found[name] for name in names}
        self._running += children.values()
        try:
            for child in children.values():
                child.start()
            for name, port, path in (("web", self.port, "/health/live"), ("bare", self.bare_port, "/")):
                if name in children:
                    assert wait_until(lambda port=port, path=path: get("127.0.0.1", port, path)[0] == 200, 60), name  # type: ignore[misc]
            yield children
        finally:
            stop_all(list(children.values()))
            self._running = [child for child in self._running if child not in children.values()]

    def people(self, count: int, rooms: int = ROOMS) -> list[Person]:
        """Return people who have just signed in, each with so many rooms."""
        return [self._person(rooms) for _ in range(count)]

    def _person(self, rooms: int) -> Person:
        client = self.app.test_client()

        def call(path: str, headers: Mapping[str, str] | None = None, **body: Any) -> Any:
            answer = client.post(path, json=body, headers=headers)
            assert answer.status_code < 300, answer.get_data(as_text=True)
            return answer.get_json()

        number = f"+1555{secrets.randbelow(10**9):09d}"
        otp = call("/auth/send-otp", mobile_number=number)["otp"]
        answer = call("/auth/verify-otp", mobile_number=number, otp=otp)
        person = Person(answer["user"]["id"], answer["token"])
        person.rooms = [
            call("/chatroom", person.headers, title=f"Room {index}")["chatroom"]["id"] for index in range(rooms)
        ]
        return person

    def sql(self, statement: str, parameters: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """Run a statement and return its rows."""
        with self.connect() as connection, connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []

    def tidy(self) -> None:
        """Have PostgreSQL clean up what was deleted, and count anew, so that it is not done within a measurement."""
        connection = self.connect()
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("VACUUM (ANALYZE)")
            cursor.execute("CHECKPOINT")
        connection.close()

    def connect(self) -> Any:
        """Return a connection to PostgreSQL."""
        return psycopg2.connect(self._postgres.url)

    def forget_prompts(self) -> None:
        """Delete all messages and jobs, and what rings for them."""
        self.sql(
            "TRUNCATE reply_jobs, messages CASCADE;"
            "UPDATE chatrooms SET seq = 0, message_count = 0, last_message_at = NULL"
        )
        with self.redis() as server:
            server.flushall()
        self.tidy()

    def redis(self) -> redis.Redis:
        """Return a client of the Valkey."""
        return redis.Redis.from_url(self._valkey.url)

    def gemini(self, **fault: Any) -> None:
        """Have the model behave so from now on, as `chatapi.dev.gemini_faults.Fault` says; well without any words."""
        url = f"http://127.0.0.1:{self.gemini_port}/_control/faults"
        requests.delete(url, timeout=10).raise_for_status()
        if fault:
            requests.post(url, json=fault, timeout=10).raise_for_status()

    def _python(self, name: str, *words: str, env: Mapping[str, str] | None = None) -> Child:
        return Child(name, [sys.executable, "-m", *words], env=env, stop_timeout=20, log=self.folder / f"{name}.log")
