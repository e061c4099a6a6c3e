"""What a client can put on the wire, to a real gunicorn: chunks, broken requests, and many at once without Redis."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import cast

import pytest

from tests import leaks
from tests.support import Account
from tests.system.support import System

SMUGGLED = b"POST /chatroom HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n0\r\n\r\nGET /health HTTP/1.1\r\nHost: x\r\n\r\n"


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


def test_headers_do_not_move_the_application_to_another_address(system: System) -> None:
    request = b"GET /health HTTP/1.1\r\nHost: x\r\nScript-Name: /nope\r\nConnection: close\r\n\r\n"

    status, _, body = exchange(system, request.replace(b"Script-Name", b"SCRIPT_NAME"))

    assert (status, json.loads(body)["status"]) == (200, "OK")


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
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 65 + b"\r\n", 431, "request_header_fields_too_large"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 40_000, 431, "request_header_fields_too_large"),
        (b"GET /" + b"y" * 4100 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414, "request_uri_too_long"),
        # Whatever could be read in two ways, by us and by a proxy before us.
        (SMUGGLED % b"Content-Length: 5\r\nTransfer-Encoding: chunked", 400, "bad_request"),
        (SMUGGLED % b"Content-Length: 5\r\nContent-Length: 6", 400, "bad_request"),
        (SMUGGLED % b"Content-Length: 5, 5", 400, "bad_request"),
        (SMUGGLED % b"Content-Length: 0x5", 400, "bad_request"),
        (SMUGGLED % b"Transfer-Encoding: chunked, identity", 400, "bad_request"),
        (SMUGGLED % b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", 400, "bad_request"),
        (SMUGGLED % b"Transfer-Encoding : chunked", 400, "bad_request"),
        (SMUGGLED % b"Transfer-Encoding:\x0bchunked", 400, "bad_request"),
        (SMUGGLED % b"Host: y", 400, "bad_request"),
        (SMUGGLED % b"X: y\r\n folded", 400, "bad_request"),
        (SMUGGLED % b"X: y\nTransfer-Encoding: chunked", 400, "bad_request"),
        (SMUGGLED.replace(b"1.1", b"1.0") % b"Transfer-Encoding: chunked", 400, "bad_request"),
        (b"GET / HTTP/1.1\nHost: x\n\n", 400, "bad_request"),
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
    assert headers["connection"] == "close"
    assert headers["x-request-id"]
    assert body.count(b"HTTP/1.1") == 0, "what came after was taken for a request"


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /health/live HTTP/1.1\r\nHost: x\r\nContent-Length: 33\r\n\r\nGET /nowhere HTTP/1.1\r\nHost: y\r\n\r",
        b"DELETE /chatroom HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4;x=y\r\nGET \r\n0\r\nX: y\r\n\r\n",
        b"POST /chatroom HTTP/1.1\r\nHost: x\r\nContent-Length: 287500\r\n\r\n" + b"GET /nowhere HTTP/1.1\r\n" * 12500,
        b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_next_request_begins_where_a_body_ends_that_nobody_wanted(system: System, request_: bytes) -> None:
    """Sent in one piece, and again byte by byte where it is short."""
    pieces = [request_] if len(request_) > 1000 else [request_, *(request_[at : at + 1] for at in range(len(request_)))]
    with closing(http.client.HTTPConnection("127.0.0.1", system.port, timeout=10)) as connection:
        connection.connect()
        sock = cast("socket.socket", connection.sock)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in [*pieces, b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"]:
            sock.sendall(piece)
        answer = b""
        while data := sock.recv(65536):
            answer += data

    assert answer.count(b"HTTP/1.1 ") == (2 if len(request_) > 1000 else 3)
    assert answer.count(b"HTTP/1.1 404 ") == 0
    assert json.loads(answer.partition(b"\r\n\r\n")[2].rpartition(b"\r\n\r\n")[2])["name"] == "chatapi"


def test_answers_come_in_order_when_requests_are_sent_without_waiting_for_them(system: System) -> None:
    paths = ["/", "/nowhere", "/health", "/chatroom"] * 5
    heads = [f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n" for path in paths]
    with socket.create_connection(("127.0.0.1", system.port), timeout=10) as connection:
        connection.sendall("".join(heads).encode()[:-3])
        connection.sendall(b"\n\r\n")
        answer = b""
        while answer.count(b"HTTP/1.1 ") < 20:
            answer += connection.recv(65536)

    assert re.findall(rb"HTTP/1\.1 (\d+) ", answer) == [b"200", b"404", b"200", b"401"] * 5


@pytest.mark.parametrize("length", [100_000, 1_000_000, 10_000_000])
def test_body_that_is_too_large_is_refused_before_it_is_read_and_the_client_sees_it(
    system: System, someone: Account, length: int
) -> None:
    """Clients as they are mostly written send all of it before they look for an answer."""
    with closing(http.client.HTTPConnection("127.0.0.1", system.port, timeout=10)) as connection:
        connection.request("POST", "/chatroom", b"x" * length, {**someone.headers, "Content-Type": "application/json"})
        response = connection.getresponse()
        body = json.loads(response.read())

    assert (response.status, body["error"]) == (413, "payload_too_large")
    assert response.headers["Connection"] == ("close" if length > 2**20 else "keep-alive")
    assert response.headers["Server"] == "chatapi"


def test_client_that_waits_before_it_sends_its_body_is_told_once_to_go_on(system: System, someone: Account) -> None:
    body = b'{"title": "waited"}'
    head = (
        f"POST /chatroom HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {someone.token}\r\n"
        "Content-Type: application/json\r\nExpect: 100-continue\r\nConnection: close\r\n"
    )
    with socket.create_connection(("127.0.0.1", system.port), timeout=10) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
        word = connection.recv(65536)
        connection.sendall(body)
        answer = b""
        while data := connection.recv(65536):
            answer += data

    assert word == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert answer.startswith(b"HTTP/1.1 201 ")


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
