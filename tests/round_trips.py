"""What is sent to PostgreSQL and Redis, seen at the drivers, by whatever way it comes there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from psycopg2.extensions import STATUS_BEGIN
from psycopg2.extensions import cursor as PlainCursor  # noqa: N812
from redis.connection import AbstractConnection

from chatapi.database_waits import BoundedConnection


@dataclass
class RoundTrips:
    """`statements` as they were sent, with their values; `BEGIN`, `COMMIT` and `ROLLBACK` are among them."""

    statements: list[str] = field(default_factory=list)
    commands: int = 0


@contextmanager
def round_trips() -> Iterator[RoundTrips]:
    """Note within the block what this process sends."""
    found = RoundTrips()
    cursor_of, send = BoundedConnection.cursor, AbstractConnection.send_packed_command

    class NotedCursor(PlainCursor):
        def execute(self, query: Any, vars: Any = None) -> None:  # noqa: A002 - psycopg2's signature
            if not self.connection.autocommit and self.connection.status != STATUS_BEGIN:
                found.statements.append("BEGIN")
            found.statements.append(self.mogrify(query, vars).decode())
            super().execute(query, vars)

    def cursor(self: Any, *words: Any, **options: Any) -> Any:
        return cursor_of(self, *words, **{**options, "cursor_factory": NotedCursor})

    def noting(statement: str) -> Any:
        inner = getattr(BoundedConnection, statement.lower())

        def run(self: Any) -> None:
            if self.status == STATUS_BEGIN:
                found.statements.append(statement)
            inner(self)

        return run

    def sending(self: Any, *words: Any, **options: Any) -> Any:
        found.commands += 1
        return send(self, *words, **options)

    with (
        patch.object(BoundedConnection, "cursor", cursor),
        patch.object(BoundedConnection, "commit", noting("COMMIT")),
        patch.object(BoundedConnection, "rollback", noting("ROLLBACK")),
        patch.object(AbstractConnection, "send_packed_command", sending),
    ):
        yield found
