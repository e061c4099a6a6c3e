"""The model, or the worker, away for long: work ends by its age and is given back."""

from __future__ import annotations

import time

import pytest

from chatapi.dev.gemini_standin import Fault
from tests.support import Account, wait_for
from tests.system.support import System, finish, finished, wait_all_ended

pytestmark = pytest.mark.slow

SETTINGS = {"REPLY_MAX_AGE_SECONDS": "12", "REPLY_MAX_ATTEMPTS": "100", "WORKER_THREADS": "16"}


def test_aged_work_ends_and_is_given_back_when_the_model_is_away(system: System, someone: Account) -> None:
    system.services.gemini.add_fault(Fault("503"))
    rooms = [someone.open_room(title="aged") for _ in range(5)]
    began = time.monotonic()
    sent = [(room, someone.prompt(room, "hello")) for room in rooms for _ in range(3)]

    wait_all_ended(system, 30)

    assert time.monotonic() - began < 25
    replies = [someone.read(room, reply) for room, reply in sent]
    assert {(reply["status"], reply["error"]) for reply in replies} == {("failed", "timed_out")}
    assert someone.daily_usage() == 0
    system.services.gemini.clear()
    later = someone.prompt(rooms[0], "back again")
    assert finish(someone, rooms[0], later)["status"] == "completed"


def test_aged_work_ends_and_is_given_back_when_no_worker_runs(system: System, someone: Account) -> None:
    system["worker"].stop()
    room_id = someone.open_room(title="aged")
    reply_ids = [someone.prompt(room_id, "hello") for _ in range(3)]
    began = time.monotonic()

    replies = wait_for(lambda: finished(someone, room_id, reply_ids))

    assert 10 < time.monotonic() - began < 20
    assert {(reply["status"], reply["error"]) for reply in replies} == {("failed", "timed_out")}
    assert someone.daily_usage() == 0
    assert system.services.gemini.requests == []


def test_prompt_is_tried_again_and_given_up_at_its_age_when_the_model_hangs(system: System, someone: Account) -> None:
    room_id = someone.open_room(title="hangs")
    reply_id = someone.prompt(room_id, "[[fault=503 retry_after_ms=60000]]")

    reply = finish(someone, room_id, reply_id)

    # The model says when to come again, which is too late: no use in waiting for that.
    assert (reply["status"], reply["error"]) == ("failed", "timed_out")
    assert len(system.asked("retry_after_ms")) == 1
    assert someone.daily_usage() == 0
