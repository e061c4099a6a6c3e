"""Redis down, restarted or hung under load: no prompt is refused, lost or answered twice."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import redis

from chatapi.dev.gemini_standin import Fault
from tests.support import Account, wait_for
from tests.system.prompting import Prompting, assert_all_accepted_and_answered_once
from tests.system.support import System, finish, finished, sleep_until, wait_all_ended

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def test_prompts_are_accepted_in_time_and_answered_after_when_redis_is_down_for_a_minute(
    system: System, people: list[Account]
) -> None:
    with Prompting(people, pause_seconds=2.0) as load:
        time.sleep(1)
        system.kill_valkey()
        time.sleep(60)
        system.services.valkey_process.restart()
        time.sleep(2)

    assert len(load.answers) > 100
    assert_all_accepted_and_answered_once(system, people, load)


def test_prompts_are_accepted_and_answered_when_redis_hangs_for_ten_seconds(
    system: System, people: list[Account]
) -> None:
    with Prompting(people, pause_seconds=0.3) as load:
        time.sleep(1)
        with system.valkey_frozen():
            time.sleep(10)
        time.sleep(2)

    assert_all_accepted_and_answered_once(system, people, load)


def test_prompts_are_answered_once_when_redis_restarts_again_and_again_under_load(
    system: System, people: list[Account]
) -> None:
    with Prompting(people, pause_seconds=0.2) as load:
        for _ in range(4):
            time.sleep(1.5)
            system.kill_valkey()
            system.services.valkey_process.restart()

    assert_all_accepted_and_answered_once(system, people, load)


@pytest.mark.parametrize("is_flushed", [False, True])
def test_retries_that_wait_are_made_when_redis_restarts_meanwhile(
    system: System, someone: Account, is_flushed: bool
) -> None:
    rooms = [someone.open_room(title="retries") for _ in range(10)]
    contents = [f"[[fault=503 times=2 retry_after_ms=3000]] retried {number}" for number in range(10)]
    replies = [someone.prompt(room, content) for room, content in zip(rooms, contents, strict=True)]
    wait_for(lambda: system.rows("SELECT count(*) AS n FROM reply_jobs WHERE last_error IS NOT NULL")[0].n == 10)

    system.kill_valkey()
    system.services.valkey_process.restart()
    if is_flushed:
        assert system.services.valkey.wait_ready()
        with redis.Redis.from_url(system.services.valkey.url) as client:
            client.flushall()

    for room, reply_id in zip(rooms, replies, strict=True):
        assert finish(someone, room, reply_id)["status"] == "completed"
    assert len(system.asked("retried")) == 30
    assert someone.daily_usage() == 10


def test_prompt_is_answered_when_web_is_killed_between_commit_and_ring(system: System, someone: Account) -> None:
    room_id = someone.open_room(title="unrung")
    system["worker"].stop()
    with ThreadPoolExecutor(1) as pool, ExitStack() as hanging:
        # Redis hangs when the limits have asked it already: else they alone would wait for it.
        with system.locked("chatrooms", room_id):
            sending = pool.submit(someone.send, room_id, "never rung for")
            wait_for(lambda: system.rows("SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'"), every=0.005)
            hanging.enter_context(system.valkey_frozen())
        wait_for(lambda: system.rows("SELECT FROM messages WHERE content = 'never rung for'"), every=0.005)
        system.kill("web")
        assert sending.exception() is not None
        hanging.close()
        # What web may have left in the socket is not to be what rings.
        with redis.Redis.from_url(system.services.valkey.url) as client:
            client.flushall()
    system["web"].start()
    system["worker"].start()

    wait_all_ended(system, 60)

    replies = system.rows("SELECT status, content FROM messages WHERE room_id = %s AND reply_to IS NOT NULL", room_id)
    assert [reply.status for reply in replies] == ["completed"]
    assert len(system.asked("never rung for")) == 1


def test_each_prompt_is_rung_for_once_and_answered_when_one_of_three_sweepers_is_killed(
    system: System, someone: Account
) -> None:
    system["worker"].stop()
    rooms = [someone.open_room(title="sweepers") for _ in range(40)]
    with (
        system.another("sweeper"),
        system.another("sweeper"),
        redis.Redis.from_url(system.services.valkey.url) as queue,
    ):
        replies = [someone.prompt(room, "swept") for room in rooms]
        queue.flushall()
        wait_for(lambda: queue.llen("{dramatiq}:replies") > 0, every=0.01)
        system.kill("sweeper")
        wait_for(lambda: queue.llen("{dramatiq}:replies") >= 40, seconds=20)
        time.sleep(1)
        rung = queue.llen("{dramatiq}:replies")
        system["worker"].start()
        for room, reply_id in zip(rooms, replies, strict=True):
            assert finish(someone, room, reply_id)["status"] == "completed"

    # What the killed one had taken and not rung for is taken again after some seconds, and may be rung for twice.
    assert 40 <= rung <= 80
    assert len(system.asked("swept")) == 40


def test_reply_under_way_is_finished_when_redis_is_down_to_its_end(system: System, someone: Account) -> None:
    system.services.gemini.add_fault(Fault(latency_ms=1500))
    room_id = someone.open_room(title="down")
    reply_id = someone.prompt(room_id, "hello")
    wait_for(lambda: system.asked("hello"))
    system.kill_valkey()
    began = time.monotonic()

    reply = wait_for(lambda: finished(someone, room_id, [reply_id]), seconds=10)[0]

    assert reply["status"] == "completed"
    sleep_until(began + 5)
    assert len(system.asked("hello")) == 1
