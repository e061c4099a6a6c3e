"""Everything at once: prompts, replies, stops, regenerations, deletions and sweepers racing each other."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask

from chatapi.dev.gemini_standin import GeminiStandin
from chatapi.replies.sweeper import end_overdue
from tests.chatrooms.support import beside, regenerate, send, stop
from tests.support import Account, race

THREADS = 16
SECONDS = 6.0
EXPECTED = {200, 201, 404, 409, 429}

# What must hold at any moment, whatever has happened: how many rows contradict it.
CONTRADICTIONS = """
    SELECT (SELECT count(*) FROM messages LEFT JOIN reply_jobs ON message_id = id
            WHERE messages.user_id = :id AND (status IN ('pending', 'processing')) <> (message_id IS NOT NULL)) AS jobs,
           (SELECT count(*) FROM chatrooms WHERE user_id = :id AND
            (message_count, seq) <> (SELECT count(*), coalesce(max(m.seq), 0) FROM messages AS m
                                     WHERE m.room_id = chatrooms.id)) AS counts,
           (SELECT count(*) FROM (SELECT FROM messages WHERE user_id = :id AND reply_to IS NOT NULL
                                  AND status IN ('pending', 'processing')
                                  GROUP BY reply_to HAVING count(*) > 1) AS doubled) AS doubled,
           (SELECT count(*) FROM messages WHERE user_id = :id AND status = 'completed' AND content = '') AS empty,
           (SELECT count(*) FROM reply_jobs WHERE room_id NOT IN (SELECT id FROM chatrooms)) AS orphans
"""


@pytest.mark.slow
def test_nothing_contradicts_itself_and_no_deadlock_is_seen_when_everything_races(
    app: Flask,
    pro_account: Account,
    gemini: GeminiStandin,
    attempt: Callable[..., None],
    sql: Callable[..., Any],
) -> None:
    rooms = [pro_account.open_room() for _ in range(3)]
    replies: list[tuple[str, str]] = []
    deadline = time.monotonic() + SECONDS

    def act(me: Account, dice: random.Random) -> int:
        place = dice.randrange(len(rooms))
        room_id = rooms[place]
        which = dice.random()
        if which < 0.35 or not replies:
            answer = send(me, room_id, "hello", Idempotency_Key=str(dice.randrange(10_000)))
            if answer.status_code == 201:
                replies.append((room_id, answer.get_json()["ai_message"]["id"]))
        elif which < 0.5:
            answer = regenerate(me, *dice.choice(replies[-20:]))
        elif which < 0.7:
            answer = stop(me, *dice.choice(replies[-20:]))
        elif which < 0.73:
            answer = me.call("DELETE", f"/chatroom/{room_id}")
            rooms[place] = me.open_room()
        else:
            if which < 0.95:
                attempt(dice.choice(replies[-20:])[1])
            else:
                sql("UPDATE reply_jobs SET created_at = now() - interval '2 hours' WHERE message_id = :id",
                    id=dice.choice(replies[-20:])[1])  # fmt: skip
                with app.app_context():
                    end_overdue()
            answer = me.call("GET", f"/chatroom/{room_id}")
        return answer.status_code

    def run(index: int) -> set[int]:
        me, dice, seen = beside(app, pro_account), random.Random(index), set()  # noqa: S311 - no secret
        while time.monotonic() < deadline:
            seen.add(act(me, dice))
        return seen

    statuses = set[int]().union(*race(THREADS, run))

    assert {200, 201, 409} <= statuses <= EXPECTED | {422}  # 422: a key that fell twice, for two rooms.
    assert gemini.requests
    assert tuple(sql(CONTRADICTIONS, id=pro_account.id)) == (0, 0, 0, 0, 0)
