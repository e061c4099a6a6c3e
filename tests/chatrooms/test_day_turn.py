"""The day's turn at 00:00 UTC, by the database's clock, which these tests set to a few seconds before it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import psycopg2
import pytest
from flask import Flask
from flask_migrate import upgrade
from sqlalchemy import text

from chatapi import quota
from chatapi.extensions import db, in_transaction
from tests.support import Account, Services

DATABASE = "turning"

# A function of this name in a schema that is searched first is what `now()` means to the application.
CLOCK = """
    CREATE SCHEMA clock;
    CREATE TABLE clock.ahead (by interval NOT NULL);
    INSERT INTO clock.ahead VALUES (interval '0');
    CREATE FUNCTION clock.now() RETURNS timestamptz LANGUAGE sql STABLE
        AS 'SELECT pg_catalog.now() + (SELECT by FROM clock.ahead)';
    ALTER DATABASE turning SET search_path = public, clock, pg_catalog;
"""

SET_CLOCK = text("""
    UPDATE clock.ahead SET by = (
        date_trunc('day', pg_catalog.now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' + interval '1 day'
        - make_interval(secs => :before) - pg_catalog.now()
    )
""")


@pytest.fixture(scope="module")
def turning(services: Services, make_app: Callable[..., Flask]) -> Iterator[Flask]:
    """The application on a database whose clock can be set."""
    _run(services.postgres.url, f"CREATE DATABASE {DATABASE}")
    url = services.postgres.url.replace("/postgres?", f"/{DATABASE}?")
    app = make_app(DATABASE_URL=url)
    with app.app_context():
        upgrade()
        db.engine.dispose()
    _run(url, CLOCK)
    yield app
    with app.app_context():
        db.session.remove()
        db.engine.dispose()


def _run(url: str, statements: str) -> None:
    connection = psycopg2.connect(url)
    connection.autocommit = True
    try:
        connection.cursor().execute(statements)
    finally:
        connection.close()


@pytest.fixture
def person(turning: Flask, sign_in: Callable[..., Account]) -> Account:
    return sign_in(via=turning.test_client())


def in_turning(app: Flask, work: Callable[[], Any]) -> Any:
    with app.app_context():
        return in_transaction(work)


def set_clock(app: Flask, seconds_before_midnight: float) -> None:
    in_turning(app, lambda: db.session.execute(SET_CLOCK, {"before": seconds_before_midnight}))


def usage_of(app: Flask, account: Account) -> list[int]:
    """Return what is used, a number for each day, oldest first."""
    query = text("""
        SELECT used FROM daily_usage WHERE number_hash = (SELECT number_hash FROM users WHERE id = :id) ORDER BY day
    """)
    return [row.used for row in in_turning(app, lambda: db.session.execute(query, {"id": account.id}).all())]


def test_clock_of_the_application_is_the_one_that_is_set(turning: Flask, person: Account) -> None:
    set_clock(turning, 60)

    usage = in_turning(turning, lambda: quota.read_usage(person.id))  # type: ignore[arg-type]

    assert 58 < (usage.resets_at - usage.read_at).total_seconds() <= 60


def test_prompts_of_a_day_end_with_it(turning: Flask, person: Account) -> None:
    room_id = person.open_room(title="turn")
    set_clock(turning, 2.5)
    assert [person.send(room_id, "hello").status_code for _ in range(5)] == [201] * 5
    refusal = person.send(room_id, "hello")
    assert refusal.status_code == 429
    retry_after = int(refusal.headers["Retry-After"])
    assert 1 <= retry_after <= 3
    resets_at = datetime.fromisoformat(refusal.get_json()["resets_at"])
    assert (resets_at.hour, resets_at.minute, resets_at.second, resets_at.microsecond) == (0, 0, 0, 0)

    time.sleep(retry_after)

    assert person.daily_usage() == 0
    assert [person.send(room_id, "hello").status_code for _ in range(6)] == [201] * 5 + [429]
    assert usage_of(turning, person) == [5, 5]


@pytest.mark.slow
def test_each_day_has_exactly_its_prompts_when_many_arrive_around_the_turn(turning: Flask, person: Account) -> None:
    room_id = person.open_room(title="turn")
    set_clock(turning, 1.5)
    until = time.monotonic() + 3

    def send(_: int) -> list[int]:
        statuses = []
        while time.monotonic() < until:
            statuses.append(person.send(room_id, "hello").status_code)
        return statuses

    with ThreadPoolExecutor(12) as pool:
        statuses = Counter(status for found in pool.map(send, range(12)) for status in found)

    assert statuses[201] == 10, statuses
    assert set(statuses) == {201, 429}
    assert usage_of(turning, person) == [5, 5]


def test_prompt_is_given_back_to_the_day_it_was_taken_from(turning: Flask, person: Account) -> None:
    room_id = person.open_room(title="turn")
    set_clock(turning, 1.5)
    before = person.prompt(room_id, "before")
    time.sleep(1.6)
    for _ in range(5):
        person.prompt(room_id, "after")
    assert person.send(room_id, "after").status_code == 429

    stopped = person.call("POST", f"/chatroom/{room_id}/message/{before}/stop").get_json()["message"]

    assert stopped["status"] == "stopped"
    assert usage_of(turning, person) == [0, 5]
    assert person.send(room_id, "after").status_code == 429
