"""Bodies of every kind to every route that takes one, over the wire: the contract's refusals, and never a 5xx."""

from __future__ import annotations

import http.client
import json
import re
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from chatapi.lobby import MAX_BYTES
from tests import leaks
from tests.support import Account
from tests.system.support import System, finish
from tests.test_authorization import ROUTES

pytestmark = pytest.mark.slow

JSON = {"Content-Type": "application/json"}

FIELDS: dict[str, dict[str, Any]] = {
    "POST /auth/signup": {"mobile_number": "15551234567", "name": "A", "email": "a@b.example", "password": "x" * 12},
    "POST /auth/send-otp": {"mobile_number": "15551234567", "purpose": "login"},
    "POST /auth/verify-otp": {"mobile_number": "15551234567", "otp": "123456", "purpose": "login", "signup_token": "x"},
    "POST /auth/login": {"mobile_number": "15551234567", "password": "x" * 12},
    "POST /auth/forgot-password": {"mobile_number": "15551234567"},
    "POST /auth/reset-password": {"mobile_number": "15551234567", "otp": "123456", "new_password": "x" * 12},
    "POST /auth/refresh": {"refresh_token": "x"},
    "POST /auth/change-password": {"current_password": "x" * 12, "new_password": "y" * 12},
    "POST /auth/logout": {"all": False},
    "PUT /user/me": {"name": "A", "email": "a@b.example"},
    "PATCH /user/me": {"name": "A", "email": "a@b.example"},
    "POST /chatroom": {"title": "A", "description": "B", "system_instruction": "C", "model": None},
    "PUT /chatroom/<chatroom_id>": {"title": "A", "description": "B", "system_instruction": "C", "model": None},
    "PATCH /chatroom/<chatroom_id>": {"title": "A", "description": "B", "system_instruction": "C", "model": None},
    "POST /chatroom/<chatroom_id>/message": {"content": "hello"},
    "POST /chatroom/<chatroom_id>/message/<message_id>/stop": {},
    "POST /chatroom/<chatroom_id>/message/<message_id>/regenerate": {},
    "POST /subscription/cancel": {},
    "POST /subscription/resume": {},
    "POST /subscription/portal": {},
}
"""The routes that read a JSON body, and what a good one holds."""

UNREAD = {"POST /subscribe/pro", "POST /subscription/pro"}
SIGNED = {"POST /webhook/stripe"}

NO_JSON = [
    b"{", b"nothing", b"[1,]", b'{"a": NaN}', b'{"a": -Infinity}', b'{"a": 1, "a": 2}', b"\xff\xfe{}", b"{}{}",
    b'{"a": "\xed\xa0\x80"}', b'{"a": "\xc0\x80"}', b"[" * 60_000, b'{"a":' * 10_000, b'{"a": ' + b"9" * 5001 + b"}",
    b'{"a": "\x00"}', b'{"a": "\\x"}', b'\xef\xbb\xbf{}', "{}".encode("utf-16"), b"\x00", b"\x80\x04K\x01.",
]  # fmt: skip
NO_OBJECT = [b"[]", b"[{}]", b"5", b'"text"', b"null", b"true", b"1e400", b"-0.0", b"9" * 4000]
NO_TEXT: list[Any] = [0, -1, 10**300, 1e308, 1.5, True, [], ["x"], {}, {"x": {}}, [[[[[]]]]]]
"""What no field of ours takes; `all` takes a boolean."""
BAD_TEXT = ["\x00", "a\x00b", "\ud800", "x\udfff", "x" * 6000]
BAD_NAMES = ["safe\u202egnp.exe", "\u2066x\u2069", "\u200fx", "\u061cx", "a\nb", "\x7f"]
NAMES = {"name", "title"}


class Wire:
    """One connection to gunicorn, kept for as long as the server keeps it."""

    def __init__(self, system: System, account: Account, message_id: str, room_id: str) -> None:
        self._system = system
        self._account = account
        self._ids = {"<chatroom_id>": room_id, "<message_id>": message_id}
        self._connection = http.client.HTTPConnection("127.0.0.1", system.port, timeout=20)

    def close(self) -> None:
        self._connection.close()

    def send(
        self, route: str, body: bytes | Iterator[bytes], headers: dict[str, str] | None = None, **options: Any
    ) -> tuple[int, Any]:
        """Return status and body of the answer, which is held to be the envelope where it is an error."""
        method, path = route.split()
        for name, value in self._ids.items():
            path = path.replace(name, value)
        sent = {"Authorization": f"Bearer {self._account.token}", **(JSON if headers is None else headers)}
        self._connection.request(method, path, body=body, headers=sent, **options)
        response = self._connection.getresponse()
        payload = response.read()
        leaks.SUITE.note_answer(method, path, None, response.status, response.getheaders(), payload)
        answer = json.loads(payload) if payload else {}
        if response.status >= 400:
            assert (answer["code"], response.headers["Content-Type"]) == (response.status, "application/json"), route
            assert {"status", "error", "message"} <= answer.keys()
            assert ("errors" in answer) == (response.status == 422)
        assert response.headers["X-Request-ID"]
        return response.status, answer


@pytest.fixture
def wire(system: System, someone: Account) -> Any:
    room_id = someone.open_room(title="bodies")
    reply_id = someone.prompt(room_id, "hello")
    finish(someone, room_id, reply_id)
    wire = Wire(system, someone, reply_id, room_id)
    yield wire
    wire.close()


def statuses(wire: Wire, bodies: list[bytes], routes: Any = FIELDS, headers: Any = None) -> dict[str, set[int]]:
    return {route: {wire.send(route, body, headers)[0] for body in bodies} for route in routes}


def everywhere(status: int, routes: Any = FIELDS) -> dict[str, set[int]]:
    return {route: {status} for route in routes}


def with_field(route: str, name: str, value: Any) -> bytes:
    return json.dumps({**FIELDS[route], name: value}).encode()


def test_every_route_that_takes_a_body_is_listed() -> None:
    taking = {f"{method} {rule}" for method, rule in ROUTES if method in ("POST", "PUT", "PATCH")}

    assert FIELDS.keys() | UNREAD | SIGNED == taking


def test_what_is_no_json_is_400_on_every_route(wire: Wire) -> None:
    assert statuses(wire, NO_JSON) == everywhere(400)


def test_json_that_is_no_object_is_422_on_every_route(wire: Wire) -> None:
    assert statuses(wire, NO_OBJECT) == everywhere(422)


def test_fields_that_are_unknown_or_of_another_kind_are_422_on_every_route(wire: Wire) -> None:
    for route, fields in FIELDS.items():
        for name in ("titel", "id", "user_id", "price", "is_admin", "__proto__", "\ud800", "\x00", "x" * 5000):
            status, answer = wire.send(route, with_field(route, name, "x"))
            assert (status, list(answer["errors"])) == (422, [name]), route
        for name in fields:
            for value in [*NO_TEXT, *BAD_TEXT, *(BAD_NAMES if name in NAMES else [])]:
                if name != "all" or value is not True:
                    status, answer = wire.send(route, with_field(route, name, value))
                    assert (status, list(answer["errors"])) == (422, [name]), (route, name, value)
            huge = with_field(route, name, 0).replace(b": 0", b": 1e400")
            assert wire.send(route, huge)[0] == 422, (route, name)


def test_other_types_and_encodings_are_415_on_every_route(wire: Wire) -> None:
    for headers in (
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "application/x-pickle"},
        {**JSON, "Content-Encoding": "gzip"},
        {**JSON, "Content-Encoding": "identity"},
        {},
    ):
        found = statuses(wire, [b'{"title": "x"}', zlib.compress(b"{}")], headers=headers)
        assert found == everywhere(415), headers


def test_bodies_past_64_kib_are_413_on_every_route(wire: Wire) -> None:
    large = b'{"title": "' + b"x" * 65_536 + b'"}'
    for route in FIELDS:
        for body, options in (
            (large, {}),
            (b"", {"headers": {**JSON, "Content-Length": str(10_000_000)}}),
            (iter([large[:40_000], large[40_000:]]), {"encode_chunked": True}),
        ):
            assert wire.send(route, body, **options)[0] == 413, route
            wire.close()  # What was not read of a body is in the way.


def test_message_of_stripes_is_refused_whatever_is_sent(wire: Wire) -> None:
    signed = {**JSON, "Stripe-Signature": "t=1,v1=00"}
    found = statuses(wire, [*NO_JSON, *NO_OBJECT, b"{}"], SIGNED, signed)
    assert found == everywhere(400, SIGNED)
    for signature in ("", "t=", "t=9" + "9" * 5000 + ",v1=x", "v1=" * 1000, "t=-1,v1=\xe9"):
        assert wire.send("POST /webhook/stripe", b"{}", {**JSON, "Stripe-Signature": signature})[0] == 400
    assert wire.send("POST /webhook/stripe", b" " * 1_048_577, signed)[0] == 413
    wire.close()


def test_body_that_is_ignored_is_never_a_failure(wire: Wire) -> None:
    bodies = [*NO_JSON, *NO_OBJECT, b'{"price": "price_free", "quantity": -1, "user_id": "x"}']

    assert {status for found in statuses(wire, bodies, UNREAD).values() for status in found} <= {200, 400, 409, 422}


def test_chunked_bodies_and_prompts_from_right_to_left_are_ordinary(
    system: System, someone: Account, wire: Wire
) -> None:
    prompts = ["\u05e9\u05dc\u05d5\u05dd", "\u202bמה שלומך?\u202c", "\u2067مرحبا\u2069 hello", "👩‍👩‍👧 \u200f\u200e"]
    for prompt in prompts:
        body = json.dumps({"content": prompt}, ensure_ascii=False).encode()
        pieces = iter([body[:7], body[7:]])
        route = "POST /chatroom/<chatroom_id>/message"
        status, answer = wire.send(route, pieces, encode_chunked=True)
        assert (status, answer["user_message"]["content"]) == (201, prompt)
        assert system.rows("SELECT content FROM messages WHERE id = %s", answer["user_message"]["id"])[0][0] == prompt
    assert not re.search(r" 5\d\d ", system.log_of("web"))


def test_long_requests_are_taken_again_and_again(system: System) -> None:
    """What a process may hold of requests is free again when they are answered."""
    held_by_both = 2 * MAX_BYTES
    body = b"x" * 1_000_000
    with requests.Session() as session:
        statuses = [
            session.post(
                f"http://127.0.0.1:{system.port}/webhook/stripe",
                data=body,
                headers={"Content-Type": "application/json", "Stripe-Signature": "t=1,v1=00"},
                timeout=10,
            ).status_code
            for _ in range(held_by_both // len(body) + 5)
        ]

    assert set(statuses) == {400}
