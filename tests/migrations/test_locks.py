"""Migrations while others use the database: they wait little, make nobody wait long, and never run twice at once."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg2
import pytest
from flask import Flask
from flask_migrate import upgrade
from sqlalchemy import text

from chatapi.extensions import db
from config import ROOT
from tests.migrations.support import add_migration
from tests.support import Services, wait_for

Connect = Callable[[], psycopg2.extensions.connection]

QUICK = ["lock_timeout=0.4", "attempts=2"]
WIDEN = "op.execute('ALTER TABLE messages ADD COLUMN mood text')"
INDEX_CONCURRENTLY = """
with op.get_context().autocommit_block():
    op.execute("DROP INDEX CONCURRENTLY IF EXISTS ix_made_up")
    op.execute("CREATE INDEX CONCURRENTLY ix_made_up ON messages (model)")
"""


def revision() -> str:
    found: str = db.session.execute(text("SELECT version_num FROM alembic_version")).scalar_one()
    db.session.remove()
    return found


def has_column() -> bool:
    columns = {column["name"] for column in db.inspect(db.engine).get_columns("messages")}
    return "mood" in columns


def index_waits() -> bool:
    statement = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX%' AND wait_event_type = 'Lock'"
    found: int = db.session.execute(text(statement)).scalar_one()
    db.session.remove()  # Within one transaction, the answer stays what it was.
    return found == 1


def somebody_waits() -> bool:
    statement = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    found: int = db.session.execute(text(statement)).scalar_one()
    db.session.remove()
    return found == 1


@pytest.fixture
def widening(fresh_app: Flask, migrations: Path) -> Path:
    """A database at the present head, and migrations with one more that needs `messages` for itself."""
    upgrade()
    add_migration(migrations, "9001", fresh_app.config["HEAD_REVISION"], WIDEN)
    return migrations


@pytest.fixture
def start_run(fresh_app: Flask, services: Services) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return what starts `flask db upgrade` as a process, as one host of several would."""
    usual = {**os.environ, **services.environ, "DATABASE_URL": fresh_app.config["DATABASE_URL"], "FLASK_APP": "wsgi"}

    with ExitStack() as stack:

        def start(*options: str, **changes: str) -> subprocess.Popen[str]:
            command = [sys.executable, "-m", "flask", "db", "upgrade", *options]
            environ = {**usual, **changes}
            process = subprocess.Popen(
                command, cwd=ROOT, env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


@contextmanager
def long_transaction(connect: Connect, statement: str) -> Iterator[psycopg2.extensions.connection]:
    """Leave a transaction open within the block that has run `statement`."""
    connection = connect()
    with connection.cursor() as cursor:
        cursor.execute(statement)
    yield connection
    connection.rollback()


class Reader:
    """Reads `messages` again and again, as requests do, and notes how long each time takes."""

    def __init__(self, connect: Connect) -> None:
        self._connection = connect()
        self._connection.autocommit = True
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self.seconds: list[float] = []

    def _read(self) -> None:
        with self._connection.cursor() as cursor:
            while not self._is_over.is_set():
                began = time.monotonic()
                cursor.execute("SELECT count(*) FROM messages")
                self.seconds.append(time.monotonic() - began)
                time.sleep(0.01)

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT count(*) FROM messages",
        pytest.param("UPDATE messages SET content = content WHERE false", marks=pytest.mark.slow),
    ],
)
def test_migration_gives_up_with_a_sentence_and_readers_go_on_when_a_long_transaction_has_the_table(
    widening: Path, connect: Connect, caplog: pytest.LogCaptureFixture, statement: str
) -> None:
    before = revision()
    began = time.monotonic()
    with long_transaction(connect, statement), Reader(connect) as reader, pytest.raises(SystemExit) as ended:
        upgrade(directory=widening, x_arg=QUICK)

    assert time.monotonic() - began < 8
    assert ended.value.code == 1
    assert "got no lock within 400ms, 2 times, and was rolled back" in caplog.text
    assert "idle in transaction" in caplog.text
    assert "Traceback" not in caplog.text
    assert revision() == before
    assert not has_column()
    # Whoever came behind the waiting migration was held up by it, for no longer than it waits.
    assert 0.2 < max(reader.seconds) < 1.5
    assert len(reader.seconds) > 20


def test_migration_is_run_after_all_when_the_transaction_ends_in_time(
    widening: Path, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    connection = connect()
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM messages")
    waiting = threading.Timer(0.8, connection.rollback)
    waiting.start()

    upgrade(directory=widening, x_arg=["lock_timeout=0.4"])
    waiting.join()

    assert (revision(), has_column()) == ("9001", True)
    assert "migration_got_no_lock" in caplog.text


def test_earlier_migrations_stay_and_the_run_goes_on_behind_them_when_a_later_one_gets_no_lock(
    widening: Path, connect: Connect
) -> None:
    add_migration(widening, "9002", "9001", "op.execute('ALTER TABLE chatrooms ADD COLUMN mood text')")
    with long_transaction(connect, "SELECT count(*) FROM chatrooms"), pytest.raises(SystemExit):
        upgrade(directory=widening, x_arg=["lock_timeout=0.2", "attempts=1"])
    between = revision()
    upgrade(directory=widening, x_arg=QUICK)

    assert (between, revision()) == ("9001", "9002")


def test_run_waits_for_another_and_gives_up_when_it_takes_too_long(
    widening: Path, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    lock = "SELECT pg_advisory_xact_lock(hashtext('chatapi-migrations'))"
    with long_transaction(connect, lock), pytest.raises(SystemExit) as ended:
        upgrade(directory=widening, x_arg=["wait=0.3"])
    assert ended.value.code == 1
    assert "Another run of migrations is under way" in caplog.text
    assert not has_column()

    with long_transaction(connect, lock) as connection:
        release = threading.Timer(0.5, connection.rollback)
        release.start()
        upgrade(directory=widening, x_arg=["wait=10"])
        release.join()
    assert has_column()


@pytest.mark.slow
def test_index_is_made_concurrently_while_another_run_waits_and_a_transaction_is_open(
    fresh_app: Flask, migrations: Path, connect: Connect, start_run: Callable[..., subprocess.Popen[str]]
) -> None:
    upgrade()
    add_migration(migrations, "9001", fresh_app.config["HEAD_REVISION"], INDEX_CONCURRENTLY)
    connection = connect()
    connection.set_session(isolation_level="REPEATABLE READ")
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM messages")
    # An open snapshot makes the index wait for longer than a lock may take, and it does not give up.
    runs = [start_run("-d", str(migrations), "-x", "lock_timeout=0.4", "-x", "attempts=1") for _ in range(2)]
    wait_for(index_waits)
    time.sleep(1)
    assert [run.poll() for run in runs] == [None, None]
    connection.rollback()
    printed = "".join(run.communicate(timeout=60)[0] for run in runs)

    assert [run.returncode for run in runs] == [0, 0], printed
    assert printed.count("migration_run") == 1
    assert revision() == "9001"
    valid = text("SELECT indisvalid FROM pg_index WHERE indexrelid = 'ix_made_up'::regclass")
    assert db.session.execute(valid).scalar_one() is True


@pytest.mark.slow
def test_two_hosts_that_deploy_at_once_both_succeed_and_each_migration_runs_once(
    fresh_app: Flask, start_run: Callable[..., subprocess.Popen[str]]
) -> None:
    runs = [start_run() for _ in range(3)]
    printed = "".join(run.communicate(timeout=60)[0] for run in runs)

    assert [run.returncode for run in runs] == [0, 0, 0], printed
    assert revision() == fresh_app.config["HEAD_REVISION"]
    assert printed.count("migration_run") == len(fresh_app.config["KNOWN_REVISIONS"])


@pytest.mark.slow
def test_command_ends_with_status_1_and_one_sentence_when_there_is_no_database(
    start_run: Callable[..., subprocess.Popen[str]],
) -> None:
    run = start_run(DATABASE_DIRECT_URL="postgresql://u:secret-word@127.0.0.1:1/d")
    printed = run.communicate(timeout=60)[0]

    assert run.returncode == 1
    assert "The PostgreSQL of DATABASE_DIRECT_URL, or DATABASE_URL, cannot be reached" in printed
    assert "Traceback" not in printed
    assert "secret-word" not in printed


def test_command_names_no_values_when_the_rows_do_not_allow_a_migration(
    fresh_app: Flask, migrations: Path, caplog: pytest.LogCaptureFixture
) -> None:
    upgrade()
    name = "Somebody's Own"
    insert = "INSERT INTO users (id, mobile_number, number_hash, name) VALUES (gen_random_uuid(), '+1', '', :name)"
    db.session.execute(text(insert), {"name": name})
    db.session.commit()
    db.session.remove()
    wrong = "op.execute('ALTER TABLE users ALTER COLUMN name TYPE integer USING name::integer')"
    add_migration(migrations, "9001", fresh_app.config["HEAD_REVISION"], wrong)

    with pytest.raises(SystemExit):
        upgrade(directory=migrations)

    assert "A migration failed and was rolled back (22" in caplog.text
    assert name not in caplog.text


def test_request_that_changes_a_room_is_in_no_deadlock_with_the_migrations(
    fresh_app: Flask, connect: Connect, start_run: Callable[..., subprocess.Popen[str]]
) -> None:
    """It locks the account before the room, and a migration that wants both does so too."""
    upgrade(revision="0006")

    with long_transaction(connect, "UPDATE users SET rooms_version = rooms_version") as request:
        run = start_run()
        wait_for(somebody_waits, seconds=20)
        request.cursor().execute("UPDATE chatrooms SET title = title")
        request.commit()

    output, _ = run.communicate(timeout=30)
    assert (run.returncode, "migration_got_no_lock" in output) == (0, False), output
    assert revision() == fresh_app.config["HEAD_REVISION"]


def test_statements_are_printed_without_a_connection_when_asked_for_sql(
    fresh_app: Flask, capsys: pytest.CaptureFixture[str]
) -> None:
    fresh_app.config["DATABASE_DIRECT_URL"] = "postgresql+psycopg2://u:secret-word@127.0.0.1:1/d"

    upgrade(sql=True)

    printed = capsys.readouterr()
    assert printed.out.startswith("SET lock_timeout = '2000ms';")
    transactions = len(fresh_app.config["KNOWN_REVISIONS"]) + 1  # 0009 ends its own in the middle.
    assert printed.out.count("BEGIN;") == printed.out.count("COMMIT;") == transactions
    assert "secret-word" not in printed.out + printed.err
