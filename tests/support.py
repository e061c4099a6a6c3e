"""What the tests share: servers of their own, people who are signed in, and waiting for something to become true."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier
from typing import Any, TypeVar

from flask.testing import FlaskClient
from flask_migrate import upgrade
from sqlalchemy import Connection, Engine, event
from stripe import StripeClient
from werkzeug.test import TestResponse

from chatapi.app import create_app
from chatapi.dev.embedded import EmbeddedPostgres, EmbeddedValkey, free_port
from chatapi.dev.gemini_standin import GeminiStandin
from chatapi.dev.stripe.standin import StripeStandin
from chatapi.extensions import db
from tests import leaks

T = TypeVar("T")

STRIPE_KEY = "sk_test_suite"
WEBHOOK_SECRET = "whsec_" + secrets.token_urlsafe(24)

_races: set[Barrier] = set()


def stripe_client(stripe: StripeStandin) -> StripeClient:
    """Return the SDK's own client of the stand-in."""
    return StripeClient(STRIPE_KEY, base_addresses={"api": stripe.url})


def make_price(stripe: StripeStandin, **terms: Any) -> str:
    """Return the id of a new price of a new product."""
    v1 = stripe_client(stripe).v1
    product = v1.products.create({"name": "Pro"})
    wanted = {"product": product.id, "currency": "usd", "unit_amount": 900, "recurring": {"interval": "month"}, **terms}
    return v1.prices.create(wanted).id  # type: ignore[arg-type]


class Services:
    """A PostgreSQL with the schema in place, a Valkey and a stand-in for Gemini, all of one's own."""

    def __init__(self, *, is_synced: bool = True) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="chatapi-tests-"))
        self.gemini = GeminiStandin()
        self.stripe = StripeStandin()
        self.postgres = EmbeddedPostgres(self.folder / "postgres")
        self.valkey = EmbeddedValkey(self.folder / "valkey", free_port())
        self.postgres.prepare()
        self.valkey.prepare()
        self.postgres_process = self.postgres.child(log=self.folder / "postgres.log")
        # Whoever does not kill machines can do without: a third of a test's time would be waiting for the disk.
        if not is_synced:
            self.postgres_process.argv += ["-c", "fsync=off"]
        self.valkey_process = self.valkey.child(log=self.folder / "valkey.log")

    def start(self) -> None:
        self.gemini.start()
        self.stripe.start()
        self.postgres_process.start()
        self.valkey_process.start()
        assert self.postgres.wait_ready(), "PostgreSQL does not start"
        assert self.valkey.wait_ready(), "Valkey does not start"
        self.environ = {
            "PATH": os.environ["PATH"],
            "HOME": os.environ.get("HOME", "/"),
            "APP_ENV": "development",
            "DATABASE_URL": self.postgres.url,
            "REDIS_URL": self.valkey.url,
            "GEMINI_API_ENDPOINT": self.gemini.url,
            "STRIPE_SECRET_KEY": STRIPE_KEY,
            "STRIPE_API_BASE": self.stripe.url,
            "STRIPE_PRICE_ID": make_price(self.stripe),
            "STRIPE_WEBHOOK_SECRET": WEBHOOK_SECRET,
            "FRONTEND_URL": "https://chat.example",
            "JWT_SECRET": secrets.token_urlsafe(48),
            "RATE_LIMIT_MAX_REQUESTS": "1000000",
            "AUTH_IP_LIMIT": "0",
            "STAND_INS": "Gemini",
        }
        app = create_app(self.environ)
        with app.app_context():
            upgrade()
            db.engine.dispose()

    def stop(self) -> None:
        self.valkey_process.stop()
        self.postgres_process.stop()
        self.gemini.stop()
        self.stripe.stop()
        leaks.SUITE.note_log_files(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)


class ReadingClient(FlaskClient):
    """Reads each answer to its end and closes it, as servers and clients do."""

    def open(self, *args: Any, buffered: bool = True, **kwargs: Any) -> TestResponse:
        return super().open(*args, buffered=buffered, **kwargs)


@dataclass
class Account:
    """Somebody who is signed in, calling the application without a network."""

    id: str
    mobile_number: str
    token: str
    client: FlaskClient

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def call(self, method: str, path: str, body: Any = None) -> TestResponse:
        return self.client.open(path, method=method, json=body, headers=self.headers)

    def open_room(self, **fields: Any) -> str:
        answer = self.call("POST", "/chatroom", fields)
        assert answer.status_code == 201, answer.get_json()
        room_id: str = answer.get_json()["chatroom"]["id"]
        return room_id

    def send(self, room_id: str, content: str) -> TestResponse:
        return self.call("POST", f"/chatroom/{room_id}/message", {"content": content})

    def prompt(self, room_id: str, content: str) -> str:
        """Send a prompt that is accepted; return the id of its reply."""
        answer = self.send(room_id, content)
        assert answer.status_code == 201, answer.get_json()
        reply_id: str = answer.get_json()["ai_message"]["id"]
        return reply_id

    def read(self, room_id: str, message_id: str) -> dict[str, Any]:
        message: dict[str, Any] = self.call("GET", f"/chatroom/{room_id}/message/{message_id}").get_json()["message"]
        return message

    def daily_usage(self) -> int:
        usage: int = self.call("GET", "/user/me").get_json()["user"]["daily_usage_count"]
        return usage


def wait_for(check: Callable[[], T], seconds: float = 30.0, every: float = 0.1) -> T:
    """Return the first true value of `check`, or fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = check()
        if value:
            return value
        assert time.monotonic() < deadline, f"not so within {seconds} s"
        time.sleep(every)


@event.listens_for(Engine, "commit")
def _commit_slowly(_: Connection) -> None:
    """In a race, take as long as a slow disk: so that others get between what is read and what is written."""
    if _races:
        time.sleep(0.004)


def race(count: int, work: Callable[[int], T]) -> list[T]:
    """Run `work` in `count` threads that all begin at once; return what each returned."""
    gate = Barrier(count)

    def run(index: int) -> T:
        gate.wait()
        return work(index)

    _races.add(gate)
    try:
        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(run, range(count)))
    finally:
        _races.remove(gate)
