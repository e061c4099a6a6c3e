"""What holds of each `flask` command of ours."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator

import click
import pytest
from flask import Flask
from sqlalchemy import text

from chatapi.cli import COMMANDS
from chatapi.dev.embedded import free_port
from chatapi.extensions import db
from chatapi.ids import uuid7
from chatapi.terminal import at_terminal
from config import ROOT
from tests.support import Services

GIVEN = {"number": ["+12025550199"], "reply_ids": [str(uuid7())], "event_ids": ["evt_nobodys"]}
"""What each argument may be, by its name."""

WITHOUT_POSTGRESQL = {"redis-check": 0, "billing setup": 1}
"""Commands that need none, and how they end here."""

RUNS_ON = {"sweeper", "jobs watch"}
"""Commands that wait for PostgreSQL to come back."""


def walk(commands: object = COMMANDS, before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for command in commands:  # type: ignore[attr-defined]
        path = (*before, command.name)
        if isinstance(command, click.Group):
            yield from walk(command.commands.values(), path)
        else:
            yield path, command


ALL = dict(walk())
each_command = pytest.mark.parametrize("path", list(ALL), ids=" ".join)


@each_command
def test_command_explains_itself(app: Flask, path: tuple[str, ...]) -> None:
    command = ALL[path]

    shown = app.test_cli_runner().invoke(args=[*path, "--help"])

    assert shown.exit_code == 0
    assert len(command.get_short_help_str(200)) <= 90
    for parameter in command.params:
        assert getattr(parameter, "help", None), parameter.name
    assert f"flask {' '.join(path)}" in (command.epilog or "")


@each_command
@pytest.mark.parametrize("wrong", ["--no-such-option", "\udcff"])
def test_command_refuses_what_it_does_not_know_as_misuse(app: Flask, path: tuple[str, ...], wrong: str) -> None:
    result = app.test_cli_runner().invoke(args=[*path, wrong])

    assert result.exit_code == 2
    assert "Error: " in result.stderr
    assert (result.stdout, "Traceback" in result.stderr) == ("", False)


@each_command
def test_command_says_in_a_sentence_that_postgresql_is_away(path: tuple[str, ...], away: Flask) -> None:
    name = " ".join(path)
    if name in RUNS_ON:
        pytest.skip("It waits.")
    values = [value for each in ALL[path].params if each.name in GIVEN and each.required for value in GIVEN[each.name]]
    values += ["--yes"] if name == "user delete" else ["--all"] if name.endswith(" retry") else []

    result = away.test_cli_runner().invoke(args=[*path, *values])

    assert result.exit_code == WITHOUT_POSTGRESQL.get(name, 1), result.output
    assert isinstance(result.exception, SystemExit | None)
    assert "Traceback" not in result.output
    if name not in WITHOUT_POSTGRESQL and name != "doctor":
        assert (result.stdout, "PostgreSQL does not answer" in result.stderr) == ("", True), result.output


@pytest.fixture(scope="module")
def away(make_app: Callable[..., Flask]) -> Flask:
    """An application whose PostgreSQL is not there."""
    return make_app(DATABASE_URL=f"postgresql://somebody:password@127.0.0.1:{free_port()}/chat")


@pytest.mark.parametrize("path", [path for path in ALL if path[-1] in ("show", "status", "list", "events", "closures")])
def test_command_that_shows_something_shows_it_as_json(path: tuple[str, ...]) -> None:
    assert "is_json" in {parameter.name for parameter in ALL[path].params}


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("SELECT * FROM no_such_table", "run `flask db upgrade`"),
        ("SET LOCAL statement_timeout = 10; SELECT pg_sleep(1)", "took too long"),
        ("SELECT 1 / 0", "PostgreSQL refuses this (DataError, 22012)."),
    ],
)
def test_failures_of_postgresql_are_told_apart(app: Flask, statement: str, said: str) -> None:
    with app.app_context(), pytest.raises(click.ClickException, match=re.escape(said)), at_terminal():
        db.session.execute(text(statement))


def test_every_command_has_its_place_in_the_documentation() -> None:
    page = (ROOT / "docs" / "commands.md").read_text()

    assert [path for path in ALL if f"flask {' '.join(path)}" not in page] == []


def test_redis_check_tries_each_redis_and_leaves_nothing_behind(app: Flask, services: Services) -> None:
    client = app.extensions["broker"].client
    before = set(client.keys("chatapi:probe:*"))

    result = app.test_cli_runner().invoke(args=["redis-check", "--json"])

    shown = json.loads(result.stdout)
    (server,) = shown["servers"]
    assert (result.exit_code, shown["status"], server["fault"]) == (0, "ok", None)
    assert server["uses"] == ["queue", "cache", "limits"]
    assert server["policy"] == "noeviction"
    assert server["latency_ms"] < 1000
    assert set(server["queues"]) == {"replies", "titles", "chores", "billing"}
    assert set(client.keys("chatapi:probe:*")) == before
    plain = app.test_cli_runner().invoke(args=["redis-check"]).stdout
    assert "set, get, delete   done\n" in plain


def test_redis_check_counts_what_waits(app: Flask, account: object) -> None:
    client = app.extensions["broker"].client
    client.delete("{dramatiq}:titles", "{dramatiq}:titles.msgs")  # What other tests have rung for.
    client.rpush("{dramatiq}:titles", "one", "two")
    client.hset("{dramatiq}:titles.msgs", mapping={"one": "", "two": "", "three": ""})
    try:
        shown = json.loads(app.test_cli_runner().invoke(args=["redis-check", "--json"]).stdout)
    finally:
        client.delete("{dramatiq}:titles", "{dramatiq}:titles.msgs")

    assert shown["servers"][0]["queues"]["titles"] == {"ready": 2, "unacknowledged": 1}


def test_redis_check_fails_when_one_of_them_is_away_or_evicts(make_app: Callable[..., Flask], app: Flask) -> None:
    away = make_app(CACHE_REDIS_URL=f"redis://127.0.0.1:{free_port()}")
    client = app.extensions["broker"].client

    of_cache = away.test_cli_runner().invoke(args=["redis-check", "--json"])
    client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        evicting = app.test_cli_runner().invoke(args=["redis-check"])
    finally:
        client.config_set("maxmemory-policy", "noeviction")

    assert of_cache.exit_code == 1
    assert [server["fault"] for server in json.loads(of_cache.stdout)["servers"]] == [None, "Connection refused"]
    assert evicting.exit_code == 1
    assert "maxmemory-policy allkeys-lru drops queued work" in evicting.stdout


@pytest.mark.slow
def test_standard_output_has_the_answer_alone_also_when_redis_is_away_at_the_start(services: Services) -> None:
    environ = {
        **services.environ,
        "FLASK_APP": "wsgi",
        "APP_ENV": "production",
        "GEMINI_API_KEY": "some-key",
        "OTP_DELIVERY": "webhook",
        "OTP_WEBHOOK_URL": "http://127.0.0.1:1",
        "OTP_WEBHOOK_SECRET": "a-long-secret-for-nothing",
        "REDIS_URL": f"redis://127.0.0.1:{free_port()}",
    }

    command = [sys.executable, "-m", "flask", "jobs", "status", "--json"]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["queues"] is None
    assert "redis_policy_unknown" in done.stderr
