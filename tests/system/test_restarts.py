"""Web and worker asked to stop, in good order: waits answer, streams end between events and are resumed."""

from __future__ import annotations

import http.client
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from chatapi.dev.gemini_standin import Fault
from tests.support import Account, wait_for
from tests.system.events import Reader
from tests.system.support import System, finish, send

pytestmark = pytest.mark.slow

LONG = "[[words=700 chunk_ms=60]]"
"""Some eight seconds of text."""


def test_waits_answer_and_streams_end_between_events_when_web_is_asked_to_stop(
    system: System, someone: Account
) -> None:
    room_id, other_room = someone.open_room(title="streams"), someone.open_room(title="waits")
    reply_id = someone.prompt(room_id, LONG)
    readers = [Reader(someone, room_id, reply_id) for _ in range(10)]
    with ThreadPoolExecutor(20) as pool:
        reading = [pool.submit(reader.read) for reader in readers]
        waiting = [pool.submit(send, someone, other_room, "[[fault=hang]]", Prefer="wait=40") for _ in range(6)]
        wait_for(lambda: all(reader.text for reader in readers))
        wait_for(lambda: system.rows("SELECT count(*) AS jobs FROM reply_jobs")[0].jobs == 7)
        time.sleep(0.5)
        asked_at = time.monotonic()
        system["web"].ask_to_stop()
        for each in reading:
            # `Reader` holds that it ends between two events.
            each.result()
        answers = [each.result() for each in waiting]
        seconds = time.monotonic() - asked_at
    wait_for(lambda: not system["web"].is_running(), seconds=15)

    assert seconds < 8
    assert {answer.status_code for answer in answers} == {201}
    assert {answer.get_json()["ai_message"]["status"] for answer in answers} <= {"pending", "processing"}
    assert all(reader.end is None for reader in readers)
    system["web"].start()
    for reader in readers:
        assert reader.read_to_end().name == "done"
        assert reader.text == someone.read(room_id, reply_id)["content"]
        assert reader.resets == 0


def test_streams_are_resumed_and_no_request_fails_when_web_is_reloaded(system: System, someone: Account) -> None:
    room_id = someone.open_room(title="reloads")
    reply_id = someone.prompt(room_id, LONG)
    readers = [Reader(someone, room_id, reply_id) for _ in range(5)]
    statuses = []
    with ThreadPoolExecutor(5) as pool:
        reading = [pool.submit(reader.read_to_end) for reader in readers]
        for _ in range(2):
            time.sleep(1)
            os.kill(system["web"].pid or 0, signal.SIGHUP)
            until = time.monotonic() + 3
            while time.monotonic() < until:
                statuses.append(someone.call("GET", "/user/me").status_code)
        for each in reading:
            each.result()

    stored = finish(someone, room_id, reply_id)
    assert set(statuses) == {200}
    for reader in readers:
        assert (reader.text, reader.resets) == (stored["content"], 0)
        assert reader.connections > 1


def test_streams_are_resumed_when_web_is_killed(system: System, someone: Account) -> None:
    system.services.gemini.add_fault(Fault(words=500, chunk_ms=50))
    room_id = someone.open_room(title="killed")
    reply_id = someone.prompt(room_id, "hello")
    reader = Reader(someone, room_id, reply_id)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_on, reader)
        wait_for(lambda: reader.text)
        system.kill("web")
        system["web"].start()
        reading.result()

    assert reader.text == finish(someone, room_id, reply_id)["content"]
    assert reader.connections > 1
    assert reader.resets == 0


def read_on(reader: Reader) -> None:
    """Read to the end; a connection that breaks within an event leaves that event unread."""
    while reader.end is None:
        try:
            reader.read()
        except (OSError, http.client.HTTPException, AssertionError):
            time.sleep(0.2)
