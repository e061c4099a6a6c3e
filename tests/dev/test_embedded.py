"""The embedded PostgreSQL and Valkey: real servers, killed for real."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest
import redis

from chatapi.dev import embedded
from chatapi.dev.embedded import EmbeddedPostgres, EmbeddedValkey, StartError, free_port
from chatapi.dev.processes import wait_until


def query(url: str, sql: str) -> list[tuple[object, ...]]:
    connection = psycopg2.connect(url)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(tmp_path / "postgres")
    server.prepare()
    yield server
    if server.socket_dir != server.data_dir:
        for path in server.socket_dir.iterdir():
            path.unlink()
        server.socket_dir.rmdir()


def test_postgres_is_utf8_in_utc_with_the_same_order_everywhere(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    child = postgres.child(tmp_path / "log")
    child.start()
    try:
        assert postgres.wait_ready()
        settings = "server_encoding", "timezone", "max_connections", "listen_addresses", "fsync"
        values = [query(postgres.url, f"SHOW {name}")[0][0] for name in settings]
        assert values == ["UTF8", "UTC", "200", "", "on"]
        assert query(postgres.url, "SELECT datlocprovider, datlocale FROM pg_database WHERE datname = 'postgres'") == [
            ("b", "C.UTF-8")
        ]
        assert query(postgres.url, "SELECT upper('é'), 'a' > 'B'") == [("É", True)]
    finally:
        child.stop()
    assert child.poll() == 0
    assert not postgres.is_ready()


def test_postgres_keeps_committed_rows_when_killed_and_when_stopped(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    child = postgres.child(tmp_path / "log")
    child.start()
    try:
        assert postgres.wait_ready()
        query(postgres.url, "CREATE TABLE kept (n int); INSERT INTO kept VALUES (1)")
        child.kill()
        child.start()
        assert postgres.wait_ready()
        query(postgres.url, "INSERT INTO kept VALUES (2)")
        child.stop()
        again = EmbeddedPostgres(tmp_path / "postgres")
        again.prepare()
        child = again.child(tmp_path / "log")
        child.start()
        assert again.wait_ready()
        assert query(again.url, "SELECT n FROM kept ORDER BY n") == [(1,), (2,)]
    finally:
        child.kill()


def test_postgres_lets_only_its_owner_in(postgres: EmbeddedPostgres) -> None:
    assert stat.S_IMODE(postgres.data_dir.stat().st_mode) == 0o700
    assert stat.S_IMODE(postgres.socket_dir.stat().st_mode) == 0o700


def test_postgres_ends_a_server_that_a_killed_runner_left(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    first = postgres.child(tmp_path / "log")
    first.start()
    assert postgres.wait_ready()
    second = postgres.child(tmp_path / "log")
    second.start()
    try:
        assert wait_until(lambda: first.poll() is not None, 10.0)
        assert first.poll() == 0
        assert postgres.wait_ready()
        assert second.is_running()
    finally:
        second.kill()
        first.kill()


@pytest.mark.skipif(os.geteuid() == 0, reason="root's server runs as another user, who may not be a stranger's equal")
def test_postgres_starts_when_its_old_number_is_a_strangers(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    (postgres.cluster / "postmaster.pid").write_text(f"{os.getpid()}\n{postgres.cluster}\n0\n5432\n\n\n\nready\n")
    child = postgres.child(tmp_path / "log")
    child.start()
    try:
        assert postgres.wait_ready()
    finally:
        child.kill()


def test_postgres_starts_over_when_making_the_database_was_interrupted(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "postgres")
    (server.data_dir / "data.new").mkdir(parents=True)
    (server.data_dir / "data.new" / "PG_VERSION").write_text("18\n")
    server.prepare()
    assert (server.cluster / "global" / "pg_control").exists()


@pytest.mark.parametrize("name", ["x" * 120, "with space, comma: colon and 100%"])
def test_postgres_answers_when_the_path_does_not_fit_a_socket(tmp_path: Path, name: str) -> None:
    server = EmbeddedPostgres(tmp_path / name / "postgres")
    server.prepare()
    child = server.child(tmp_path / "log")
    child.start()
    try:
        assert server.wait_ready()
        assert server.socket_dir != server.data_dir
    finally:
        child.stop()
        server.socket_dir.rmdir()


def test_postgres_says_in_a_sentence_that_data_are_of_another_version(postgres: EmbeddedPostgres) -> None:
    (postgres.cluster / "PG_VERSION").write_text("16\n")
    with pytest.raises(StartError, match=r"was made by PostgreSQL 16, not 18; move it away or set DATABASE_URL\.$"):
        postgres.prepare()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs another user")
def test_postgres_says_in_a_sentence_that_useradd_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "SYSTEM_USER", "nobody-has-this-name")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StartError, match="useradd is missing") as error:
        EmbeddedPostgres(tmp_path / "postgres").prepare()
    assert "\n" not in str(error.value)


def test_servers_are_found_without_a_warning() -> None:
    environ = {name: value for name, value in os.environ.items() if name != "XDG_RUNTIME_DIR"}
    program = (
        "from pathlib import Path; from chatapi.dev.embedded import EmbeddedPostgres; EmbeddedPostgres(Path('/x'))"
    )
    command = [sys.executable, "-W", "error", "-c", program]
    result = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert result.stdout + result.stderr == ""


@pytest.fixture
def valkey(tmp_path: Path) -> EmbeddedValkey:
    server = EmbeddedValkey(tmp_path / "valkey", free_port())
    server.prepare()
    return server


def test_valkey_never_evicts_and_listens_on_loopback_only(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    child = valkey.child(tmp_path / "log")
    child.start()
    try:
        assert valkey.wait_ready()
        with redis.Redis.from_url(valkey.url, decode_responses=True) as client:
            settings = "maxmemory-policy", "appendonly", "bind", "protected-mode"
            values = [client.config_get(name)[name] for name in settings]
        assert values == ["noeviction", "yes", "127.0.0.1", "yes"]
    finally:
        child.stop()
    assert child.poll() == 0
    assert not valkey.is_ready()


def test_valkey_keeps_its_data_when_killed_and_when_stopped(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    child = valkey.child(tmp_path / "log")
    child.start()
    try:
        assert valkey.wait_ready()
        with redis.Redis.from_url(valkey.url, decode_responses=True) as client:
            client.set("first", "1")
        # What was written is with the kernel, which outlives the process; only the disk may be a second behind.
        child.kill()
        child.start()
        assert valkey.wait_ready()
        with redis.Redis.from_url(valkey.url, decode_responses=True) as client:
            client.set("second", "2")
        child.restart()
        assert valkey.wait_ready()
        with redis.Redis.from_url(valkey.url, decode_responses=True) as client:
            assert client.mget("first", "second") == ["1", "2"]
    finally:
        child.kill()


def test_valkey_ends_a_server_that_a_killed_runner_left(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    first = valkey.child(tmp_path / "log")
    first.start()
    assert valkey.wait_ready()
    second = EmbeddedValkey(tmp_path / "valkey", free_port())
    child = second.child(tmp_path / "log")
    child.start()
    try:
        assert wait_until(lambda: first.poll() is not None, 10.0)
        assert first.poll() == 0
        assert second.wait_ready()
    finally:
        child.kill()
        first.kill()


def test_leftover_that_does_not_end_is_named_in_a_sentence(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    child = valkey.child(tmp_path / "log")
    child.start()
    assert valkey.wait_ready()
    assert child.pid
    os.kill(child.pid, signal.SIGSTOP)
    try:
        with pytest.raises(StartError, match=rf"does not end; end it with `kill -9 {child.pid}`\.$"):
            embedded._end_leftover(valkey._pid_file, valkey.data_dir, signal.SIGTERM, 0.2)
    finally:
        child.kill()


def test_free_port_can_be_bound_and_is_none_for_outgoing_connections() -> None:
    port = free_port()
    assert port < 32768
    with socket.socket() as server:
        server.bind(("127.0.0.1", port))
