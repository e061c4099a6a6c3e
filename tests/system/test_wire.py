"""What a client can put on the wire, to a real gunicorn: chunks, broken requests, and many at once without Redis."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests import leaks
from tests.support import Account
from tests.system.support import System


def exchange(system: System, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send `request` as it is; return status, headers and body of the answer."""
    with socket.create_connection(("127.0.0.1", system.port), timeout=10) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while data := connection.recv(65536):
            answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    leaks.SUITE.note_answer("", "", None, int(status.split()[1]), headers.items(), body)
    return int(status.split()[1]), headers, body


def post_chunked(system: System, account: Account, chunks: bytes) -> tuple[int, dict[str, str], bytes]:
    head = (
        f"POST /chatroom HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {account.token}\r\n"
        "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    )
    return exchange(system, head.encode() + chunks)


def test_chunked_body_is_read(system: System, someone: Account) -> None:
    status, _, body = post_chunked(system, someone, b'9\r\n{"title":\r\n8\r\n"hello"}\r\n0\r\n\r\n')

    assert (status, json.loads(body)["chatroom"]["title"]) == (201, "hello")


def test_chunked_body_is_refused_when_it_is_too_large(system: System, someone: Account) -> None:
    status, _, body = post_chunked(system, someone, b"2\r\n{}\r\n" + b"1000\r\n" + b" " * 4096 + b"\r\n" + (
        b"1000\r\n" + b" " * 4096 + b"\r\n") * 20 + b"0\r\n\r\n")  # fmt: skip

    assert (status, json.loads(body)["error"]) == (413, "payload_too_large")


@pytest.mark.parametrize("chunks", [b"zz\r\n{}\r\n0\r\n\r\n", b"2\r\n{}XX0\r\n\r\n", b"-2\r\n{}\r\n0\r\n\r\n"])
def test_chunked_body_is_refused_when_its_chunks_are_broken(system: System, someone: Account, chunks: bytes) -> None:
    status, headers, body = post_chunked(system, someone, chunks)

    assert (status, json.loads(body)["error"]) == (400, "bad_request")
    assert headers["x-request-id"]


@pytest.mark.parametrize(
    ("request_", "status", "slug"),
    [
        (b"NONSENSE\r\n\r\n", 400, "bad_request"),
        (b"get / HTTP/1.1\r\nHost: x\r\n\r\n", 400, "bad_request"),
        (b"GET / HTTP/9.9\r\nHost: x\r\n\r\n", 400, "bad_request"),
        (b"GET / HTTP/1.1\r\nBad Header: x\r\n\r\n", 400, "bad_request"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: x\r\n\r\n", 400, "bad_request"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400, "bad_request"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 20_000 + b"\r\n\r\n", 431, "request_header_fields_too_large"),
    ],
)
def test_request_that_no_application_sees_is_refused_in_the_envelope(
    system: System, request_: bytes, status: int, slug: str
) -> None:
    answered, headers, body = exchange(system, request_)

    envelope = json.loads(body)
    assert (answered, envelope["code"], envelope["error"]) == (status, status, slug)
    assert envelope.keys() == {"code", "status", "error", "message"}
    assert headers["content-type"] == "application/json"
    assert headers["x-request-id"]


@pytest.mark.parametrize("stop", [pytest.param(signal.SIGSTOP, marks=pytest.mark.slow), signal.SIGKILL])
def test_no_request_fails_when_redis_goes_away_under_load(system: System, someone: Account, stop: int) -> None:
    room_id = someone.open_room()
    pid = system.services.valkey_process.pid or 0
    until = time.monotonic() + 6

    def call(index: int) -> list[tuple[int, float]]:
        seen = []
        while time.monotonic() < until:
            answer = someone.send(room_id, "hi") if index % 4 == 0 else someone.client.get(
                "/chatroom", headers=someone.headers)  # fmt: skip
            seen.append((answer.status_code, answer.seconds))
            if answer.status_code == 429:
                # So many are accepted and wait for Redis.
                assert answer.get_json()["error"] == "too_many_in_flight"
        return seen

    with ThreadPoolExecutor(12) as pool:
        running = [pool.submit(call, index) for index in range(12)]
        time.sleep(1)
        os.kill(pid, stop)
        try:
            answers = [each for done in running for each in done.result()]
        finally:
            if stop == signal.SIGSTOP:
                os.kill(pid, signal.SIGCONT)

    assert {200, 201} <= {status for status, _ in answers} <= {200, 201, 429}
    assert max(seconds for _, seconds in answers) < 2
