"""The runner as a process of its own: with real servers and signals, and light stand-ins for the system."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import psycopg2
import pytest
import redis

from chatapi.dev.processes import wait_until
from tests.dev.run_support import Run, answers, hang_up_is


def test_run_says_one_line_when_everything_is_up(start: Callable[..., Run]) -> None:
    run = start()
    run.wait_ready()
    assert answers(run.port)
    lines = run.output.read_text().splitlines()
    assert lines[0] == (
        f"Ready: http://localhost:{run.port} (docs at /docs; PostgreSQL and Valkey embedded under {run.data_dir}/)"
    )
    assert wait_until(lambda: run.output.read_text().splitlines()[1:] == ["worker is up"], 5)
    assert run.errors.read_text() == ""


def test_run_tells_flask_commands_where_its_servers_are_while_they_are_up(start: Callable[..., Run]) -> None:
    run = start()
    run.wait_ready()
    services = run.services()
    assert (run.data_dir / "services.env").stat().st_mode & 0o777 == 0o600
    assert set(services) == {"DATABASE_URL", "REDIS_URL", "PORT"}
    psycopg2.connect(services["DATABASE_URL"]).close()
    with redis.Redis.from_url(services["REDIS_URL"] or "") as client:
        assert client.ping()
    run.process.terminate()
    assert run.process.wait(30) == 0
    assert not (run.data_dir / "services.env").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("number", "times"), [(signal.SIGINT, 1), (signal.SIGTERM, 2), (signal.SIGHUP, 1)])
def test_run_ends_every_process_on_a_signal(start: Callable[..., Run], number: signal.Signals, times: int) -> None:
    with hang_up_is(signal.SIG_DFL):
        run = start()
    run.wait_ready()
    assert len(run.processes()) > 5
    for _ in range(times):
        os.killpg(run.process.pid, number)
        time.sleep(0.05)
    assert run.process.wait(30) == 0
    assert wait_until(lambda: not run.processes(), 5), run.processes()
    assert run.errors.read_text() == ""


@pytest.mark.slow
def test_run_goes_on_when_its_terminal_is_closed_under_nohup(start: Callable[..., Run]) -> None:
    with hang_up_is(signal.SIG_IGN):
        run = start()
    run.wait_ready()
    os.killpg(run.process.pid, signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):  # It looks ten times a second whether it is to end.
        run.process.wait(0.5)
    assert answers(run.port)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.1, 0.3, 0.6, 1.0, 1.5, 2.0, 2.5])
def test_run_ends_every_process_when_stopped_while_it_starts(start: Callable[..., Run], seconds: float) -> None:
    run = start()
    time.sleep(seconds)
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(30) in (0, -signal.SIGINT)  # The latter before Python has read its first line of ours.
    assert wait_until(lambda: not run.processes(), 5), run.processes()
    if run.process.returncode == 0:
        assert run.errors.read_text() == ""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
def test_run_leaves_no_process_and_a_usable_folder_when_killed(start: Callable[..., Run]) -> None:
    run = start()
    run.wait_ready()
    run.process.kill()
    run.process.wait(5)
    # All but what the worker of this test has started itself, and does not end.
    assert wait_until(lambda: len(run.processes()) == 1, 30)
    again = start()
    again.wait_ready()
    assert again.errors.read_text() == ""


def test_second_run_keeps_the_data(start: Callable[..., Run]) -> None:
    run = start()
    run.wait_ready()
    connection = psycopg2.connect(run.services()["DATABASE_URL"])
    with connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE kept (n int)")
    connection.close()
    with redis.Redis.from_url(run.services()["REDIS_URL"] or "") as client:
        client.set("kept", "1")
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(30) == 0
    again = start()
    again.wait_ready()
    connection = psycopg2.connect(again.services()["DATABASE_URL"])
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM kept")
        assert cursor.fetchone() == (0,)
    connection.close()
    with redis.Redis.from_url(again.services()["REDIS_URL"] or "", decode_responses=True) as client:
        assert client.get("kept") == "1"


@pytest.mark.slow
def test_run_restarts_a_killed_database_and_says_so(start: Callable[..., Run]) -> None:
    run = start()
    run.wait_ready()
    pid = int((run.data_dir / "postgres" / "data" / "postmaster.pid").read_text().split()[0])
    os.kill(pid, signal.SIGKILL)
    line = "PostgreSQL ended (killed by SIGKILL); starting it again in 0.5 s.\n"
    assert wait_until(lambda: run.errors.read_text() == line, 10)

    def is_up() -> bool:
        try:
            psycopg2.connect(run.services()["DATABASE_URL"]).close()
        except psycopg2.OperationalError:
            return False
        return True

    assert wait_until(is_up, 20)
    assert run.process.poll() is None


NOWHERE = {
    "APP_ENV": "development",
    "DATABASE_URL": "postgresql://postgres@/postgres?host=/nowhere",
    "REDIS_URL": "redis://127.0.0.1:1/0",
    "JWT_SECRET": "only these tests know it, 0123456789",
}
