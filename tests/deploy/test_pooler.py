"""The system behind a real PgBouncer that gives each transaction whichever connection is free."""

from __future__ import annotations

import configparser
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg2
import pytest

from chatapi.dev.embedded import POSTGRES_PORT, free_port, takes_connections
from chatapi.dev.processes import Child
from config import ROOT
from tests.support import Account, race, wait_for
from tests.system.events import Reader
from tests.system.prompting import Prompting, assert_all_accepted_and_answered_once
from tests.system.support import System, finish, wait_all_ended

SHIPPED = ROOT / "deploy/pgbouncer/pgbouncer.ini"
ROLE_BOUNDS = {"statement_timeout": "10s", "lock_timeout": "5s", "idle_in_transaction_session_timeout": "30s"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("pgbouncer") is None and "PGBOUNCER_IS_NEEDED" not in os.environ, reason="there is no PgBouncer"
    ),
    pytest.mark.timeout(240),
]


class Pooler:
    """PgBouncer with what is shipped, but for where it listens, where PostgreSQL is, and five connections to it."""

    POOL = 5

    def __init__(self, system: System, folder: Path) -> None:
        postgres, self.port = system.services.postgres, free_port()
        shipped = configparser.ConfigParser(comment_prefixes=(";",))
        shipped.read(SHIPPED)
        shipped["databases"] = {"postgres": f"host={postgres.socket_dir} port={POSTGRES_PORT} dbname=postgres"}
        shipped["pgbouncer"].update(
            {
                "listen_addr": "127.0.0.1",
                "listen_port": str(self.port),
                "unix_socket_dir": "",
                "auth_type": "trust",
                "auth_file": str(folder / "users"),
                "default_pool_size": str(self.POOL),
                "reserve_pool_size": "0",
            }
        )
        (folder / "users").write_text('"postgres" ""\n')
        with (folder / "pgbouncer.ini").open("w") as file:
            shipped.write(file)
        user = system.services.postgres_process.user
        for path in (folder, *folder.iterdir()) if user else ():
            os.chown(path, *user)
        for parent in folder.parents:
            parent.chmod(parent.stat().st_mode | 0o011)
        command = [shutil.which("pgbouncer") or "pgbouncer", folder / "pgbouncer.ini"]
        self.child = Child("pgbouncer", command, cwd=Path("/"), user=user, log=folder / "log")
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def is_ready(self) -> bool:
        return takes_connections(self.url)


@pytest.fixture(scope="module")
def pooler(running_system: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pooler]:
    pooler = Pooler(running_system, tmp_path_factory.mktemp("pooler"))
    for bound, value in {**ROLE_BOUNDS, "timezone": _zone_of_another_day()}.items():
        _alter_role(running_system, f"SET {bound} = '{value}'")
    pooler.child.start()
    try:
        wait_for(pooler.is_ready)
        yield pooler
        running_system.use({})
    finally:
        pooler.child.stop()
        _alter_role(running_system, "RESET ALL")


@pytest.fixture
def system(running_system: System, pooler: Pooler) -> System:
    """The system, all of whose processes know PostgreSQL by the pooler alone, whose sessions are not in UTC."""
    settings = {"BASIC_DAILY_PROMPTS": "1000", "WEB_CONCURRENCY": "3", "DATABASE_URL": pooler.url}
    running_system.use({**settings, "DATABASE_DIRECT_URL": running_system.services.postgres.url})
    running_system.mend()
    return running_system


def _zone_of_another_day() -> str:
    """Return a time zone in which it is not the day now that it is in UTC, nor within the next hour."""
    return "Etc/GMT+12" if datetime.now(UTC).hour < 11 else "Pacific/Kiritimati"


def _alter_role(system: System, change: str) -> None:
    connection = psycopg2.connect(system.services.postgres.url)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(f"ALTER ROLE postgres {change}")
    finally:
        connection.close()


def test_all_go_through_the_few_connections_of_the_pool(
    system: System, someone: Account, people: list[Account]
) -> None:
    room_id = someone.open_room(title="pooled")
    reply_id = someone.prompt(room_id, "[[words=40 latency_ms=200]] hello")
    reader = Reader(someone, room_id, reply_id)
    reader.read_to_end(60)
    assert someone.read(room_id, reply_id)["content"] == reader.text
    with Prompting(people, pause_seconds=0.0) as load:
        wait_for(lambda: len(load.answers) > 100)
        servers = system.rows(
            "SELECT count(*) AS open FROM pg_stat_activity WHERE backend_type = 'client backend' "
            "AND pid <> pg_backend_pid()"
        )[0].open

    assert_all_accepted_and_answered_once(system, people, load)
    assert 0 < servers <= Pooler.POOL


def test_quota_is_exact_and_a_day_is_one_of_utc(system: System, someone: Account) -> None:
    room_id = someone.open_room(title="race")
    system.rows(
        "INSERT INTO daily_usage (number_hash, day, used) SELECT number_hash, (now() AT TIME ZONE 'UTC')::date, 995 "
        "FROM users WHERE id = %s RETURNING day",
        someone.id,
    )

    answers = race(60, lambda index: someone.send(room_id, f"prompt {index}"))

    assert Counter(answer.status_code for answer in answers) == {201: 5, 429: 55}
    assert someone.daily_usage() == 1000
    (accepted, *_) = [answer.get_json()["user_message"] for answer in answers if answer.status_code == 201]
    assert abs(datetime.now(UTC) - datetime.fromisoformat(accepted["created_at"])) < timedelta(minutes=10)
    wait_all_ended(system, 60)


def test_one_idempotency_key_is_one_prompt(system: System, someone: Account) -> None:
    room_id = someone.open_room(title="key")
    path, headers = f"/chatroom/{room_id}/message", {**someone.headers, "Idempotency-Key": "one"}

    answers = race(30, lambda _: someone.client.post(path, json={"content": "hello"}, headers=headers))

    assert set(Counter(answer.status_code for answer in answers)) <= {201, 409}
    ids = {answer.get_json()["ai_message"]["id"] for answer in answers if answer.status_code == 201}
    assert len(ids) == 1
    assert someone.daily_usage() == 1


def test_nothing_is_lost_when_workers_are_killed_and_the_pooler_restarts(
    system: System, pooler: Pooler, someone: Account
) -> None:
    rooms = [someone.open_room(title="killed") for _ in range(8)]
    replies = [someone.prompt(room, "[[latency_ms=400]] hello") for room in rooms]
    system.kill("worker")
    pooler.child.kill()
    pooler.child.start()
    wait_for(pooler.is_ready)
    system["worker"].start()

    for room, reply_id in zip(rooms, replies, strict=True):
        assert finish(someone, room, reply_id, 90)["status"] == "completed"
    assert someone.daily_usage() == 8
    wait_all_ended(system, 10)


def test_doctor_says_whether_the_role_has_the_bounds_that_the_pooler_drops(system: System, pooler: Pooler) -> None:
    assert _finding(system, pooler)["state"] == "ok"
    _alter_role(system, "RESET lock_timeout")
    try:
        pooler.child.restart()
        wait_for(pooler.is_ready)
        finding = _finding(system, pooler)
    finally:
        _alter_role(system, f"SET lock_timeout = '{ROLE_BOUNDS['lock_timeout']}'")

    assert finding["state"] == "warning"
    assert "ALTER ROLE postgres SET lock_timeout = '5s'" in finding["advice"]


def _finding(system: System, pooler: Pooler) -> dict[str, str]:
    environ = {
        **os.environ,
        **system.services.environ,
        "DATABASE_URL": pooler.url,
        "DATABASE_DIRECT_URL": system.services.postgres.url,
    }
    command = [str(Path(sys.executable).with_name("flask")), "--app", "wsgi", "doctor", "--json"]
    done = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True, check=False)
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)["checks"]}
    finding: dict[str, str] = findings["postgresql pooler"]
    return finding
