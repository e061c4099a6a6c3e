"""What the runner says in a sentence when it cannot do what it is asked for."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from chatapi.dev.embedded import free_port
from chatapi.dev.processes import wait_until
from tests.dev.run_support import Run, answers


def test_run_says_in_a_sentence_that_the_port_is_taken(start: Callable[..., Run]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", free_port()))
        other.listen()
        port = other.getsockname()[1]
        run = start(PORT=str(port))
        assert run.process.wait(30) == 1
    assert run.errors.read_text() == (
        f"Port {port} of 127.0.0.1 cannot be used (Address already in use); "
        f"end what uses it, or take another: `PORT={port + 1} make run`.\n"
    )
    assert run.output.read_text() == ""


def test_run_says_in_a_sentence_that_its_folder_is_in_use(start: Callable[..., Run]) -> None:
    first = start()
    first.wait_ready()
    second = start()
    assert second.process.wait(30) == 1
    assert second.errors.read_text() == (
        f"{first.data_dir} is in use by another `make run` (process {first.process.pid}); stop that one first.\n"
    )
    assert answers(first.port)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("raise ValueError('no such thing')", "exit status 1: ValueError: no such thing"),
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL"),
    ],
)
def test_run_gives_up_in_a_sentence_when_a_process_keeps_dying(
    start: Callable[..., Run], program: str, reason: str
) -> None:
    run = start(TEST_WORKER=program)
    assert run.process.wait(60) == 1
    log = run.data_dir / "logs" / "worker.log"
    assert run.errors.read_text() == f"worker died 3 times at the start: {reason} ({log} has the rest).\n"
    assert wait_until(lambda: not run.processes(), 5)


def test_run_says_in_a_sentence_that_migrations_failed(start: Callable[..., Run]) -> None:
    run = start(TEST_MIGRATION="raise ValueError('bad revision')")
    assert run.process.wait(60) == 1
    log = run.data_dir / "logs" / "migrations.log"
    sentence = "The database cannot be migrated: exit status 1: ValueError: bad revision"
    assert run.errors.read_text() == f"{sentence} ({log} has the rest).\n"
    assert wait_until(lambda: not run.processes(), 5)


def test_run_says_in_a_sentence_that_a_configured_database_is_away(start: Callable[..., Run]) -> None:
    run = start(DATABASE_URL=f"postgresql://somebody:secret@127.0.0.1:{free_port()}/chat")
    assert run.process.wait(30) == 1
    said = run.errors.read_text()
    assert said.startswith("The PostgreSQL of DATABASE_URL cannot be reached: ")
    assert said.count("\n") == 1
    assert "secret" not in said


def test_production_run_starts_no_server_and_names_what_is_missing(start: Callable[..., Run]) -> None:
    run = start(APP_ENV="production", GEMINI_API_ENDPOINT="")
    assert run.process.wait(30) == 1
    said = run.errors.read_text()
    assert said.startswith("Cannot start:\n")
    for name in ("DATABASE_URL", "REDIS_URL", "GEMINI_API_KEY", "OTP_DELIVERY"):
        assert f"- {name} is not set" in said
    assert "Traceback" not in said
    assert not (run.data_dir / "postgres").exists()


def test_run_says_in_a_sentence_that_its_folder_cannot_be_used(start: Callable[..., Run], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    run = start(data_dir=tmp_path / "file" / "data")
    assert run.process.wait(30) == 1
    assert run.errors.read_text().count("\n") == 1
    assert "Traceback" not in run.errors.read_text()
