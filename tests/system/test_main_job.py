"""From sign-in to reply through gunicorn, Dramatiq and the sweeper, with parts of it killed on the way."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import redis

from chatapi.dev.gemini_standin import Fault
from tests.support import Account, wait_for
from tests.system.support import System, finished, members_of


def test_prompt_is_answered_with_the_rooms_history(system: System, someone: Account) -> None:
    room_id = someone.open_room(title="main job", system_instruction="Answer like a pirate")
    first = someone.prompt(room_id, "My name is Ada")
    second = someone.prompt(room_id, "What is my name?")

    replies = wait_for(lambda: finished(someone, room_id, [first, second]))

    assert [reply["status"] for reply in replies] == ["completed", "completed"]
    assert "Answer like a pirate" in replies[1]["content"]
    assert 'user: "My name is Ada"' in replies[1]["content"]
    room = someone.call("GET", f"/chatroom/{room_id}").get_json()["chatroom"]
    assert [message["message_type"] for message in room["messages"]] == ["user", "ai"] * 2


@pytest.mark.slow
def test_prompts_are_answered_once_and_in_order_when_the_worker_comes_back(system: System, someone: Account) -> None:
    system["worker"].stop()
    room_id = someone.open_room(title="main job")
    reply_ids = [someone.prompt(room_id, f"prompt {number}") for number in range(20)]
    assert {someone.read(room_id, reply_id)["status"] for reply_id in reply_ids} == {"pending"}

    system["worker"].restart()

    replies = wait_for(lambda: finished(someone, room_id, reply_ids), seconds=60)
    assert [reply["status"] for reply in replies] == ["completed"] * 20
    for number, reply in enumerate(replies):
        assert f'You said: "prompt {number}"' in reply["content"]
        assert f"Earlier turns I was given ({2 * number})" in reply["content"] or number == 0
    asked = [request.body["contents"][-1]["parts"][0]["text"] for request in system.services.gemini.requests]
    assert asked == [f"prompt {number}" for number in range(20)]
    assert someone.daily_usage() == 20


@pytest.mark.slow
def test_prompt_is_accepted_and_answered_later_when_valkey_is_killed(system: System, someone: Account) -> None:
    room_id = someone.open_room(title="main job")
    os.kill(system.services.valkey_process.pid or 0, signal.SIGKILL)
    wait_for(lambda: not system.services.valkey_process.is_running())

    answers = [someone.send(room_id, f"prompt {number}") for number in range(5)]
    listed = someone.call("GET", "/chatroom")

    assert [answer.status_code for answer in answers] == [201] * 5
    assert max(answer.seconds for answer in answers) < 2
    assert (listed.status_code, listed.get_json()["chatrooms"][0]["message_count"]) == (200, 10)
    assert someone.client.get("/health/ready").get_json()["status"] == "degraded"
    system.services.valkey_process.restart()
    reply_ids = [answer.get_json()["ai_message"]["id"] for answer in answers]
    replies = wait_for(lambda: finished(someone, room_id, reply_ids), seconds=60)
    assert [reply["status"] for reply in replies] == ["completed"] * 5
    assert len(system.services.gemini.requests) == 5


@pytest.mark.slow
def test_prompt_is_accepted_and_answered_later_when_valkey_hangs(system: System, someone: Account) -> None:
    room_id = someone.open_room(title="main job")
    pid = system.services.valkey_process.pid or 0
    os.kill(pid, signal.SIGSTOP)
    try:
        answers = [someone.send(room_id, f"prompt {number}") for number in range(5)]
    finally:
        os.kill(pid, signal.SIGCONT)

    assert [answer.status_code for answer in answers] == [201] * 5
    assert max(answer.seconds for answer in answers) < 2
    reply_ids = [answer.get_json()["ai_message"]["id"] for answer in answers]
    replies = wait_for(lambda: finished(someone, room_id, reply_ids), seconds=60)
    assert [reply["status"] for reply in replies] == ["completed"] * 5


@pytest.mark.slow
def test_prompts_are_answered_when_the_queue_was_flushed(system: System, someone: Account) -> None:
    system["worker"].stop()
    room_id = someone.open_room(title="main job")
    reply_ids = [someone.prompt(room_id, f"prompt {number}") for number in range(3)]
    with redis.Redis.from_url(system.services.valkey.url) as queue:
        queue.flushall()

    system["worker"].restart()

    replies = wait_for(lambda: finished(someone, room_id, reply_ids), seconds=60)
    assert [reply["status"] for reply in replies] == ["completed"] * 3
    assert len(system.services.gemini.requests) == 3


@pytest.mark.slow
def test_lease_is_kept_when_the_model_takes_longer_than_one_lease(system: System, someone: Account) -> None:
    system.services.gemini.add_fault(Fault(latency_ms=40_000))
    room_id = someone.open_room(title="main job")
    reply_id = someone.prompt(room_id, "hello")

    (reply,) = wait_for(lambda: finished(someone, room_id, [reply_id]), seconds=90)

    assert reply["status"] == "completed"
    assert len(system.services.gemini.requests) == 1


@pytest.mark.slow
def test_reply_under_way_is_finished_when_the_worker_is_asked_to_stop(system: System, someone: Account) -> None:
    system.services.gemini.add_fault(Fault(latency_ms=2000))
    room_id = someone.open_room(title="main job")
    reply_id = someone.prompt(room_id, "finish this")

    def requests() -> list[Any]:
        """Those for this prompt: another test's may be tried again meanwhile."""
        asked = system.services.gemini.requests
        return [each for each in asked if each.body["contents"][-1]["parts"][0]["text"] == "finish this"]

    wait_for(requests)

    system["worker"].stop()

    assert someone.read(room_id, reply_id)["status"] == "completed"
    assert len(requests()) == 1


def test_service_says_503_and_recovers_by_itself_when_postgresql_restarts(system: System, someone: Account) -> None:
    room_id = someone.open_room(title="main job")
    someone.prompt(room_id, "before")
    system.services.postgres_process.stop()

    answer = someone.send(room_id, "meanwhile")
    assert (answer.status_code, answer.get_json()["error"]) == (503, "service_unavailable")
    assert int(answer.headers["Retry-After"]) > 0
    assert someone.client.get("/health/ready").status_code == 503
    assert someone.client.get("/health/live").status_code == 200

    system.services.postgres_process.restart()
    assert system.services.postgres.wait_ready()
    after = someone.prompt(room_id, "after")
    (reply,) = wait_for(lambda: finished(someone, room_id, [after]), seconds=60)
    assert reply["status"] == "completed"
    room = someone.call("GET", f"/chatroom/{room_id}").get_json()["chatroom"]
    assert [each["content"] for each in room["messages"] if each["message_type"] == "user"] == ["before", "after"]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_only_the_worker_loads_the_gemini_sdk(system: System, someone: Account) -> None:
    """The SDK brings gRPC's shared library: mapped into the worker that answers, and into no process of the web."""
    room_id = someone.open_room(title="main job")
    reply_id = someone.prompt(room_id, "hello")
    wait_for(lambda: finished(someone, room_id, [reply_id]))

    loaded = {name: [_has_sdk(pid) for pid in members_of(child.pid or 0)] for name, child in system.children.items()}

    assert len(loaded["web"]) >= 3
    assert {name for name, found in loaded.items() if any(found)} == {"worker"}


def _has_sdk(pid: int) -> bool:
    return "cygrpc" in Path(f"/proc/{pid}/maps").read_text()
