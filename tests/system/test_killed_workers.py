"""Workers killed or frozen at any moment: one reply to each prompt, counted once."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from chatapi.dev.gemini_standin import Fault
from tests.support import Account, wait_for
from tests.system.events import Reader
from tests.system.support import System, chance, finish, finished, wait_all_ended

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def expire_lease(system: System, reply_id: str) -> None:
    """Have a lease of a dead worker be over now, instead of in half a minute."""
    system.rows(
        "UPDATE reply_jobs SET lease_expires_at = clock_timestamp(), ring_at = clock_timestamp(), rings = 0 "
        "WHERE message_id = %s RETURNING message_id",
        reply_id,
    )


@pytest.mark.parametrize(
    "content", ["[[fault=hang times=1]] during", "[[fault=hang_in_stream chunks=2 times=1 words=90]]"]
)
def test_reply_comes_once_when_the_worker_is_killed_during_the_model_call(
    system: System, someone: Account, content: str
) -> None:
    room_id = someone.open_room(title="killed")
    reply_id = someone.prompt(room_id, content)
    wait_for(lambda: system.asked(content))
    reader = Reader(someone, room_id, reply_id)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(reader.read_to_end, 90)
        time.sleep(0.7)
        has_text = bool(reader.text)
        system.kill("worker")
        killed_at = time.monotonic()
        system["worker"].start()
        reading.result()

    assert time.monotonic() - killed_at < 90
    reply = someone.read(room_id, reply_id)
    assert (reply["status"], reply["content"]) == ("completed", reader.text)
    assert reader.resets == (1 if has_text else 0) or reader.events[0].name == "reset"
    assert len(system.asked(content)) == 2
    assert someone.daily_usage() == 1
    wait_all_ended(system, 1)


def test_every_prompt_has_one_reply_counted_once_when_the_worker_is_killed_at_random_moments(
    system: System, sign_in: Callable[..., Account]
) -> None:
    choose = chance(20)
    people = [sign_in(via=system.client) for _ in range(5)]
    rooms = [(person, person.open_room(title="killed")) for person in people for _ in range(3)]
    system.kill("worker")
    sent = [(*room, room[0].prompt(room[1], "[[latency_ms=40]] short")) for room in rooms for _ in range(16)]
    system["worker"].start()
    for _ in range(5):
        # Starting takes a while; then all rooms are worked off, until the next kill. There is more than enough for all.
        wait_for(lambda: system.services.gemini.requests, every=0.01)
        time.sleep(choose.uniform(0.0, 0.25))
        system.kill("worker")
        for _, _, reply_id in sent:
            expire_lease(system, reply_id)
        system.services.gemini.forget_requests()
        system["worker"].start()

    wait_all_ended(system, 120)

    assert {person.read(room, reply)["status"] for person, room, reply in sent} == {"completed"}
    counts = system.rows("SELECT reply_to, count(*) AS replies FROM messages WHERE reply_to IS NOT NULL GROUP BY 1")
    assert {row.replies for row in counts} == {1}
    assert [person.daily_usage() for person in people] == [48] * 5


def test_prompt_that_kills_its_worker_each_time_fails_and_is_given_back_while_others_flow(
    system: System, someone: Account
) -> None:
    room_id, other_room = someone.open_room(title="poison"), someone.open_room(title="flow")
    system.services.gemini.add_fault(Fault("hang", match="poison"))
    poison = someone.prompt(room_id, "poison")
    behind = someone.prompt(room_id, "waits behind it")

    for attempt in range(1, 6):
        wait_for(lambda seen=attempt: len(system.asked("poison")) == seen)
        system.kill("worker")
        system["worker"].start()
        flowing = someone.prompt(other_room, f"others {attempt}")
        assert finish(someone, other_room, flowing, seconds=20)["status"] == "completed"
        expire_lease(system, poison)

    reply = finish(someone, room_id, poison)
    assert (reply["status"], reply["error"], reply["content"]) == ("failed", "internal_error", "")
    assert finish(someone, room_id, behind)["status"] == "completed"
    assert len(system.asked("poison")) == 5
    assert someone.daily_usage() == 6


def test_prompt_is_given_back_once_when_the_worker_is_killed_around_it(system: System, someone: Account) -> None:
    choose = chance(3)
    room_ids = [someone.open_room(title="refunds") for _ in range(8)]
    for _ in range(3):
        replies = [(room, someone.prompt(room, "[[fault=400]]")) for room in room_ids for _ in range(3)]
        time.sleep(choose.uniform(0.0, 0.15))
        system.kill("worker")
        system["worker"].start()
        for _, reply_id in replies:
            expire_lease(system, reply_id)
        wait_all_ended(system, 60)
        assert {someone.read(room, reply)["status"] for room, reply in replies} == {"failed"}

    assert someone.daily_usage() == 0


def test_late_replies_of_a_worker_frozen_past_its_leases_are_refused(system: System, someone: Account) -> None:
    # The first answers come, short ones, while their worker is frozen. It thaws while another is at the same replies.
    rooms = [someone.open_room(title="frozen") for _ in range(6)]
    system.services.gemini.add_fault(Fault(words=200, chunk_ms=100))
    replies = [
        (room, someone.prompt(room, f"[[latency_ms=1500 times=1]] frozen {number}"))
        for number, room in enumerate(rooms)
    ]
    wait_for(lambda: len(system.asked("frozen")) == 6)
    reader = Reader(someone, *replies[0])
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(reader.read_to_end, 90)
        with system.another("worker"):
            with system.frozen("worker"):
                wait_for(lambda: len(system.asked("frozen")) == 12, seconds=60, every=0.02)
            ended = [finish(someone, *reply) for reply in replies]
        reading.result()

    for (_, reply_id), reply in zip(replies, ended, strict=True):
        assert {"late_reply_refused", "lease_lost"} & system.events_of("worker", reply_id)
        assert reply["status"] == "completed"
        assert "word-200" in reply["content"]
    assert reader.text == ended[0]["content"]
    assert len(system.asked("frozen")) == 12
    assert someone.daily_usage() == 6
    wait_all_ended(system, 1)


def test_no_orphan_is_left_when_room_or_account_is_deleted_while_its_reply_runs(
    system: System, someone: Account
) -> None:
    content = "[[words=1500 chunk_ms=200]]"
    room_id = someone.open_room(title="deleted")
    someone.prompt(room_id, content)
    wait_for(lambda: system.asked(content))

    assert someone.call("DELETE", f"/chatroom/{room_id}").status_code == 200

    wait_for(lambda: all(request.was_left for request in system.asked(content)), seconds=6)
    other_room = someone.open_room(title="other")
    after = someone.prompt(other_room, "still there?")
    assert finish(someone, other_room, after)["status"] == "completed"

    running = someone.prompt(other_room, f"{content} again")
    wait_for(lambda: system.asked("again"))
    assert someone.call("DELETE", "/user/me").status_code == 204
    wait_for(lambda: all(request.was_left for request in system.asked("again")), seconds=6)
    assert system.rows("SELECT FROM messages WHERE id = %s OR room_id = %s", running, other_room) == []
    assert system.rows("SELECT FROM reply_jobs WHERE user_id = %s", someone.id) == []
    assert "Traceback" not in system.log_of("worker")


def test_replies_under_way_are_finished_when_the_worker_is_asked_to_stop(system: System, someone: Account) -> None:
    rooms = [someone.open_room(title="drain") for _ in range(10)]
    replies = [someone.prompt(room, "[[words=200 chunk_ms=60]] drain") for room in rooms]
    wait_for(lambda: len(system.asked("drain")) == 10)

    system["worker"].stop()

    ended = [finished(someone, room, [reply]) for room, reply in zip(rooms, replies, strict=True)]
    assert [reply[0]["status"] for reply in ended if reply] == ["completed"] * 10
    assert len(system.asked("drain")) == 10
