"""PostgreSQL restarted, killed and frozen under load: a clear 503 meanwhile, and nothing half-made after."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support import Account, wait_for
from tests.system.freezing import children_of, postgres_frozen, threads_of
from tests.system.prompting import Prompting
from tests.system.support import HttpAnswer, System, sleep_until, wait_all_ended

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

SETTINGS = {"MAX_IN_FLIGHT_PER_USER": "1000"}
"""What piles up in a person's one room while PostgreSQL is away may be more than fifty."""

CLIENTS = 64
FREEZE_SECONDS = 24
REFUSED_WITHIN_SECONDS = 20


def stop_in_good_order(system: System) -> None:
    system.services.postgres_process.stop()


def kill_outright(system: System) -> None:
    os.kill(system.services.postgres_process.pid or 0, signal.SIGKILL)
    wait_for(lambda: not system.services.postgres_process.is_running())


@pytest.mark.parametrize("end", [stop_in_good_order, kill_outright])
def test_service_says_503_and_every_accepted_prompt_is_answered_when_postgresql_restarts_under_load(
    system: System, sign_in: Callable[..., Account], end: Callable[[System], None]
) -> None:
    people = [sign_in(via=system.client) for _ in range(8)]
    with Prompting(people, pause_seconds=0.05) as load:
        for _ in range(2):
            time.sleep(1.5)
            end(system)
            time.sleep(2)
            system.services.postgres_process.restart()
            assert system.services.postgres.wait_ready()
        time.sleep(2)
        count = len(load.answers)
        wait_for(lambda: len(load.answers) > count + 8)

    assert set(load.statuses()) == {201, 503}, load.statuses()
    refused = [answer for *_, answer in load.answers if answer.status_code == 503]
    assert {answer.get_json()["error"] for answer in refused} == {"service_unavailable"}
    assert all(int(answer.headers["Retry-After"]) > 0 for answer in refused)
    wait_all_ended(system, 120)
    replies = load.replies()
    assert {reply["status"] for reply in replies} == {"completed"}
    assert len({reply["reply_to"] for reply in replies}) == load.statuses()[201]
    # A commit whose answer was lost may count without a 201, and is whole all the same.
    used = sum(person.daily_usage() for person in people)
    stored = system.rows(
        "SELECT count(*) AS replies FROM messages WHERE reply_to IS NOT NULL AND user_id = ANY(%s::uuid[])",
        [person.id for person in people],
    )
    assert used == stored[0].replies >= load.statuses()[201]
    statuses = [answer.status_code for *_, answer in load.answers[-8:]]
    assert statuses == [201] * 8


class Crowd:
    """Clients who call all the time, each in a thread of its own, half of them with prompts."""

    def __init__(self, people: list[Account]) -> None:
        self._people = [(person, person.open_room(title="crowd")) for person in people]
        self._is_over = threading.Event()
        self.answers: list[tuple[float, HttpAnswer]] = []
        """Each with the time at which it came."""

    def __enter__(self) -> Crowd:
        self._pool = ThreadPoolExecutor(len(self._people))
        self._running = [self._pool.submit(self._call, number) for number in range(len(self._people))]
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_over.set()
        self._pool.shutdown()
        for each in self._running:
            each.result()

    def _call(self, number: int) -> None:
        person, room_id = self._people[number]
        while not self._is_over.wait(0.3):
            answer = person.call("GET", "/user/me") if number % 2 else person.send(room_id, "into the cold")
            self.answers.append((time.monotonic(), answer))

    def between(self, begin: float, end: float) -> list[HttpAnswer]:
        return [answer for at, answer in self.answers if begin < at < end]


def test_requests_are_refused_in_time_and_prompts_answered_after_when_postgresql_freezes_under_load(
    system: System, sign_in: Callable[..., Account]
) -> None:
    people = [sign_in(via=system.client) for _ in range(CLIENTS)]
    processes = {name: children_of(child.pid or 0) or [child.pid] for name, child in system.children.items()}
    said_before = {name: len(system.log_of(name)) for name in system.children}
    live_seconds, most_threads = [], 0
    with Crowd(people) as crowd:
        time.sleep(2)
        with postgres_frozen(system.services):
            frozen_at = time.monotonic()
            while time.monotonic() < frozen_at + FREEZE_SECONDS:
                answer = system.client.get("/health/live")
                assert answer.status_code == 200
                live_seconds.append(answer.seconds)
                most_threads = max(most_threads, *(threads_of(pid or 0) for pid in processes["web"]))
                time.sleep(0.1)
        thawed_at = time.monotonic()
        sleep_until(thawed_at + 8)

    during = crowd.between(frozen_at, thawed_at)
    # Some had done all they had to do with PostgreSQL when it froze.
    assert {answer.status_code for answer in during} <= {200, 201, 503}
    refused = [answer for answer in during if answer.status_code == 503]
    assert len(during) - len(refused) < CLIENTS
    assert {answer.get_json()["error"] for answer in refused} == {"service_unavailable"}
    assert all(int(answer.headers["Retry-After"]) > 0 for answer in refused)
    assert len(refused) >= CLIENTS
    assert max(answer.seconds for _, answer in crowd.answers) < REFUSED_WITHIN_SECONDS
    assert max(live_seconds) < 1
    assert most_threads < CLIENTS + 16
    # The pools mend themselves, and nobody had to be started again.
    assert Counter(answer.status_code for answer in crowd.between(thawed_at + 5, thawed_at + 8)).keys() == {200, 201}
    assert {name: children_of(child.pid or 0) or [child.pid] for name, child in system.children.items()} == processes

    accepted = [answer for _, answer in crowd.answers if answer.status_code == 201]
    wait_all_ended(system, 60)
    ended = system.rows("SELECT status, reply_to FROM messages WHERE reply_to IS NOT NULL")
    assert {reply.status for reply in ended} == {"completed"}
    assert len({reply.reply_to for reply in ended}) == len(ended) >= len(accepted)
    # A commit whose answer was lost may count without a 201, and is whole all the same.
    assert sum(person.daily_usage() for person in people) == len(ended)
    logs = "".join(system.log_of(name)[length:] for name, length in said_before.items())
    assert "Traceback" not in logs, logs[logs.index("Traceback") - 300 :][:4000]


def test_sweeper_and_worker_go_on_by_themselves_when_postgresql_thaws(system: System, someone: Account) -> None:
    room_id = someone.open_room(title="frozen")
    reply_id = someone.prompt(room_id, "[[fault=503 times=1 retry_after_ms=3000]] sleepy")
    wait_for(lambda: system.asked("sleepy"))
    with postgres_frozen(system.services):
        time.sleep(20)

    wait_for(lambda: someone.read(room_id, reply_id)["status"] == "completed", seconds=60)

    assert someone.daily_usage() == 1
    wait_all_ended(system, 1)
