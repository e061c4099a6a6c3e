"""Rows for every table of whatever schema is there, made from the catalogue, so that new tables are filled as well."""

# ruff: noqa: S608 - what is put together here comes from the catalogue

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import inspect, text
from sqlalchemy.engine.interfaces import ReflectedColumn
from sqlalchemy.engine.reflection import Inspector

from chatapi.extensions import db

TEXTS = (
    "'plain'",
    "'שלום עולם'",
    "U&'\\0645\\0631\\062D\\0628\\0627 \\200F\\2067abc\\2069'",
    "E'line\\nbreak\\tand tab'",
    "'🦊 fox'",
    "'it''s \\ \"quoted\"'",
    "''",
    "repeat('long ', 600)",
)

BY_TYPE = {
    "UUID": "gen_random_uuid()",
    "BYTEA": "sha256(({seed} || n)::bytea)",
    "TEXT": "(ARRAY[{texts}])[1 + n % {count}] || CASE WHEN n % 3 = 0 THEN '' ELSE ' ' || n END",
    "DATE": "date '2026-01-01' + n % 300",
    "TIMESTAMP": "timestamptz '2026-11-01 00:00:00.123456Z' + n * interval '1 second'",
    "BOOLEAN": "n % 2 = 0",
    "JSONB": "jsonb_build_object('n', n, 'none', null)",
    "ARRAY": "ARRAY[now(), timestamptz '2026-11-01Z' + n * interval '1 second']",
    "SMALLINT": "n % 1000",
    "INTEGER": "n",
    "BIGINT": "n + 5000000000",
}

# Every second message is a reply to the one before it, with each status in turn.
PARTICULAR = {
    ("messages", "message_type"): "CASE WHEN n % 2 = 1 THEN 'user' ELSE 'ai' END",
    ("messages", "status"): (
        "CASE WHEN n % 2 = 1 THEN 'completed' ELSE"
        " (ARRAY['pending', 'processing', 'completed', 'failed', 'stopped'])[1 + n / 2 % 5] END"
    ),
    ("messages", "reply_to"): None,
    ("chatrooms", "former_user_id"): None,  # A room has an owner, or had one.
    ("messages", "seq"): "n + 5000000000",
    ("users", "mobile_number"): "'+1' || ({seed} || lpad(n::text, 8, '0'))",
}
REPLIES = """
    UPDATE messages SET reply_to = prompt.id FROM messages AS prompt
    WHERE messages.message_type = 'ai' AND messages.reply_to IS NULL
    AND prompt.seq = messages.seq - 1 AND prompt.created_at = messages.created_at - interval '1 second'
    AND prompt.room_id = messages.room_id
"""
ONE_ROW = ("billing_reconciliation", "alembic_version")


def fill(rows: int, seed: int) -> None:
    """Add `rows` rows to every table of the database; other seeds make other rows."""
    inspector = inspect(db.engine)
    for table, _ in inspector.get_sorted_table_and_fkc_names():
        if table and table not in ONE_ROW:
            db.session.execute(text(_insertion(inspector, table, rows, seed).replace(":", "\\:")))
    db.session.execute(text(REPLIES))
    db.session.commit()
    db.session.remove()


def _insertion(inspector: Inspector, table: str, rows: int, seed: int) -> str:
    referred = {
        key["constrained_columns"][0]: (key["referred_table"], key["referred_columns"][0])
        for key in inspector.get_foreign_keys(table)
        if key["referred_table"] != table
    }
    names, values, keys = [], [], []
    for column, value in _values(inspector, table, seed):
        name = column["name"]
        names.append(name)
        if name in referred:
            to, key = referred[name]
            keys.append(f"of_{name} AS MATERIALIZED (SELECT array_agg({key} ORDER BY {key}) AS ids FROM {to})")
            # Two rows that follow each other belong together, as a prompt and its reply do.
            values.append(f"(SELECT ids[1 + (n + 1) / 2 % cardinality(ids)] FROM of_{name})")
        else:
            values.append(value)
    keys.append(f"rows AS (SELECT n FROM generate_series(1, {rows}) AS n)")
    return (
        f"WITH {', '.join(keys)} INSERT INTO {table} ({', '.join(names)})"
        f" SELECT {', '.join(values)} FROM rows ON CONFLICT DO NOTHING"
    )


def _values(inspector: Inspector, table: str, seed: int) -> Iterator[tuple[ReflectedColumn, str]]:
    texts = ", ".join(TEXTS)
    for place, column in enumerate(inspector.get_columns(table)):
        expression = PARTICULAR.get((table, column["name"]), BY_TYPE[type(column["type"]).__name__])
        if expression is None:
            continue
        value = expression.format(seed=f"'{seed}'", texts=texts, count=len(TEXTS))
        # A third of the rows has nothing where nothing is allowed, not always the same third.
        yield column, f"CASE WHEN (n + {place}) % 3 > 0 THEN {value} END" if column["nullable"] else value
