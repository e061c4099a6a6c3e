"""Where there is no more room: one user's replies in flight, the backlog, open streams and waits."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any

import pytest

from tests.support import Account, race, wait_for
from tests.system.events import EventStream
from tests.system.support import System, finish, send

SETTINGS = {
    "MAX_IN_FLIGHT_PER_USER": "10",
    "MAX_BACKLOG": "60",
    "MAX_OPEN_STREAMS": "20",
    "WEB_THREADS": "6",
}
SLOW = "[[fault=hang]]"


def count_connections(system: System) -> Counter[str]:
    """Count the service's database connections by what they do."""
    found = system.rows("SELECT state FROM pg_stat_activity WHERE application_name = 'chatapi'")
    return Counter(row.state for row in found)


@pytest.mark.slow
def test_others_are_answered_promptly_when_one_user_sends_five_hundred_prompts(
    system: System, sign_in: Callable[..., Account]
) -> None:
    greedy, other = sign_in(via=system.client), sign_in(via=system.client)
    rooms = [greedy.open_room(title="greedy") for _ in range(50)]
    other_room = other.open_room(title="other")
    with ThreadPoolExecutor(16) as pool:
        sending = [pool.submit(greedy.send, rooms[number % 50], SLOW) for number in range(500)]
        time.sleep(0.5)
        began = time.monotonic()
        reply = finish(other, other_room, other.prompt(other_room, "hello"))
        seconds = time.monotonic() - began
        answers = [each.result() for each in sending]

    assert reply["status"] == "completed"
    assert seconds < 3
    assert Counter(answer.status_code for answer in answers) == {201: 10, 429: 490}
    refused = [answer for answer in answers if answer.status_code == 429]
    assert {answer.get_json()["error"] for answer in refused} == {"too_many_in_flight"}
    assert all(int(answer.headers["Retry-After"]) > 0 for answer in refused)
    assert greedy.daily_usage() == 10


def test_exactly_the_replies_in_flight_are_accepted_when_all_prompts_arrive_at_once(
    system: System, someone: Account
) -> None:
    rooms = [someone.open_room(title="at once") for _ in range(4)]

    answers = race(60, lambda index: someone.send(rooms[index % 4], SLOW))

    assert Counter(answer.status_code for answer in answers) == {201: 10, 429: 50}
    assert someone.daily_usage() == 10


def test_prompts_past_the_backlog_are_refused_with_503_and_counted_for_nobody(
    system: System, sign_in: Callable[..., Account]
) -> None:
    people = [sign_in(via=system.client) for _ in range(8)]
    rooms = [person.open_room(title="full") for person in people]

    answers = [person.send(room, SLOW) for person, room in zip(people, rooms, strict=True) for _ in range(8)]

    assert [answer.status_code for answer in answers] == [201] * 60 + [503] * 4
    assert {answer.get_json()["error"] for answer in answers[60:]} == {"too_busy"}
    assert all(int(answer.headers["Retry-After"]) > 0 for answer in answers[60:])
    assert [person.daily_usage() for person in people] == [8] * 7 + [4]
    assert people[0].call("DELETE", f"/chatroom/{rooms[0]}").status_code == 200
    assert people[7].send(rooms[7], SLOW).status_code == 201


def test_wait_gives_prompt_and_reply_in_one_request(system: System, someone: Account) -> None:
    room_id = someone.open_room(title="waits")

    answer = send(someone, room_id, "[[words=60 chunk_ms=50]]", Prefer="wait=30")

    assert answer.status_code == 201
    assert answer.headers["Preference-Applied"] == "wait=30"
    reply = answer.get_json()["ai_message"]
    assert reply["status"] == "completed"
    assert reply == someone.read(room_id, reply["id"])
    assert answer.seconds < 5

    failed = send(someone, room_id, "[[fault=400]]", Prefer="wait=30")
    assert (failed.status_code, failed.headers["Preference-Applied"]) == (201, "wait=30")
    assert failed.get_json()["ai_message"]["error"] == "upstream_rejected"


def test_wait_that_is_too_short_gives_the_pending_reply(system: System, someone: Account) -> None:
    room_id = someone.open_room(title="waits")

    answer = send(someone, room_id, SLOW, Prefer="wait=1")

    assert answer.status_code == 201
    assert "Preference-Applied" not in answer.headers
    assert answer.get_json()["ai_message"]["status"] in ("pending", "processing")
    assert 0.9 < answer.seconds < 3


@pytest.mark.slow
def test_waits_hold_no_database_connection(system: System, sign_in: Callable[..., Account]) -> None:
    people = [sign_in(via=system.client) for _ in range(3)]
    rooms = [person.open_room(title="waits") for person in people]
    race(40, lambda index: people[index % 3].call("GET", "/user/me").status_code)
    before = count_connections(system)
    answers: list[Any] = []

    def wait_long(index: int) -> None:
        answers.append(send(people[index % 3], rooms[index % 3], SLOW, Prefer="wait=6"))

    # More than both processes have threads for ordinary requests, and so database connections.
    waiting = [threading.Thread(target=wait_long, args=(index,)) for index in range(18)]
    for thread in waiting:
        thread.start()
    wait_for(lambda: system.rows("SELECT count(*) AS jobs FROM reply_jobs")[0].jobs == 18)
    time.sleep(0.5)
    during = [count_connections(system) for _ in range(5)]
    ordinary = [people[0].call("GET", "/user/me").seconds for _ in range(10)]
    open_waits = sum(thread.is_alive() for thread in waiting)
    for thread in waiting:
        thread.join()

    assert open_waits == 18
    assert all(seen["idle in transaction"] == 0 for seen in during)
    # The worker's own, for what it does with 18 replies at once, are among them.
    assert max(seen.total() for seen in during) <= before.total() + 8
    assert max(ordinary) < 1
    assert len(answers) == 18


def test_streams_past_their_bound_are_refused_and_ordinary_requests_go_on(system: System, someone: Account) -> None:
    room_id = someone.open_room(title="streams")
    reply_id = someone.prompt(room_id, SLOW)
    with ExitStack() as open_streams:
        streams: list[EventStream] = []
        # Both processes have a bound of their own, and share the connections as they come: until both are full.
        while len(streams) < 400 and sum(stream.status_code == 200 for stream in streams) < 40:
            streams.append(open_streams.enter_context(EventStream(someone, room_id, reply_id)))
        streams += [open_streams.enter_context(EventStream(someone, room_id, reply_id)) for _ in range(20)]
        statuses = Counter(stream.status_code for stream in streams)
        refused = [stream for stream in streams if stream.status_code == 503]
        reasons = {stream.read_error()["error"] for stream in refused}
        ordinary = [someone.call("GET", path) for path in ("/user/me", "/chatroom", "/health/live") * 10]

        # Waiting room is short: answered at once, with the reply pending.
        waits = [send(someone, room_id, SLOW, Prefer="wait=20") for _ in range(8)]

    assert statuses.keys() == {200, 503}
    assert statuses[200] == 40
    assert reasons == {"too_busy"}
    assert all(int(stream.headers["Retry-After"]) > 0 for stream in refused)
    assert {answer.status_code for answer in ordinary} == {200}
    assert max(answer.seconds for answer in ordinary) < 1
    assert {answer.status_code for answer in waits} == {201}
    assert {answer.get_json()["ai_message"]["status"] for answer in waits} <= {"pending", "processing"}
    assert max(answer.seconds for answer in waits) < 2


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stream", "wait"])
def test_clients_that_leave_make_room_for_others(system: System, sign_in: Callable[..., Account], how: str) -> None:
    people = [sign_in(via=system.client) for _ in range(5)]
    rooms = [person.open_room(title="left") for person in people]
    replies = [person.prompt(room, SLOW) for person, room in zip(people, rooms, strict=True)]
    with ExitStack() as connections:
        for index in range(45):
            person, room = people[index % 5], rooms[index % 5]
            if how == "stream":
                connections.enter_context(EventStream(person, room, replies[index % 5]))
            else:
                connections.enter_context(closing(wait_for_nothing(system, person, room)))
        time.sleep(1)
    # As often as each looks if its client is still there, and a little more.
    time.sleep(8)

    assert count_places(people[0], rooms[0], replies[0]) == 40


def wait_for_nothing(system: System, account: Account, room_id: str) -> http.client.HTTPConnection:
    """Send a prompt that is to be waited for, and do not look at the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", system.port)
    headers = {**account.headers, "Prefer": "wait=60", "Content-Type": "application/json"}
    connection.request("POST", f"/chatroom/{room_id}/message", json.dumps({"content": SLOW}), headers)
    return connection


def count_places(account: Account, room_id: str, reply_id: str) -> int:
    """Return how many more streams both web processes have room for."""
    with ExitStack() as all_of_them:
        opened = [all_of_them.enter_context(EventStream(account, room_id, reply_id)) for _ in range(100)]
        return sum(stream.status_code == 200 for stream in opened)
