"""Streams as clients meet them: text that grows, cuts at any event, many readers, and what fails meanwhile."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from chatapi.dev.gemini_standin import Fault
from tests.support import Account, race, wait_for
from tests.system.events import EventStream, Reader
from tests.system.support import System, chance, finish

LONG = "[[words=400 chunk_ms=40]]"
"""A reply that is written for some three seconds, in nearly as many events as there can be."""


def open_reply(account: Account, content: str) -> tuple[str, str]:
    """Send a prompt in a room of its own; return room and reply."""
    room_id = account.open_room(title="streams")
    return room_id, account.prompt(room_id, content)


def cut_and_resume(readers: list[Reader], seed: int) -> int:
    """Have all readers follow, each cut after a few events again and again; return the number of cuts."""

    def follow(index: int) -> int:
        choose, reader = chance(seed + index), readers[index]
        deadline = time.monotonic() + 100
        while reader.end is None:
            assert time.monotonic() < deadline
            reader.read(most=choose.choice([1, 1, 2, 3]))
        return reader.connections - 1

    return sum(race(len(readers), follow))


def assert_have_stored_text(account: Account, room_id: str, reply_id: str, readers: list[Reader]) -> dict[str, Any]:
    """Hold that each reader's text since its last reset is the stored one; return the reply."""
    stored = account.read(room_id, reply_id)
    for reader in readers:
        assert reader.text == stored["content"]
        assert reader.end is not None
        assert reader.end.data["message"]["content"] == stored["content"]
    return stored


def test_text_arrives_while_the_model_writes(system: System, someone: Account) -> None:
    room_id, reply_id = open_reply(someone, "[[words=200 chunk_ms=50]]")
    began = time.monotonic()

    with EventStream(someone, room_id, reply_id) as stream:
        events = list(iter(stream.next, None))

    assert stream.status_code == 200
    assert stream.headers["Content-Type"].startswith("text/event-stream")
    assert "no-cache" in stream.headers["Cache-Control"]
    assert stream.headers["X-Accel-Buffering"] == "no"
    assert [event.name for event in events] == ["delta"] * (len(events) - 1) + ["done"]
    assert len(events) > 8
    assert events[0].at - began < 1
    assert events[-1].at - events[0].at > 1
    assert "".join(event.data["text"] for event in events[:-1]) == events[-1].data["message"]["content"]
    assert len({event.id for event in events}) == len(events)


def test_finished_reply_is_replayed_at_once_and_not_again_after_its_end(system: System, someone: Account) -> None:
    room_id, reply_id = open_reply(someone, "hello")
    finish(someone, room_id, reply_id)
    reader = Reader(someone, room_id, reply_id)
    began = time.monotonic()

    reader.read()

    assert time.monotonic() - began < 1
    assert_have_stored_text(someone, room_id, reply_id, [reader])
    with EventStream(someone, room_id, reply_id, last_event_id=reader.last_id) as stream:
        assert stream.status_code == 204


@pytest.mark.slow
def test_twenty_readers_of_one_reply_all_get_the_same(system: System, someone: Account) -> None:
    room_id, reply_id = open_reply(someone, LONG)
    readers = [Reader(someone, room_id, reply_id) for _ in range(20)]

    race(20, lambda index: readers[index].read())

    stored = assert_have_stored_text(someone, room_id, reply_id, readers)
    assert stored["status"] == "completed"
    assert all(reader.resets == 0 for reader in readers)


@pytest.mark.slow
def test_nothing_is_missed_or_repeated_when_streams_are_cut_two_hundred_times(system: System, someone: Account) -> None:
    room_id, reply_id = open_reply(someone, LONG)
    readers = [Reader(someone, room_id, reply_id) for _ in range(25)]

    cuts = cut_and_resume(readers, seed=1)

    assert cuts >= 200
    stored = assert_have_stored_text(someone, room_id, reply_id, readers)
    assert stored["status"] == "completed"
    for reader in readers:
        # Not even what a reset would mend.
        assert reader.resets == 0
        ids = [event.id for event in reader.events]
        assert len(ids) == len(set(ids))


@pytest.mark.slow
def test_text_goes_on_arriving_when_redis_is_flushed(system: System, someone: Account) -> None:
    room_id, reply_id = open_reply(someone, LONG)
    reader = Reader(someone, room_id, reply_id)
    reader.read(most=5)

    harm_redis(system, "flushed")
    reader.read()

    stored = assert_have_stored_text(someone, room_id, reply_id, [reader])
    assert stored["status"] == "completed"
    assert len(reader.events) > 15
    assert reader.resets == 0


@pytest.mark.slow
@pytest.mark.parametrize("what", ["flushed", "restarted", "dead", "frozen"])
def test_nothing_is_missed_or_repeated_when_redis_fails_at_a_random_moment(
    system: System, someone: Account, what: str
) -> None:
    for seed in range(2):
        room_id, reply_id = open_reply(someone, LONG)
        readers = [Reader(someone, room_id, reply_id) for _ in range(10)]
        wait_for(lambda asked=room_id, reply=reply_id: someone.read(asked, reply)["status"] == "processing")
        with ThreadPoolExecutor(1) as pool:
            cutting = pool.submit(cut_and_resume, readers, 100 * seed)
            time.sleep(chance(seed).uniform(0.2, 2.5))
            harm_redis(system, what)
            cuts = cutting.result()

        assert cuts > 20
        stored = assert_have_stored_text(someone, room_id, reply_id, readers)
        assert stored["status"] == "completed"
        system.mend()


def harm_redis(system: System, what: str) -> None:
    if what == "flushed":
        with redis.Redis.from_url(system.services.valkey.url) as client:
            client.flushall()
    elif what == "frozen":
        with system.valkey_frozen():
            time.sleep(2)
    else:
        system.kill_valkey()
        # Dead for longer than the reply takes, so that its readers have the rest of it from PostgreSQL.
        time.sleep(5 if what == "dead" else 0)
        system.services.valkey_process.restart()


@pytest.mark.slow
def test_readers_see_a_reset_and_then_the_stored_text_when_the_worker_is_killed(
    system: System, someone: Account
) -> None:
    room_id, reply_id = open_reply(someone, "[[words=1200 chunk_ms=40]]")
    readers = [Reader(someone, room_id, reply_id) for _ in range(10)]
    with ThreadPoolExecutor(1) as pool:
        cutting = pool.submit(cut_and_resume, readers, 7)
        wait_for(lambda: all(reader.text for reader in readers))
        time.sleep(chance(7).uniform(0.2, 2))
        system.kill("worker")
        killed_at = time.monotonic()
        system["worker"].start()
        cuts = cutting.result()

    assert time.monotonic() - killed_at < 90
    assert cuts > 100
    stored = assert_have_stored_text(someone, room_id, reply_id, readers)
    assert stored["status"] == "completed"
    assert {reader.resets for reader in readers} == {1}
    assert someone.daily_usage() == 1


@pytest.mark.slow
def test_stream_gives_a_sign_of_life_at_least_every_fifteen_seconds_while_a_reply_is_pending(
    system: System, someone: Account
) -> None:
    system.services.gemini.add_fault(Fault("hang"))
    room_id, reply_id = open_reply(someone, "hello")
    reader = Reader(someone, room_id, reply_id)
    began = time.monotonic()
    stopper = threading.Timer(32, lambda: someone.call("POST", f"/chatroom/{room_id}/message/{reply_id}/stop"))
    stopper.start()

    reader.read()

    signs = [began, *reader.comments, time.monotonic()]
    assert max(later - earlier for earlier, later in itertools.pairwise(signs)) <= 15
    assert len(reader.comments) >= 2
    assert reader.end is not None
    assert reader.end.name == "stopped"


@pytest.mark.slow
def test_open_stream_ends_when_its_session_does(system: System, someone: Account) -> None:
    system.services.gemini.add_fault(Fault("hang"))
    room_id, reply_id = open_reply(someone, "hello")

    with EventStream(someone, room_id, reply_id, seconds=20) as stream:
        time.sleep(0.5)
        assert someone.call("POST", "/auth/logout", {}).status_code == 204
        began = time.monotonic()
        assert stream.next() is None

    assert time.monotonic() - began < 16


def test_failed_attempt_is_reset_for_its_readers_and_the_failure_told(system: System, someone: Account) -> None:
    room_id, reply_id = open_reply(someone, "[[fault=cut chunks=3 times=1 chunk_ms=60 words=100]]")
    reader = Reader(someone, room_id, reply_id)

    reader.read()

    assert reader.resets == 1
    stored = assert_have_stored_text(someone, room_id, reply_id, [reader])
    assert stored["status"] == "completed"

    failed_room, failed = open_reply(someone, "[[fault=400]]")
    other = Reader(someone, failed_room, failed)
    other.read()
    assert other.end is not None
    assert (other.end.name, other.end.data["error"]) == ("error", "upstream_rejected")
    assert other.end.data["detail"]


def test_replies_of_others_are_not_streamed(system: System, someone: Account, sign_in: Callable[..., Account]) -> None:
    room_id, reply_id = open_reply(someone, "hello")

    with EventStream(sign_in(via=system.client), room_id, reply_id) as stream:
        assert stream.status_code == 404
