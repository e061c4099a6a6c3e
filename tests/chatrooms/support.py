"""Prompts with headers, from as many threads as will; replies stopped, and what a worker leaves of them."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from flask import Flask
from werkzeug.test import TestResponse

from chatapi.chatrooms.endings import Lease
from chatapi.chatrooms.live import Piece, live_replies
from chatapi.extensions import in_transaction
from chatapi.replies import jobs
from tests.support import Account


def post(account: Account, path: str, body: Any = None, **headers: str) -> TestResponse:
    """Send a request with more headers than the token; `_` in their names stands for `-`."""
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    return account.client.post(path, json=body, headers={**account.headers, **more})


def send(account: Account, room_id: str, content: str, **headers: str) -> TestResponse:
    """Send a prompt, with headers."""
    return post(account, f"/chatroom/{room_id}/message", {"content": content}, **headers)


def regenerate(account: Account, room_id: str, reply_id: str, **headers: str) -> TestResponse:
    """Ask for another reply."""
    return post(account, f"/chatroom/{room_id}/message/{reply_id}/regenerate", **headers)


def stop(account: Account, room_id: str, reply_id: str) -> TestResponse:
    """Stop a reply."""
    return post(account, f"/chatroom/{room_id}/message/{reply_id}/stop")


def beside(app: Flask, account: Account) -> Account:
    """Return the same account with a client of its own, for another thread."""
    return Account(account.id, account.mobile_number, account.token, app.test_client())


def ids(answer: TestResponse) -> tuple[str, ...]:
    """Return the ids of what was accepted."""
    assert answer.status_code == 201, answer.get_json()
    body = answer.get_json()
    return tuple(body[name]["id"] for name in ("user_message", "ai_message") if name in body)


def message_count(account: Account, room_id: str) -> int:
    """Return how many messages the room says it has, which is how many there are."""
    room = account.call("GET", f"/chatroom/{room_id}?limit=200").get_json()["chatroom"]
    assert len(room["messages"]) == room["message_count"]
    count: int = room["message_count"]
    return count


def take(app: Flask, reply_id: str) -> Lease:
    """Take the job as a worker does that is not heard of any more."""
    with app.app_context():
        lease = in_transaction(lambda: jobs.take_lease(UUID(reply_id)))
    assert lease is not None
    return lease


def write(app: Flask, lease: Lease, *texts: tuple[int, str]) -> None:
    """Append what the worker streams, each at its offset."""
    begin = Piece(lease.message_id, lease.token, 0, "", is_first=True)
    pieces = [Piece(lease.message_id, lease.token, offset, text, is_first=False) for offset, text in texts]
    with app.app_context():
        assert all(live_replies().append([begin, *pieces]))


def stopped(answer: TestResponse) -> dict[str, Any]:
    """Return the message that an answer shows, which is stopped."""
    assert answer.status_code == 200, answer.get_json()
    message: dict[str, Any] = answer.get_json()["message"]
    assert message["status"] == "stopped"
    return message
