"""Every statement of a request, of a reply and of the sweeper finds its rows by an index, also in large tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg2
import pytest
from flask import Flask
from psycopg2.errors import UniqueViolation

from chatapi.chatrooms import prompts, service
from chatapi.replies.sweeper import clean, clear_rooms, end_overdue, sweep
from tests.attempts import attempt, keeper, model
from tests.round_trips import round_trips
from tests.support import Account, Services
from tests.test_authorization import NEVER_WAS
from tests.test_costs import BODIES, COSTS

__all__ = ["attempt", "keeper", "model"]

ROWS, JOBS = 10_000, 5_000
"""No more jobs than are accepted: `MAX_BACKLOG` is 10,000."""
DELETED_ROOMS = 10

FILL = f"""
    INSERT INTO users (id, mobile_number, number_hash)
    SELECT gen_random_uuid(), '+9' || n, decode(md5(n::text), 'hex') FROM generate_series(1, {ROWS}) AS n;
    INSERT INTO sessions (id, user_id, expires_at)
    SELECT gen_random_uuid(), id, now() + interval '1 day' FROM users ORDER BY id LIMIT {ROWS};
    INSERT INTO refresh_tokens (token_hash, family_id, expires_at)
    SELECT decode(md5(id::text), 'hex'), id, now() + interval '1 day' FROM sessions LIMIT {ROWS};
    INSERT INTO daily_usage (number_hash, day, used) SELECT number_hash, '2001-01-01', 1 FROM users LIMIT {ROWS};
    INSERT INTO chatrooms (id, user_id, title, activity_at)
    SELECT gen_random_uuid(), id, 'Room', now() - interval '1 day' FROM users LIMIT {ROWS};
    DELETE FROM chatrooms WHERE user_id IS NULL;
    INSERT INTO messages (id, room_id, user_id, seq, message_type, content, status)
    SELECT gen_random_uuid(), id, user_id, seq + 1000, 'user', 'One of many', 'completed' FROM chatrooms LIMIT {ROWS};
    INSERT INTO reply_jobs (message_id, room_id, user_id, seq, ring_at, run_at)
    SELECT id, room_id, user_id, seq, now() + interval '1 day', now() + interval '1 day'
    FROM messages WHERE seq >= 1000 LIMIT {JOBS};
    INSERT INTO idempotency_keys (user_id, key, fingerprint, reply_id)
    SELECT id, 'of many', '', id FROM users LIMIT {ROWS};
    UPDATE chatrooms SET user_id = NULL, former_user_id = user_id
    WHERE id IN (SELECT room_id FROM messages WHERE content = 'One of many' LIMIT {DELETED_ROOMS});
    ANALYZE users, sessions, refresh_tokens, daily_usage, chatrooms, messages, reply_jobs, idempotency_keys
"""  # noqa: S608 - of our own
LARGE = frozenset(
    {"users", "sessions", "refresh_tokens", "daily_usage", "chatrooms", "messages", "reply_jobs", "idempotency_keys"}
)
SCANS = "SELECT relname, seq_scan FROM pg_stat_xact_user_tables WHERE seq_scan > 0"


class Filled:
    """A transaction in which the tables are large. It is never committed."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._cursor = connection.cursor()
        self._cursor.execute(FILL)

    def scanned_by(self, statement: str) -> dict[str, Any]:
        """Run a statement, undo it, and return which large tables were read as a whole, with its plan."""
        self._cursor.execute("SAVEPOINT before")
        try:
            self._cursor.execute(f"EXPLAIN (FORMAT JSON) {statement}")
            plan = self._cursor.fetchone()[0]
            before = self._scans()
            # What was stored under its id cannot be stored again; it has been looked for by then.
            with suppress(UniqueViolation):
                self._cursor.execute(statement)
        finally:
            self._cursor.execute("ROLLBACK TO before")
        after = self._scans()  # They are not undone.
        scanned = {table for table in LARGE if after.get(table, 0) > before.get(table, 0)}
        return {table: json.dumps(plan, indent=1) for table in scanned}

    def bound(self, statement: str, parameters: Mapping[str, Any]) -> str:
        """Return a statement with its values."""
        bound: bytes = self._cursor.mogrify(statement, parameters)
        return bound.decode()

    def forget_statistics(self, table: str) -> None:
        """Have PostgreSQL know nothing of what is in a table."""
        self._cursor.execute("DELETE FROM pg_statistic WHERE starelid = %s::regclass", [table])

    def rows_of(self, statement: str) -> list[tuple[Any, ...]]:
        """Return what a statement does."""
        self._cursor.execute(statement)
        rows: list[tuple[Any, ...]] = self._cursor.fetchall()
        return rows

    def _scans(self) -> dict[str, int]:
        """Return how often each table was read as a whole in this transaction, be it within a function or a cascade."""
        self._cursor.execute(SCANS)
        return dict(self._cursor.fetchall())


@pytest.fixture
def filled(services: Services) -> Iterator[Filled]:
    connection = psycopg2.connect(services.postgres.url)
    yield Filled(connection)
    connection.rollback()
    connection.close()


def without_ends(sent: list[str]) -> set[str]:
    return {each for each in sent if not each.lstrip().startswith(("BEGIN", "COMMIT", "ROLLBACK", "SET", "SHOW"))}


@pytest.fixture
def asked(account: Account, attempt: Callable[..., None]) -> set[str]:
    """All that is asked of PostgreSQL for what users do most, with values that are there."""
    room = account.open_room(title="One")
    account.call("GET", "/chatroom")
    with round_trips() as sent:
        reply = account.prompt(room, "hello")
        attempt(reply)
        for method, path in COSTS:
            body = BODIES.get(path) if method in ("POST", "PATCH") else None
            answer = account.call(method, path.format(room=room, reply=reply), body)
            assert answer.status_code < 300, answer.get_json()
        account.call("DELETE", f"/chatroom/{account.open_room()}")
    return without_ends(sent.statements)


def test_no_request_and_no_reply_reads_a_large_table_as_a_whole(asked: set[str], filled: Filled) -> None:
    assert len(asked) > 25

    found = {statement: tables for statement in asked if (tables := filled.scanned_by(statement))}

    assert not found, "\n".join(f"{statement}\n{tables}" for statement, tables in found.items())


def test_sweeper_reads_no_large_table_as_a_whole_but_the_jobs(app: Flask, filled: Filled) -> None:
    """Of jobs there are no more than `MAX_BACKLOG`. More indexes on them would cost each prompt something."""
    with app.app_context(), round_trips() as sent:
        sweep()
        end_overdue()
        clear_rooms()
        clean()
    asked = without_ends(sent.statements)
    assert len(asked) > 10

    assert {table for statement in asked for table in filled.scanned_by(statement)} <= {"reply_jobs"}


def test_rooms_are_cleared_by_their_index_before_postgresql_knows_how_few_they_are(
    app: Flask, account: Account, filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after the migration that adds the column: it takes nearly all rooms for deleted ones then."""
    monkeypatch.setattr(service, "DELETED_AT_ONCE", -1)
    account.call("DELETE", f"/chatroom/{account.open_room()}")
    with app.app_context(), round_trips() as sent:
        clear_rooms()
    filled.forget_statistics("chatrooms")

    asked = without_ends(sent.statements)

    assert len(asked) >= 3
    assert {table for statement in asked for table in filled.scanned_by(statement)} == set()


def test_accepting_a_prompt_reads_no_large_table_as_a_whole(
    app: Flask, account: Account, filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []

    def note(statement: str, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        sent.append(filled.bound(statement, parameters))
        return [("accepted", datetime.now(UTC), None)]

    room = account.open_room()
    with app.app_context():
        monkeypatch.setattr(prompts, "run_alone", note)
        prompts.post_message(UUID(account.id), room, "hello")

    (statement,) = sent
    assert filled.scanned_by(statement) == {}
    assert filled.rows_of(statement)[0][0] == "accepted"


def test_statement_without_an_index_would_be_noticed(filled: Filled) -> None:
    assert list(filled.scanned_by("SELECT count(*) FROM messages WHERE status = 'failed'")) == ["messages"]
    by_index = filled.bound("SELECT id FROM messages WHERE room_id = %(id)s ORDER BY seq LIMIT 1", {"id": NEVER_WAS})
    assert filled.scanned_by(by_index) == {}
