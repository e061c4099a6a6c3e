"""Stopping a reply: whatever it is doing, whichever process is asked, and whatever is broken meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from chatapi.dev.gemini_standin import Fault
from tests.support import Account, race, wait_for
from tests.system.events import Reader
from tests.system.support import System, finish, stop_reply

ENDLESS = "[[words=1500 chunk_ms=200]]"
"""More than half a minute of text."""


def begin(system: System, account: Account, content: str = ENDLESS) -> tuple[str, str]:
    """Send a prompt, and wait until the model is asked; return room and reply."""
    room_id = account.open_room(title="stops")
    reply_id = account.prompt(room_id, content)
    wait_for(lambda: account.read(room_id, reply_id)["status"] == "processing", every=0.02)
    wait_for(lambda: system.asked(content), every=0.02)
    return room_id, reply_id


def is_left(system: System, content: str) -> bool:
    """Return whether the model requests for `content` were all closed by us."""
    asked = system.asked(content)
    return bool(asked) and all(request.was_left for request in asked)


def test_stop_keeps_the_text_so_far_and_closes_the_call_when_the_model_writes(system: System, someone: Account) -> None:
    room_id, reply_id = begin(system, someone)
    reader = Reader(someone, room_id, reply_id)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(reader.read)
        wait_for(lambda: len(reader.events) > 4)
        seen = reader.text
        stopped = stop_reply(someone, room_id, reply_id)
        reading.result()

    assert stopped["status"] == "stopped"
    assert stopped["content"].startswith(seen)
    assert someone.read(room_id, reply_id)["content"] == stopped["content"] == reader.text
    assert reader.end is not None
    assert (reader.end.name, reader.end.data["message"]["content"]) == ("stopped", reader.text)
    wait_for(lambda: is_left(system, ENDLESS), seconds=5)
    assert someone.daily_usage() == 1
    later = someone.prompt(room_id, "and now?")
    assert finish(someone, room_id, later)["status"] == "completed"


@pytest.mark.parametrize("fault", ["hang", "hang_in_stream", "drip"])
def test_stop_ends_a_call_that_hangs(system: System, someone: Account, fault: str) -> None:
    content = f"[[fault={fault}]]"
    room_id, reply_id = begin(system, someone, content)

    stopped = stop_reply(someone, room_id, reply_id)

    assert stopped["status"] == "stopped"
    wait_for(lambda: is_left(system, content), seconds=5)
    assert someone.daily_usage() == 1


def test_stop_works_from_either_web_process(system: System, someone: Account) -> None:
    replies = [begin(system, someone) for _ in range(12)]

    stopped = race(12, lambda index: stop_reply(someone, *replies[index]))

    assert [reply["status"] for reply in stopped] == ["stopped"] * 12
    wait_for(lambda: is_left(system, ENDLESS), seconds=5)
    assert someone.daily_usage() == 12


def test_all_get_the_same_answer_when_a_reply_is_stopped_by_many_at_once(system: System, someone: Account) -> None:
    room_id, reply_id = begin(system, someone)

    stopped = race(20, lambda _: stop_reply(someone, room_id, reply_id))

    assert {(reply["status"], reply["content"]) for reply in stopped} == {("stopped", stopped[0]["content"])}
    assert someone.daily_usage() == 1


def test_stop_gives_the_prompt_back_once_when_no_attempt_began(system: System, someone: Account) -> None:
    room_id, first = begin(system, someone)
    waiting = [someone.prompt(room_id, "waits for its turn") for _ in range(3)]
    assert someone.daily_usage() == 4

    stopped = race(21, lambda index: stop_reply(someone, room_id, waiting[index % 3]))

    assert {(reply["status"], reply["content"]) for reply in stopped} == {("stopped", "")}
    assert someone.daily_usage() == 1
    stop_reply(someone, room_id, first)
    assert someone.daily_usage() == 1
    assert system.asked("waits for its turn") == []


def test_stop_gives_nothing_back_when_an_attempt_has_failed_before(system: System, someone: Account) -> None:
    room_id = someone.open_room(title="stops")
    reply_id = someone.prompt(room_id, "[[fault=503 retry_after_ms=20000]]")
    wait_for(lambda: system.asked("[[fault=503"))
    wait_for(lambda: system.rows("SELECT last_error FROM reply_jobs WHERE message_id = %s", reply_id)[0].last_error)

    assert stop_reply(someone, room_id, reply_id)["status"] == "stopped"

    assert someone.daily_usage() == 1


@pytest.mark.parametrize(
    ("fault", "error", "used"), [("400", "upstream_rejected", 0), ("blocked", "safety_blocked", 1)]
)
def test_failure_gives_the_prompt_back_once_but_for_a_blocked_one(
    system: System, someone: Account, fault: str, error: str, used: int
) -> None:
    room_id = someone.open_room(title="stops")
    someone.prompt(room_id, "kept")
    reply_id = someone.prompt(room_id, f"[[fault={fault}]]")
    reply = finish(someone, room_id, reply_id)

    assert (reply["status"], reply["error"]) == ("failed", error)
    assert race(8, lambda _: stop_reply(someone, room_id, reply_id)["status"]) == ["failed"] * 8
    assert someone.daily_usage() == 1 + used


def flush(system: System) -> None:
    with redis.Redis.from_url(system.services.valkey.url) as client:
        client.flushall()


def restart_valkey(system: System) -> None:
    system.kill_valkey()
    system.services.valkey_process.restart()


@pytest.mark.parametrize("harm", [flush, restart_valkey, System.kill_valkey])
@pytest.mark.parametrize("content", [ENDLESS, pytest.param("[[fault=hang]]", marks=pytest.mark.slow)])
def test_stop_needs_no_redis(system: System, someone: Account, content: str, harm: Callable[[System], None]) -> None:
    room_id, reply_id = begin(system, someone, content)
    time.sleep(0.5)
    harm(system)

    stopped = stop_reply(someone, room_id, reply_id)

    assert stopped["status"] == "stopped"
    assert bool(stopped["content"]) == (content == ENDLESS)
    wait_for(lambda: is_left(system, content), seconds=5)
    reader = Reader(someone, room_id, reply_id)
    assert reader.read_to_end().name == "stopped"
    assert reader.text == stopped["content"]


@pytest.mark.slow
def test_stop_takes_the_reply_from_a_frozen_worker_with_what_was_streamed(system: System, someone: Account) -> None:
    room_id, reply_id = begin(system, someone)
    reader = Reader(someone, room_id, reply_id)
    reader.read(most=5)
    with system.frozen("worker"):
        began = time.monotonic()
        stopped = stop_reply(someone, room_id, reply_id)
        seconds = time.monotonic() - began
        reader.read()

    assert 1.5 < seconds < 5
    assert stopped["status"] == "stopped"
    assert stopped["content"]
    assert stopped["content"] == reader.text
    # Thawed, the worker finds that the reply is not its own any more.
    wait_for(lambda: is_left(system, ENDLESS), seconds=10)
    assert someone.read(room_id, reply_id) == stopped
    later = someone.prompt(room_id, "and now?")
    assert finish(someone, room_id, later)["status"] == "completed"
    assert someone.daily_usage() == 2


@pytest.mark.slow
def test_late_answer_is_refused_when_a_frozen_worker_had_it_already(system: System, someone: Account) -> None:
    content = "[[latency_ms=1000]] late"
    room_id, reply_id = begin(system, someone, content)
    with system.frozen("worker"):
        stopped = stop_reply(someone, room_id, reply_id)

    # By its token, or sooner: by who looks after the leases.
    wait_for(lambda: {"late_reply_refused", "lease_lost"} & system.events_of("worker", reply_id), seconds=10)
    assert (stopped["status"], stopped["content"]) == ("stopped", "")
    assert someone.read(room_id, reply_id) == stopped


@pytest.mark.slow
def test_reply_is_stopped_by_the_sweeper_when_web_and_worker_died_over_it(system: System, someone: Account) -> None:
    system.services.gemini.add_fault(Fault("hang"))
    room_id, reply_id = begin(system, someone, "hello")
    system.kill("worker")
    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(someone.call, "POST", f"/chatroom/{room_id}/message/{reply_id}/stop")
        wait_for(lambda: system.rows("SELECT FROM reply_jobs WHERE stop_requested_at IS NOT NULL"), every=0.02)
        system.kill("web")
        assert stopping.exception() is not None
    system["web"].start()
    system["worker"].start()

    reply = wait_for(lambda: ended(someone, room_id, reply_id), seconds=60)

    assert reply["status"] == "stopped"
    assert someone.daily_usage() == 1
    assert len(system.asked("hello")) == 1


def ended(account: Account, room_id: str, reply_id: str) -> dict[str, str] | None:
    """Return the reply if it has ended; None also while web is not up yet."""
    try:
        reply = account.read(room_id, reply_id)
    except OSError:
        return None
    return reply if reply["status"] == "stopped" else None
