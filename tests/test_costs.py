"""What requests ask of PostgreSQL and Redis, in round trips: more of them is a decision, and none creeps in."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from flask import Flask
from sqlalchemy import text

from chatapi.extensions import db
from tests.round_trips import round_trips
from tests.support import Account


class Cost(NamedTuple):
    """How often a request waits for each; `BEGIN`, `COMMIT` and `ROLLBACK` are statements as any other."""

    statements: int
    commands: int


# The caller is one statement wherever there is a token, and the request budget one command. A statement of a session
# comes with its BEGIN and its end.
COSTS = {
    ("GET", "/health/live"): Cost(0, 0),
    ("GET", "/chatroom"): Cost(1, 1),
    ("GET", "/chatroom?limit=3"): Cost(4, 3),
    ("GET", "/chatroom?q=hello"): Cost(6, 1),
    ("POST", "/chatroom"): Cost(6, 1),
    ("GET", "/chatroom/{room}"): Cost(3, 1),
    ("GET", "/chatroom/{room}?before={reply}"): Cost(4, 1),
    ("PATCH", "/chatroom/{room}"): Cost(5, 1),
    ("POST", "/chatroom/{room}/message"): Cost(2, 2),
    ("GET", "/chatroom/{room}/message/{reply}"): Cost(4, 1),
    ("GET", "/chatroom/{room}/message/{reply}/stream"): Cost(4, 1),
    ("POST", "/chatroom/{room}/message/{reply}/stop"): Cost(4, 1),
    ("POST", "/chatroom/{room}/message/{reply}/regenerate"): Cost(8, 2),
    ("GET", "/user/me"): Cost(7, 1),
    ("PATCH", "/user/me"): Cost(8, 1),
    ("GET", "/models"): Cost(1, 1),
    ("GET", "/subscription/status"): Cost(9, 1),
    ("GET", "/subscription/history"): Cost(4, 1),
}
BODIES = {
    "/chatroom": {"title": "One more"},
    "/chatroom/{room}": {"title": "Another"},
    "/chatroom/{room}/message": {"content": "hello"},
    "/user/me": {"name": "Ada"},
}


@pytest.mark.parametrize(("method", "path"), COSTS)
def test_request_costs_no_more_than_it_did(app: Flask, pro_account: Account, method: str, path: str) -> None:
    room = pro_account.open_room(title="One")
    reply = pro_account.prompt(room, "hello")
    with app.app_context():
        db.session.execute(text("UPDATE messages SET status = 'completed' WHERE id = :id"), {"id": reply})
        db.session.execute(text("DELETE FROM reply_jobs WHERE message_id = :id"), {"id": reply})
        db.session.commit()
    pro_account.call("GET", "/chatroom")  # Connections are open, and the list is cached.
    body = BODIES.get(path) if method in ("POST", "PATCH") else None

    with round_trips() as sent:
        answer = pro_account.call(method, path.format(room=room, reply=reply), body)

    assert answer.status_code < 300, answer.get_json()
    assert Cost(len(sent.statements), sent.commands) == COSTS[method, path]


def test_messages_of_a_room_cost_as_much_however_many_there_are(pro_account: Account) -> None:
    room = pro_account.open_room()
    costs = set()
    for _ in range(3):
        pro_account.prompt(room, "hello")
        with round_trips() as sent:
            pro_account.call("GET", f"/chatroom/{room}")
        costs.add(Cost(len(sent.statements), sent.commands))

    assert len(costs) == 1
