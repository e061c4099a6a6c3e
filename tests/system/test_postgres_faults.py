"""PostgreSQL restarted and killed under load: a clear 503 meanwhile, and nothing half-made after."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest

from tests.support import Account, wait_for
from tests.system.support import System, wait_all_ended
from tests.system.test_redis_faults import Load

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


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
    with Load(people, pause_seconds=0.05) as load:
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
