"""Clients that ask for much and do not read it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from chatapi import security
from tests.support import Account, wait_for
from tests.system.support import System

SETTINGS = {"WEB_CONCURRENCY": "1"}
"""One process, so that what one client takes there is taken for all."""

MESSAGES = 20_000
"""Enough that an export does not fit into the buffers between server and client."""


def fill(system: System, account: Account) -> None:
    room_id = account.open_room()
    system.rows(
        "INSERT INTO messages (id, room_id, seq, message_type, content, status) "
        "SELECT gen_random_uuid(), %s, n, 'user', repeat('hello ', 100), 'completed' FROM generate_series(1, %s) AS n "
        "RETURNING seq",
        room_id,
        MESSAGES,
    )


def ask_for_export(system: System, account: Account) -> socket.socket:
    """Send the request; read nothing of the answer."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection.connect(("127.0.0.1", system.port))
    head = f"GET /user/me/export HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {account.token}\r\n\r\n"
    connection.sendall(head.encode())
    return connection


@pytest.mark.slow
def test_service_goes_on_when_many_exports_are_not_read(system: System, sign_in: Callable[..., Account]) -> None:
    accounts = [sign_in(via=system.client) for _ in range(10)]
    for account in accounts:
        fill(system, account)

    with ExitStack() as stack:
        for account in accounts * 6:
            stack.enter_context(ask_for_export(system, account))
        time.sleep(1)
        probes = [system.client.get("/health/live") for _ in range(10)]
        others = sign_in(via=system.client).call("GET", "/user/me")

    assert [probe.status_code for probe in probes] == [200] * 10
    assert max(probe.seconds for probe in probes) < 5
    assert others.status_code == 200


@pytest.mark.slow
def test_export_that_is_not_read_is_cut_off_and_its_slot_is_free_again(
    system: System, sign_in: Callable[..., Account]
) -> None:
    account = sign_in(via=system.client)
    fill(system, account)

    with ExitStack() as stack:
        asked_at = time.monotonic()
        for _ in range(8):  # One of them takes the user's one slot.
            stack.enter_context(ask_for_export(system, account))
        wait_for(lambda: account.call("GET", "/user/me/export").status_code == 429, seconds=10)
        wait_for(
            lambda: account.call("GET", "/user/me/export").status_code == 200,
            seconds=3 * security.SEND_TIMEOUT_SECONDS,
            every=2,
        )

    assert time.monotonic() - asked_at > security.SEND_TIMEOUT_SECONDS / 2


def test_service_goes_on_when_bodies_are_announced_and_not_sent(
    system: System, sign_in: Callable[..., Account]
) -> None:
    account = sign_in(via=system.client)
    head = b"POST /auth/login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"

    with ExitStack() as stack:
        for _ in range(60):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", system.port)))
            connection.sendall(head + b"Content-Length: 100\r\n\r\n{")
        time.sleep(1)
        answers = [account.call("GET", "/user/me") for _ in range(8)]

    assert [answer.status_code for answer in answers] == [200] * 8
    assert max(answer.seconds for answer in answers) < 5


@pytest.mark.slow
def test_service_goes_on_when_long_answers_are_not_read(system: System, sign_in: Callable[..., Account]) -> None:
    account = sign_in(via=system.client)
    room_id = account.open_room()
    system.rows(
        "INSERT INTO messages (id, room_id, seq, message_type, content, status) "
        "SELECT gen_random_uuid(), %s, n, 'user', repeat('hello ', 6000), 'completed' "
        "FROM generate_series(1, 200) AS n RETURNING seq",
        room_id,
    )
    head = f"GET /chatroom/{room_id}?limit=200 HTTP/1.1\r\nHost: localhost\r\n"

    with ExitStack() as stack:
        for _ in range(60):
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            connection.connect(("127.0.0.1", system.port))
            connection.sendall(f"{head}Authorization: Bearer {account.token}\r\n\r\n".encode())
        time.sleep(8)  # Until they are made; sending them is what takes for ever.
        others = sign_in(via=system.client)
        answers = [others.call("GET", "/user/me") for _ in range(8)]

    assert [answer.status_code for answer in answers] == [200] * 8
    assert max(answer.seconds for answer in answers) < 5
