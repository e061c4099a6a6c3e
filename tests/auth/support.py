"""What the sign-in tests share: codes asked for and brought back, who delivers them, and time that passes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text
from werkzeug.test import TestResponse

from chatapi.extensions import db
from tests import leaks

PASSWORD = "correct horse battery"


def request_otp(client: FlaskClient, number: str, purpose: str = "login") -> str:
    answer = client.post("/auth/send-otp", json={"mobile_number": number, "purpose": purpose})
    assert answer.status_code == 200, answer.get_json()
    otp: str = answer.get_json()["otp"]
    return otp


def verify(client: FlaskClient, number: str, otp: str, **fields: str) -> TestResponse:
    return client.post("/auth/verify-otp", json={"mobile_number": number, "otp": otp, **fields})


def wrong(otp: str) -> str:
    return f"{(int(otp) + 1) % 1_000_000:06d}"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


class Gateway(ThreadingHTTPServer):
    """An SMS gateway that answers what it is told to, and keeps what it was sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), GatewayHandler)
        self.statuses: list[int] = []
        self.received: list[tuple[dict[str, str], bytes]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/send"


class GatewayHandler(BaseHTTPRequestHandler):
    server: Gateway

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        leaks.SUITE.note_secrets(json.loads(body))
        self.server.received.append(({name.lower(): value for name, value in self.headers.items()}, body))
        self.send_response(self.server.statuses.pop(0) if self.server.statuses else 204)
        self.send_header("Location", self.server.url)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def running_gateway() -> Iterator[Gateway]:
    """Run an SMS gateway within the block."""
    server = Gateway()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


REMEMBERED_TIMES = [
    ("auth_limits", "expires_at"),
    ("auth_failures", "began_at"),
    ("otp_codes", "expires_at"),
    ("sessions", "expires_at"),
    ("refresh_tokens", "expires_at"),
    ("refresh_tokens", "used_at"),
]


def pass_time(app: Flask, seconds: int) -> None:
    """Make everything that sign-in remembers `seconds` older, as if nobody had done anything meanwhile."""
    hits = "ARRAY(SELECT hit - make_interval(secs => :seconds) FROM unnest(hits) AS hit ORDER BY hit)"
    statements = [f"UPDATE auth_limits SET hits = {hits}"]  # noqa: S608 - nothing of this comes from outside
    # By way of the past, as a key that is moved must not meet one that is still to be moved.
    for shift in ("- interval '100 years'", "+ interval '100 years' - make_interval(secs => :seconds)"):
        statements += [f"UPDATE {table} SET {column} = {column} {shift}" for table, column in REMEMBERED_TIMES]  # noqa: S608
    with app.app_context():
        for statement in statements:
            db.session.execute(text(statement), {"seconds": seconds})
        db.session.commit()


def rows(app: Flask, statement: str, **parameters: Any) -> list[Any]:
    """Return what a query finds."""
    with app.app_context():
        found = list(db.session.execute(text(statement), parameters))
        db.session.rollback()
        return found
