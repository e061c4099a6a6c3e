"""What the doctor says of PostgreSQL and its schema, with the real thing wrong."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.pool import NullPool

from chatapi.dev.embedded import free_port
from chatapi.doctor import postgres
from chatapi.doctor.postgres import check_postgres
from chatapi.doctor.settings import Settings
from tests.doctor.support import Read, named
from tests.support import Services


@pytest.fixture
def database(services: Services) -> Iterator[str]:
    """The URL of an empty database, and a role `reader` beside its owner."""
    admin = create_engine(
        services.environ["DATABASE_URL"].replace("postgresql:", "postgresql+psycopg2:"),
        isolation_level="AUTOCOMMIT",
        poolclass=NullPool,
    )
    with admin.connect() as connection:
        connection.execute(text("CREATE DATABASE doctors"))
        connection.execute(text("CREATE ROLE reader LOGIN"))
        yield services.environ["DATABASE_URL"].replace("@/postgres?", "@/doctors?")
        connection.execute(text("DROP DATABASE doctors WITH (FORCE)"))
        connection.execute(text("DROP ROLE reader"))


def execute(url: str, *statements: str) -> None:
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg2:"), poolclass=NullPool)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


def test_doctor_says_that_postgresql_is_away(read: Read) -> None:
    port = free_port()

    found = named(check_postgres(read(DATABASE_URL=f"postgresql://nobody@127.0.0.1:{port}/chat")), "postgresql")

    assert found.state == "failed"
    assert found.found == f"chat at 127.0.0.1:{port} cannot be used: Connection refused"


@pytest.mark.parametrize(
    ("statements", "state", "said"),
    [
        ([], "failed", "there is no schema yet"),
        (["INSERT INTO alembic_version VALUES ('0001')"], "failed", "behind this code: 0001, not"),
        (["INSERT INTO alembic_version VALUES ('9999')"], "warning", "is newer than this code"),
        (["INSERT INTO alembic_version VALUES ('0001'), ('0002')"], "failed", "0001, 0002 at once"),
    ],
)
def test_doctor_tells_how_the_schema_stands(
    read: Read, database: str, statements: list[str], state: str, said: str
) -> None:
    if statements:
        execute(database, "CREATE TABLE alembic_version (version_num text)", *statements)

    found = named(check_postgres(read(DATABASE_URL=database)), "migrations")

    assert found.state == state
    assert said in found.found
    assert found.advice


def test_doctor_says_that_postgresql_only_lets_us_read(read: Read, database: str) -> None:
    execute(database, "CREATE TABLE things (id int)", "GRANT SELECT, INSERT, UPDATE ON things TO reader")

    of_owner = named(check_postgres(read(DATABASE_URL=database)), "postgresql writes")
    of_reader = named(check_postgres(read(DATABASE_URL=database.replace("postgres@", "reader@"))), "postgresql writes")
    execute(database, "ALTER DATABASE doctors SET default_transaction_read_only = on")
    of_replica = named(check_postgres(read(DATABASE_URL=database)), "postgresql writes")

    assert [found.state for found in (of_owner, of_reader, of_replica)] == ["ok", "failed", "failed"]
    assert of_reader.advice == "GRANT SELECT, INSERT, UPDATE, DELETE on the tables to reader."


def test_doctor_warns_when_there_is_no_room_for_all_connections(read: Read, database: str) -> None:
    name = "postgresql room"
    assert named(check_postgres(read(DATABASE_URL=database)), name).state == "ok"

    crowded = named(check_postgres(read(DATABASE_URL=database, WEB_CONCURRENCY="20")), name)
    execute(database, "ALTER DATABASE doctors CONNECTION LIMIT 30")
    limited = named(check_postgres(read(DATABASE_URL=database)), name)

    assert (crowded.state, limited.state) == ("warning", "warning")
    assert "may open 69 connections, and there is room for 30" in limited.found


def test_doctor_refuses_an_old_postgresql(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "OLDEST_VERSION", 99)

    assert named(check_postgres(read()), "postgresql").state == "failed"


def test_doctor_says_that_only_the_way_of_migrations_is_broken(read: Read) -> None:
    found = list(check_postgres(read(DATABASE_DIRECT_URL=f"postgresql://nobody@127.0.0.1:{free_port()}/chat")))

    assert named(found, "postgresql").state == "ok"
    assert named(found, "postgresql direct").state == "failed"


@pytest.mark.parametrize(
    ("host", "expected"), [("db.example.com", True), ("10.0.0.5", True), ("/run/postgresql", False), ("::1", False)]
)
def test_doctor_wants_tls_where_connections_leave_the_machine(read: Read, host: str, expected: bool) -> None:
    settings = read()
    engine = create_engine(settings["DATABASE_URL"], poolclass=NullPool)
    elsewhere = Settings({**settings.values, "DATABASE_URL": make_url(settings["DATABASE_URL"]).set(host=host)})

    with engine.connect() as connection:
        found = postgres._check_tls(connection, elsewhere)

    assert (found.state == "warning") is expected
