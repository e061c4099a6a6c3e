"""Up and down with rows in every table: what both schemas can hold is there after each step."""

# ruff: noqa: S608 - what is put together here comes from the catalogue

from __future__ import annotations

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from flask import Flask
from flask_migrate import downgrade, upgrade
from sqlalchemy import select, text

from chatapi.app import MIGRATIONS
from chatapi.auth.sessions import hash_token
from chatapi.extensions import Base, db
from tests.migrations.filling import ONE_ROW, fill
from tests.migrations.support import schema

REVISIONS = [script.revision for script in reversed(list(ScriptDirectory(str(MIGRATIONS)).walk_revisions()))]

NOT_KEPT_ON_THE_WAY_DOWN = {
    "0002": "DELETE FROM refresh_tokens WHERE used_at IS NOT NULL",
    "0009": "DELETE FROM chatrooms WHERE user_id IS NULL",
}
"""What a way down deletes, as the release before it knows no such rows."""


def execute(statement: str) -> list[tuple[object, ...]]:
    """Run a statement and commit; return its rows, if it has any."""
    result = db.session.execute(text(statement))
    rows = [tuple(row) for row in result] if result.returns_rows else []
    db.session.commit()
    db.session.remove()
    return rows


def tables() -> dict[str, set[str]]:
    """Return the columns of each table."""
    inspector = db.inspect(db.engine)
    names = [name for name in inspector.get_table_names() if name != "alembic_version"]
    return {name: {column["name"] for column in inspector.get_columns(name)} for name in names}


def remember_rows() -> dict[str, set[str]]:
    """Put a copy of every table aside."""
    execute("DROP SCHEMA IF EXISTS kept CASCADE; CREATE SCHEMA kept")
    for table in tables():
        execute(f"CREATE TABLE kept.{table} AS TABLE public.{table}")
    return tables()


def lost_or_changed(before: dict[str, set[str]]) -> list[str]:
    """Return the tables of which a row is not what it was, in the columns that are there before and after."""
    after = tables()
    found = []
    for table in before.keys() & after.keys():
        columns = ", ".join(sorted(before[table] & after[table]))
        kept, now = f"SELECT {columns} FROM kept.{table}", f"SELECT {columns} FROM public.{table}"
        difference = f"({kept} EXCEPT ALL {now}) UNION ALL ({now} EXCEPT ALL {kept})"
        if execute(f"SELECT count(*) FROM ({difference}) AS other") != [(0,)]:
            found.append(table)
    return found


def assert_filled() -> None:
    """Hold that there is something in every table, and that some messages are replies."""
    counts = {name: execute(f"SELECT count(*) FROM {name}")[0][0] for name in tables() if name not in ONE_ROW}
    assert [name for name, count in counts.items() if count < 10] == []
    assert execute("SELECT count(DISTINCT status) FROM messages WHERE reply_to IS NOT NULL") == [(5,)]


def go_up_and_down(rows: int) -> None:
    """Go up one by one, filling each schema, down one by one and up again, and hold that no row changes."""
    schemas = {"base": set[tuple[str, ...]]()}
    for number, revision in enumerate(REVISIONS, start=1):
        before = remember_rows()
        upgrade(revision=revision)
        assert lost_or_changed(before) == [], f"up to {revision}"
        schemas[revision] = schema()
        fill(rows, seed=100 + number)
        assert_filled()
    for revision, previous in reversed(list(zip(REVISIONS, [None, *REVISIONS[:-1]], strict=True))):
        if revision in NOT_KEPT_ON_THE_WAY_DOWN:
            execute(NOT_KEPT_ON_THE_WAY_DOWN[revision])
        before = remember_rows()
        downgrade(revision=previous or "base")
        assert lost_or_changed(before) == [], f"down from {revision}"
        assert (schema() if previous else set(tables())) == (schemas[previous] if previous else set()), revision
    upgrade()
    assert schema() == schemas[REVISIONS[-1]]


def test_rows_stay_as_they_are_when_migrations_go_up_and_down_one_by_one(fresh_app: Flask) -> None:
    go_up_and_down(rows=300)


@pytest.mark.slow
def test_rows_stay_as_they_are_when_there_are_many(fresh_app: Flask) -> None:
    go_up_and_down(rows=2_000)


def test_models_read_rows_of_every_kind_when_earlier_schemas_were_filled(fresh_app: Flask) -> None:
    for number, revision in enumerate(REVISIONS, start=1):
        upgrade(revision=revision)
        fill(20, seed=200 + number)

    for mapper in Base.registry.mappers:
        assert db.session.scalars(select(mapper)).all(), mapper
    db.session.remove()


def test_migrations_make_what_the_models_say(fresh_app: Flask) -> None:
    upgrade()

    with db.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []


def test_refresh_tokens_go_on_when_sessions_come_and_go(fresh_app: Flask) -> None:
    upgrade(revision="0001")
    token = "a refresh token of the earlier release"
    db.session.execute(text("INSERT INTO users (id, mobile_number, number_hash) VALUES (gen_random_uuid(), '+15', '')"))
    db.session.execute(
        text(
            "INSERT INTO refresh_tokens (id, user_id, family_id, token_hash, expires_at) "
            "SELECT gen_random_uuid(), id, gen_random_uuid(), :hash, now() + interval '1 day' FROM users"
        ),
        {"hash": hash_token(token)},
    )
    db.session.commit()
    db.session.remove()

    upgrade()
    answer = fresh_app.test_client().post("/auth/refresh", json={"refresh_token": token})
    assert answer.status_code == 200
    headers = {"Authorization": f"Bearer {answer.get_json()['token']}"}
    assert fresh_app.test_client().get("/user/me", headers=headers).status_code == 200
    db.session.remove()
    downgrade(revision="0001")

    left = db.session.execute(text("SELECT user_id, token_hash FROM refresh_tokens")).all()
    users = db.session.scalars(text("SELECT id FROM users")).all()
    assert [(row.user_id, bytes(row.token_hash)) for row in left] == [
        (users[0], hash_token(answer.get_json()["refresh_token"]))
    ]
