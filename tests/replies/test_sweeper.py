"""The sweeper: rings for what is due, each to one of several sweepers, less and less often; cleans up what is over."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from math import ceil
from threading import Timer
from typing import Any
from uuid import UUID

import pytest
import redis
from flask import Flask, current_app
from sqlalchemy import text

from chatapi.broker import NAMESPACE, ring_patiently
from chatapi.chatrooms.endings import Ending, conclude
from chatapi.chatrooms.live import Piece, live_replies
from chatapi.chatrooms.prompts import REPLIES_QUEUE, ring_reply
from chatapi.extensions import REDIS_BUDGET_SECONDS, db, in_transaction
from chatapi.replies import jobs, sweeper
from chatapi.replies.monitor import QUEUES
from chatapi.replies.sweeper import FULL_QUEUE, clean, end_overdue, sweep
from tests.support import Account, Services, race

pytestmark = pytest.mark.usefixtures("nothing_due")


@pytest.fixture
def nothing_due(app: Flask) -> Iterator[None]:
    """Other tests leave things behind that would be rung for too, and messages that nobody has taken from Redis."""
    with app.app_context():
        for table in ("reply_jobs", "otp_outbox", "stripe_events", "billing_closures"):
            execute(f"DELETE FROM {table}")  # noqa: S608 - of our own
        execute("UPDATE billing_reconciliation SET due_at = now() + interval '1 hour'")
        queue_client().delete(*(f"{NAMESPACE}:{queue}" for queue in QUEUES))
        yield


def queue_client() -> redis.Redis:
    client: redis.Redis = current_app.extensions["broker"].client
    return client


def execute(statement: str, **parameters: Any) -> Any:
    result = db.session.execute(text(statement), parameters)
    rows = result.all() if result.returns_rows else None
    db.session.commit()
    return rows


def make_due() -> None:
    execute("UPDATE reply_jobs SET ring_at = now()")


def ring_delay() -> float:
    return float(execute("SELECT extract(epoch FROM ring_at - now())::float AS delay FROM reply_jobs")[0].delay)


def test_fresh_prompt_is_left_to_its_own_ring(account: Account) -> None:
    account.prompt(account.open_room(), "hello")

    assert sweep() == 0
    assert 0 < ring_delay() <= 5


def test_due_reply_is_rung_for_less_and_less_often(account: Account) -> None:
    account.prompt(account.open_room(), "hello")
    delays = []
    for _ in range(7):
        make_due()
        assert sweep() == 1
        delays.append(ceil(ring_delay()))  # Some of it has passed since.

    assert delays == [5, 10, 20, 40, 60, 60, 60]


def test_each_due_reply_is_rung_for_once_when_three_sweepers_race(app: Flask, pro_account: Account) -> None:
    replies = {UUID(pro_account.prompt(pro_account.open_room(), "hello")) for _ in range(30)}
    make_due()

    def take(_index: int) -> list[UUID]:
        with app.app_context():
            return [found for _ in range(10) for found in in_transaction(lambda: jobs.take_due_jobs(4))]

    taken = [found for several in race(3, take) for found in several]

    assert len(taken) == 30
    assert set(taken) == replies


def test_only_the_first_of_a_room_is_rung_for(account: Account) -> None:
    room_id = account.open_room()
    first = account.prompt(room_id, "one")
    account.prompt(room_id, "two")
    make_due()

    assert in_transaction(lambda: jobs.take_due_jobs(10)) == [UUID(first)]


def test_held_reply_is_rung_for_when_its_lease_ends_and_not_before(account: Account) -> None:
    reply_id = UUID(account.prompt(account.open_room(), "hello"))
    make_due()
    assert in_transaction(lambda: jobs.take_lease(reply_id)) is not None

    assert sweep() == 0
    assert in_transaction(lambda: jobs.take_lease(reply_id)) is None

    execute("UPDATE reply_jobs SET lease_expires_at = now(), ring_at = now()")
    assert sweep() == 1
    lease = in_transaction(lambda: jobs.take_lease(reply_id))
    assert lease is not None
    assert lease.attempt == 2


def test_nothing_is_taken_while_redis_is_away(make_app: Callable[..., Flask], account: Account) -> None:
    account.prompt(account.open_room(), "hello")
    make_due()

    with make_app(REDIS_URL="redis://127.0.0.1:1/0").app_context():
        assert sweep() == 0

    assert ring_delay() <= 0
    assert sweep() == 1


def test_all_that_is_taken_is_rung_for_when_redis_stalls_meanwhile(
    services: Services, make_app: Callable[..., Flask], pro_account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies = {UUID(pro_account.prompt(pro_account.open_room(), "hello")) for _ in range(5)}
    make_due()
    queue_client().flushdb()
    valkey = services.valkey_process.pid or 0
    take = sweeper.take_due_jobs

    def take_and_stall(limit: int) -> list[UUID]:
        os.kill(valkey, signal.SIGSTOP)
        Timer(3 * REDIS_BUDGET_SECONDS, os.kill, (valkey, signal.SIGCONT)).start()
        return take(limit)

    monkeypatch.setattr(sweeper, "DUE", ((REPLIES_QUEUE, take_and_stall, ring_reply),))
    app = make_app()
    ring_patiently(app)
    with app.app_context():
        assert sweep() == 5

    rung = {UUID(json.loads(message)["args"][0]) for message in queue_client().hvals(f"{NAMESPACE}:replies.msgs")}
    assert rung == replies


DUE_OF_EACH_KIND = """
    UPDATE reply_jobs SET ring_at = now();
    INSERT INTO otp_outbox (id, number_hash, purpose, payload, due_at, expires_at)
    VALUES (gen_random_uuid(), '', 'login', '', now(), now() + interval '1 min');
    INSERT INTO stripe_events (id, event_id, type, customer_id, status, due_at, stripe_created_at)
    VALUES (gen_random_uuid(), gen_random_uuid(), 'customer.deleted', 'cus_full', 'received', now(), now());
    INSERT INTO billing_closures (id, stripe_customer_id, due_at) VALUES (gen_random_uuid(), 'cus_full', now());
    UPDATE billing_reconciliation SET due_at = now();
"""


@pytest.mark.parametrize(("queue", "rung_for"), [("replies", 5), ("chores", 4), ("billing", 2)])
def test_nothing_is_rung_for_on_a_full_queue_but_replies_until_it_has_room(
    account: Account, queue: str, rung_for: int
) -> None:
    account.prompt(account.open_room(), "hello")
    execute(DUE_OF_EACH_KIND)
    key = f"{NAMESPACE}:{queue}"
    queue_client().rpush(key, *["a message"] * FULL_QUEUE)

    assert sweep() == rung_for
    queue_client().ltrim(key, 0, FULL_QUEUE - 2)
    assert sweep() == 5 - rung_for
    assert sweep() == 0


def test_ring_carries_ids_and_nothing_else(services: Services, account: Account) -> None:
    reply_id = account.prompt(account.open_room(), "a secret prompt")
    make_due()
    with redis.Redis.from_url(services.environ["REDIS_URL"]) as queue:
        queue.delete("{dramatiq}:replies", "{dramatiq}:replies.msgs")

        sweep()

        (message,) = queue.hvals("{dramatiq}:replies.msgs")
    assert reply_id.encode() in message
    assert b"secret" not in message
    assert account.id.encode() not in message


def test_what_is_past_its_life_is_deleted(account: Account, new_number: Callable[[], str]) -> None:
    client = account.client
    client.post("/auth/send-otp", json={"mobile_number": new_number()})
    signed_up = client.post("/auth/signup", json={"mobile_number": new_number()}).get_json()["user"]["id"]
    clean()
    counts = "SELECT (SELECT count(*) FROM otp_codes) AS codes, (SELECT count(*) FROM signups) AS signups"
    before = execute(counts)[0]
    execute("UPDATE otp_codes SET expires_at = now() - interval '1 s'")
    execute("UPDATE signups SET expires_at = now() - interval '1 s'")
    execute(
        "INSERT INTO users (id, mobile_number, number_hash, created_at, disabled_at) "
        "VALUES (gen_random_uuid(), '+19', '', now() - interval '1 day', now())"
    )
    execute(
        "UPDATE users SET created_at = now() - interval '1 day' WHERE id IN (:one, :two)", one=signed_up, two=account.id
    )

    clean()

    assert before.codes >= 1
    assert before.signups >= 1
    assert tuple(execute(counts)[0]) == (0, 0)
    assert execute("DELETE FROM users WHERE mobile_number = '+19' RETURNING id")  # Disabled is disabled.
    assert not execute("SELECT FROM users WHERE id = :id", id=signed_up)  # Nobody proved that the number is theirs.
    assert execute("SELECT FROM sessions WHERE user_id = :id", id=account.id)


def test_cleaning_goes_on_until_all_is_gone_and_passes_over_what_is_locked(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatapi.extensions.DELETE_BATCH", 3)
    execute("DELETE FROM auth_limits")
    execute(
        "INSERT INTO auth_limits (name, subject, hits, expires_at) "
        "SELECT 'test', int4send(n), ARRAY[]::timestamptz[], now() - interval '1 s' FROM generate_series(1, 10) AS n"
    )
    with db.engine.connect() as other:
        other.execute(text("SELECT FROM auth_limits WHERE subject = int4send(4) FOR UPDATE"))
        clean()
        assert len(execute("SELECT FROM auth_limits")) == 1

    clean()
    assert execute("SELECT FROM auth_limits") == []


AGE = "UPDATE reply_jobs SET created_at = now() - interval '3601 s' WHERE message_id = :id"
WISH = "UPDATE reply_jobs SET stop_requested_at = now() - make_interval(secs => :seconds) WHERE message_id = :id"
FREE = "UPDATE reply_jobs SET lease_expires_at = now() WHERE message_id = :id"


def ending_of(reply_id: str) -> tuple[str, str | None, str]:
    return tuple(execute("SELECT status, error, content FROM messages WHERE id = :id", id=reply_id)[0])


def test_reply_that_grew_too_old_fails_and_is_given_back_though_nobody_began_it(account: Account) -> None:
    room_id = account.open_room()
    old, fresh = account.prompt(room_id, "old"), account.prompt(room_id, "fresh")
    execute(AGE, id=old)

    assert end_overdue() == 1

    assert ending_of(old) == ("failed", "timed_out", "")
    assert ending_of(fresh) == ("pending", None, "")
    assert account.daily_usage() == 1
    assert execute("SELECT message_id FROM reply_jobs") == [(UUID(fresh),)]
    assert end_overdue() == 0


def test_reply_that_waits_behind_others_for_too_long_fails_too(account: Account) -> None:
    room_id = account.open_room()
    first, second = account.prompt(room_id, "one"), account.prompt(room_id, "two")
    assert in_transaction(lambda: jobs.take_lease(UUID(first))) is not None
    execute(AGE, id=first)
    execute(AGE, id=second)

    assert end_overdue() == 1

    assert ending_of(second) == ("failed", "timed_out", "")
    assert ending_of(first) == ("processing", None, "")
    assert account.daily_usage() == 1


def test_held_reply_is_left_to_its_holder_and_ended_when_the_lease_is_over(account: Account) -> None:
    reply_id = account.prompt(account.open_room(), "hello")
    lease = in_transaction(lambda: jobs.take_lease(UUID(reply_id)))
    assert lease is not None
    execute(AGE, id=reply_id)
    execute(WISH, id=reply_id, seconds=3600)
    assert end_overdue() == 0
    assert account.daily_usage() == 1
    execute(WISH.replace("now() - make_interval(secs => :seconds)", "NULL"), id=reply_id)
    execute(FREE, id=reply_id)

    assert end_overdue() == 1

    assert ending_of(reply_id) == ("failed", "timed_out", "")
    assert not conclude(lease, Ending("completed", content="late", text_token=lease.token))
    assert account.daily_usage() == 0


def test_age_is_the_operators(make_app: Callable[..., Flask], account: Account) -> None:
    account.prompt(account.open_room(), "hello")
    execute("UPDATE reply_jobs SET created_at = now() - interval '100 s'")

    assert end_overdue() == 0
    with make_app(REPLY_MAX_AGE_SECONDS="99").app_context():
        assert end_overdue() == 1


def test_reply_whose_stopper_died_is_stopped_with_what_was_streamed(account: Account) -> None:
    reply_id = account.prompt(account.open_room(), "hello")
    lease = in_transaction(lambda: jobs.take_lease(UUID(reply_id)))
    assert lease is not None
    begin = Piece(lease.message_id, lease.token, 0, "", is_first=True)
    live_replies().append([begin, Piece(lease.message_id, lease.token, 0, "So far", is_first=False)])
    execute(WISH, id=reply_id, seconds=5)
    execute(FREE, id=reply_id)
    assert end_overdue() == 0  # Whoever stops it may still be at it.
    execute(WISH, id=reply_id, seconds=11)

    assert end_overdue() == 1

    assert ending_of(reply_id) == ("stopped", None, "So far")
    assert account.daily_usage() == 1


def test_reply_that_nobody_began_and_whose_stopper_died_is_given_back(account: Account) -> None:
    reply_id = account.prompt(account.open_room(), "hello")
    execute(WISH, id=reply_id, seconds=11)

    assert end_overdue() == 1

    assert ending_of(reply_id) == ("stopped", None, "")
    assert account.daily_usage() == 0


def test_next_of_the_room_is_rung_for_when_one_grew_too_old(services: Services, account: Account) -> None:
    room_id = account.open_room()
    old, second = account.prompt(room_id, "old"), account.prompt(room_id, "next")
    execute(AGE, id=old)
    with redis.Redis.from_url(services.environ["REDIS_URL"]) as queue:
        queue.delete("{dramatiq}:replies", "{dramatiq}:replies.msgs")

        end_overdue()

        (message,) = queue.hvals("{dramatiq}:replies.msgs")
    assert second.encode() in message


def test_each_overdue_reply_is_ended_and_given_back_once_when_three_sweepers_race(
    app: Flask, make_app: Callable[..., Flask], sign_in: Callable[..., Account], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatapi.replies.sweeper.BATCH", 4)
    account = sign_in(via=make_app(BASIC_DAILY_PROMPTS="100").test_client())
    kept = account.prompt(account.open_room(), "kept")
    replies = [account.prompt(account.open_room(), "hello") for _ in range(30)]
    execute("UPDATE reply_jobs SET created_at = now() - interval '3601 s' WHERE message_id <> :id", id=UUID(kept))

    def end(_index: int) -> int:
        with app.app_context():
            return end_overdue()

    assert sum(race(3, end)) == 30

    assert {ending_of(reply_id) for reply_id in replies} == {("failed", "timed_out", "")}
    assert account.daily_usage() == 1


def test_overdue_replies_are_ended_without_redis(make_app: Callable[..., Flask], account: Account) -> None:
    room_id = account.open_room()
    old, stopped = account.prompt(room_id, "old"), account.prompt(room_id, "stopped")
    execute(AGE, id=old)
    execute(WISH, id=stopped, seconds=11)

    with make_app(REDIS_URL="redis://127.0.0.1:1/0").app_context():
        assert end_overdue() == 2

    assert (ending_of(old)[0], ending_of(stopped)[0]) == ("failed", "stopped")
    assert account.daily_usage() == 0
