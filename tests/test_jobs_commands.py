"""The `flask jobs` commands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest
from click.testing import Result
from flask import Flask
from sqlalchemy import text

from chatapi.broker import NAMESPACE
from chatapi.chatrooms.endings import Ending, conclude
from chatapi.chatrooms.prompts import REPLIES_QUEUE
from chatapi.dev.embedded import free_port
from chatapi.extensions import db, in_transaction
from chatapi.replies.jobs import schedule_retry, take_lease
from config import ROOT
from tests.auth.support import rows
from tests.support import Account, Services

Flasks = Callable[..., Result]


@pytest.fixture
def flask(app: Flask) -> Flasks:
    """Return what runs a `flask jobs` command."""
    return lambda *arguments: app.test_cli_runner().invoke(args=["jobs", *arguments])


@pytest.fixture(autouse=True)
def _no_other_jobs(app: Flask) -> None:
    """What other tests left unfinished would be counted too."""
    with app.app_context():
        db.session.execute(text("DELETE FROM reply_jobs"))
        db.session.commit()
        client = app.extensions["broker"].client
        client.delete(f"{NAMESPACE}:{REPLIES_QUEUE}")


@pytest.fixture
def take(app: Flask) -> Callable[[str], Any]:
    """Return what takes the lease of a reply, as a worker does."""

    def take(reply_id: str) -> Any:
        with app.app_context():
            lease = in_transaction(lambda: take_lease(UUID(reply_id)))
            assert lease is not None
            return lease

    return take


@pytest.fixture
def wait_to_retry(app: Flask, take: Callable[[str], Any]) -> Callable[[str], None]:
    """Return what makes a reply wait an hour for its second attempt."""

    def wait_to_retry(reply_id: str) -> None:
        lease = take(reply_id)
        with app.app_context():
            assert in_transaction(lambda: schedule_retry(lease, 3600, "upstream_unavailable"))

    return wait_to_retry


def job_of(app: Flask, reply_id: str) -> Any:
    (job,) = rows(app, "SELECT *, run_at <= now() AS is_due FROM reply_jobs WHERE message_id = :id", id=reply_id)
    return job


def rung_for(app: Flask) -> int:
    with app.app_context():
        length: int = app.extensions["broker"].client.llen(f"{NAMESPACE}:{REPLIES_QUEUE}")
        return length


def test_jobs_status_counts_by_state(
    app: Flask, flask: Flasks, account: Account, take: Callable[[str], Any], wait_to_retry: Callable[[str], None]
) -> None:
    waiting, running, retrying = (account.prompt(account.open_room(), "hello") for _ in range(3))
    take(running)
    wait_to_retry(retrying)
    with app.app_context():
        db.session.execute(
            text("UPDATE reply_jobs SET run_at = now() - interval '90 s' WHERE message_id = :id"), {"id": waiting}
        )
        db.session.commit()

    result = flask("status", "--json")

    assert result.exit_code == 0
    shown = json.loads(result.stdout)
    counts = {name: shown[name] for name in ("waiting", "running", "retrying", "stopping", "most_attempts")}
    assert counts == {"waiting": 1, "running": 1, "retrying": 1, "stopping": 0, "most_attempts": 1}
    assert 90 <= shown["queue_age_seconds"] < 100
    assert 0 < shown["oldest_seconds"] < 60
    assert shown["queues"]["replies"] == {"ready": 3, "delayed": 0, "dead": 0}
    assert set(shown["queues"]) == {"replies", "titles", "chores", "billing"}
    plain = flask("status")
    assert plain.exit_code == 0
    assert "retrying           1\n" in plain.stdout
    assert "replies            3 ready" in plain.stdout


def test_jobs_status_does_not_count_a_reply_as_late_whose_turn_it_is_not(
    app: Flask, flask: Flasks, account: Account, take: Callable[[str], Any]
) -> None:
    room_id = account.open_room()
    first, _second = account.prompt(room_id, "hello"), account.prompt(room_id, "and then")
    take(first)
    with app.app_context():
        db.session.execute(text("UPDATE reply_jobs SET run_at = now() - interval '90 s'"))
        db.session.commit()

    assert json.loads(flask("status", "--json").stdout)["queue_age_seconds"] == 0


def test_jobs_status_tells_how_the_last_hour_ended(
    app: Flask, flask: Flasks, account: Account, take: Callable[[str], Any]
) -> None:
    def failed() -> int:
        last_hour = json.loads(flask("status", "--json").stdout)["last_hour"]
        return sum(row["count"] for row in last_hour if (row["status"], row["error"]) == ("failed", "timed_out"))

    before = failed()
    lease = take(account.prompt(account.open_room(), "hello"))
    with app.app_context():
        assert conclude(lease, Ending(status="failed", error="timed_out"))

    assert failed() == before + 1


def test_jobs_status_says_so_when_redis_is_away(make_app: Callable[..., Flask]) -> None:
    app = make_app(REDIS_URL=f"redis://127.0.0.1:{free_port()}")

    result = app.test_cli_runner().invoke(args=["jobs", "status"])
    as_json = app.test_cli_runner().invoke(args=["jobs", "status", "--json"])

    assert result.exit_code == 0
    assert "Redis cannot be reached" in result.stdout
    assert json.loads(as_json.stdout)["queues"] is None


def test_jobs_say_so_when_postgresql_is_away(make_app: Callable[..., Flask]) -> None:
    app = make_app(DATABASE_URL=f"postgresql://nobody@127.0.0.1:{free_port()}/none")

    for arguments in (["status"], ["list"], ["retry", "--all"], ["fail", str(uuid4())]):
        result = app.test_cli_runner().invoke(args=["jobs", *arguments])
        assert result.exit_code == 1
        assert "PostgreSQL does not answer" in result.stderr


def test_jobs_list_shows_unfinished_replies_oldest_first(
    flask: Flasks, account: Account, take: Callable[[str], Any], wait_to_retry: Callable[[str], None]
) -> None:
    room_id = account.open_room()
    retrying = account.prompt(room_id, "a secret hello")
    running, waiting = (account.prompt(account.open_room(), "hello") for _ in range(2))
    take(running)
    wait_to_retry(retrying)

    result = flask("list", "--json")

    assert result.exit_code == 0
    jobs = json.loads(result.stdout)
    assert [(job["reply_id"], job["state"], job["attempt"]) for job in jobs] == [
        (retrying, "retrying", 1),
        (running, "running", 1),
        (waiting, "waiting", 0),
    ]
    assert jobs[0].items() >= {"room_id": room_id, "user_id": account.id, "last_error": "upstream_unavailable"}.items()
    assert jobs[1]["lease_until"] is not None
    assert jobs[0]["lease_until"] is None
    assert [job["reply_id"] for job in json.loads(flask("list", "--newest", "--limit", "1", "--json").stdout)] == [
        waiting
    ]
    assert [job["reply_id"] for job in json.loads(flask("list", "--state", "running", "--json").stdout)] == [running]
    lines = flask("list").stdout.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(retrying)
    assert "secret" not in result.stdout


def test_jobs_list_shows_a_reply_that_is_to_be_stopped_as_stopping(
    app: Flask, flask: Flasks, account: Account, take: Callable[[str], Any]
) -> None:
    reply_id = account.prompt(account.open_room(), "hello")
    take(reply_id)
    with app.app_context():
        db.session.execute(text("UPDATE reply_jobs SET stop_requested_at = now()"))
        db.session.commit()

    assert [job["reply_id"] for job in json.loads(flask("list", "--state", "stopping", "--json").stdout)] == [reply_id]
    assert json.loads(flask("status", "--json").stdout)["stopping"] == 1


def test_jobs_retry_makes_the_next_attempt_due_and_rings(
    app: Flask, flask: Flasks, account: Account, wait_to_retry: Callable[[str], None]
) -> None:
    reply_id, other = (account.prompt(account.open_room(), "hello") for _ in range(2))
    wait_to_retry(reply_id)
    wait_to_retry(other)
    rings = rung_for(app)

    result = flask("retry", reply_id)

    assert (result.exit_code, result.stdout) == (0, f"{reply_id} is due now.\n")
    assert job_of(app, reply_id).is_due
    assert not job_of(app, other).is_due
    assert rung_for(app) == rings + 1
    assert last_audit(app, account) == ("reply_retried", {"reply_id": reply_id})


def test_jobs_retry_all_makes_all_that_wait_due(
    app: Flask, flask: Flasks, account: Account, take: Callable[[str], Any], wait_to_retry: Callable[[str], None]
) -> None:
    reply_ids = [account.prompt(account.open_room(), "hello") for _ in range(4)]
    for reply_id in reply_ids[:3]:
        wait_to_retry(reply_id)
    token = take(reply_ids[3]).token
    rings = rung_for(app)

    result = flask("retry", "--all")

    assert (result.exit_code, result.stdout) == (0, "3 replies are due now.\n")
    assert all(job_of(app, reply_id).is_due for reply_id in reply_ids[:3])
    assert job_of(app, reply_ids[3]).lease_token == token
    assert rung_for(app) == rings + 3


def test_jobs_retry_all_leaves_alone_what_somebody_is_just_ending(
    app: Flask, flask: Flasks, account: Account, wait_to_retry: Callable[[str], None]
) -> None:
    reply_id = account.prompt(account.open_room(), "hello")
    wait_to_retry(reply_id)
    with app.app_context():
        held = text(
            "UPDATE reply_jobs SET lease_expires_at = clock_timestamp() + interval '30 s' WHERE message_id = :id"
        )
        in_transaction(lambda: db.session.execute(held, {"id": reply_id}))

    assert flask("retry", "--all").stdout == "0 replies are due now.\n"
    assert not job_of(app, reply_id).is_due


def test_jobs_retry_leaves_a_running_reply_alone(
    app: Flask, flask: Flasks, account: Account, take: Callable[[str], Any]
) -> None:
    reply_id = account.prompt(account.open_room(), "hello")
    lease = take(reply_id)

    result = flask("retry", reply_id)

    assert (result.exit_code, result.stdout) == (0, f"{reply_id} is in work already.\n")
    assert job_of(app, reply_id).lease_token == lease.token


@pytest.mark.parametrize("command", ["retry", "fail"])
def test_jobs_refuse_a_reply_that_has_ended_and_see_to_the_others(
    app: Flask, flask: Flasks, account: Account, take: Callable[[str], Any], command: str
) -> None:
    ended, other = (account.prompt(account.open_room(), "hello") for _ in range(2))
    lease = take(ended)
    with app.app_context():
        assert conclude(lease, Ending(status="completed", content="hello yourself"))

    result = flask(command, ended, other)

    assert result.exit_code == 1
    assert f"The reply {ended} has ended (completed); its owner can have it made anew." in result.stderr
    assert result.stdout.startswith(other)


def test_jobs_fail_ends_a_reply_gives_the_prompt_back_once_and_refuses_the_workers_answer(
    app: Flask, flask: Flasks, account: Account, take: Callable[[str], Any]
) -> None:
    room_id = account.open_room()
    reply_id, following = account.prompt(room_id, "hello"), account.prompt(room_id, "and then")
    lease = take(reply_id)
    used, rings = account.daily_usage(), rung_for(app)

    result = flask("fail", reply_id, "--reason", "internal_error")
    again = flask("fail", reply_id)
    with app.app_context():
        assert not conclude(lease, Ending(status="completed", content="too late"))

    assert (result.exit_code, result.stdout) == (0, f"{reply_id} has failed (internal_error).\n")
    assert again.exit_code == 1
    reply = account.read(room_id, reply_id)
    assert (reply["status"], reply["error"], reply["content"]) == ("failed", "internal_error", "")
    assert account.daily_usage() == used - 1
    assert rows(app, "SELECT * FROM reply_jobs WHERE message_id = :id", id=reply_id) == []
    assert rung_for(app) == rings + 1  # For the next of the room.
    assert account.read(room_id, following)["status"] == "pending"
    assert last_audit(app, account) == ("reply_failed", {"reply_id": reply_id, "reason": "internal_error"})


@pytest.mark.parametrize("command", ["retry", "fail"])
@pytest.mark.parametrize(("reply_id", "exit_code"), [("x", 2), ("01890a5d", 2), (str(uuid4()), 1)])
def test_jobs_say_so_when_there_is_no_such_reply(flask: Flasks, command: str, reply_id: str, exit_code: int) -> None:
    result = flask(command, reply_id)

    assert result.exit_code == exit_code
    assert reply_id in result.stderr
    assert result.stdout == ""


def test_jobs_say_so_when_a_prompt_is_named_for_its_reply(app: Flask, flask: Flasks, account: Account) -> None:
    room_id = account.open_room()
    prompt_id = account.read(room_id, account.prompt(room_id, "hello"))["reply_to"]

    assert flask("fail", prompt_id).exit_code == 1
    assert account.read(room_id, prompt_id)["status"] == "completed"


def test_jobs_do_nothing_at_all_when_one_id_is_malformed(app: Flask, flask: Flasks, account: Account) -> None:
    room_id = account.open_room()
    reply_id = account.prompt(room_id, "hello")

    assert flask("fail", reply_id, "x").exit_code == 2
    assert account.read(room_id, reply_id)["status"] == "pending"


@pytest.mark.parametrize("arguments", [["retry"], ["retry", "--all", str(uuid4())], ["fail"], ["list", "--limit", "0"]])
def test_jobs_explain_their_use_when_they_are_called_wrongly(flask: Flasks, arguments: list[str]) -> None:
    assert flask(*arguments).exit_code == 2


@pytest.fixture
def watch(services: Services) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "flask", "jobs", "watch", "--interval", "0.1"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **services.environ, "FLASK_APP": "wsgi"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_jobs_watch_prints_lines_until_it_is_stopped(watch: subprocess.Popen[str], number: signal.Signals) -> None:
    assert watch.stdout is not None
    lines = [watch.stdout.readline() for _ in range(3)]

    watch.send_signal(number)

    _, errors = watch.communicate(timeout=20)
    assert watch.returncode == 0, errors
    assert all("waiting 0  running 0" in line and "redis replies:0" in line for line in lines), lines
    assert "Traceback" not in errors


def test_jobs_watch_ends_well_when_nobody_reads_any_more(watch: subprocess.Popen[str]) -> None:
    assert watch.stdout is not None
    assert watch.stderr is not None
    watch.stdout.readline()

    watch.stdout.close()

    assert watch.wait(timeout=20) == 0
    assert watch.stderr.read() == ""


def last_audit(app: Flask, account: Account) -> tuple[str, Any]:
    statement = """
        SELECT action, details FROM audit_events
        WHERE number_hash = (SELECT number_hash FROM users WHERE id = :id) ORDER BY id DESC LIMIT 1
    """
    ((action, details),) = rows(app, statement, id=account.id)
    return action, details
