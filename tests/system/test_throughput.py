"""What one worker process does with the default settings: replies in flight, and memory over thousands of them."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import pytest

from chatapi.dev.gemini_standin import Fault
from tests.support import Account, wait_for
from tests.system.support import System, members_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

# A room for each prompt. It is put into the database, as if Redis had been away while they were sent: what is measured
# is the worker, and sending thousands of prompts would take the machine's time from it.
_FILL = """
    WITH room AS (
        INSERT INTO chatrooms (id, user_id, title, seq, message_count)
        SELECT gen_random_uuid(), %(user)s, 'throughput', 2, 2 FROM generate_series(1, %(count)s)
        RETURNING id, user_id
    ), prompt AS (
        INSERT INTO messages (id, room_id, user_id, seq, message_type, content, status)
        SELECT gen_random_uuid(), id, user_id, 1, 'user', 'hello', 'completed' FROM room RETURNING id, room_id, user_id
    ), reply AS (
        INSERT INTO messages (id, room_id, user_id, seq, message_type, content, status, reply_to)
        SELECT gen_random_uuid(), room_id, user_id, 2, 'ai', '', 'pending', id FROM prompt
        RETURNING id, room_id, user_id
    )
    INSERT INTO reply_jobs (message_id, room_id, user_id, seq, ring_at)
    SELECT id, room_id, user_id, 2, now() FROM reply RETURNING message_id
"""


def fill(system: System, account: Account, count: int) -> None:
    """Have `count` prompts wait for replies."""
    assert len(system.rows(_FILL, {"user": account.id, "count": count})) == count


def count_completed(system: System, account: Account) -> int:
    found = system.rows(
        "SELECT count(*) AS found FROM messages WHERE user_id = %s AND reply_to IS NOT NULL AND status = 'completed'",
        account.id,
    )
    return int(found[0].found)


def count_in_flight(system: System) -> int:
    found = system.rows("SELECT count(*) AS found FROM reply_jobs WHERE lease_expires_at > clock_timestamp()")
    return int(found[0].found)


def resident_megabytes(system: System) -> float:
    """Return what all processes of the worker have in memory."""
    total = 0
    for pid in members_of(system["worker"].pid or 0):
        status = Path(f"/proc/{pid}/status").read_text()
        total += next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    return total / 1024


def test_worker_keeps_a_hundred_replies_in_flight(system: System, someone: Account) -> None:
    # Long enough at the model that what the machine does in a second is not what is measured: `bench/` does that.
    at_the_model = 4
    system.services.gemini.add_fault(Fault(latency_ms=at_the_model * 1000))
    fill(system, someone, 1000)
    wait_for(lambda: count_in_flight(system) >= 100, every=0.05, seconds=60)

    began, in_flight, asked = time.monotonic(), [], []
    while time.monotonic() < began + 3 * at_the_model:
        in_flight.append(count_in_flight(system))
        asked.append(sum(request.is_open for request in system.services.gemini.requests))
        time.sleep(0.2)

    assert statistics.median(in_flight) >= 100, in_flight
    # A lease alone may wait for something else.
    assert statistics.mean(asked) > 80, asked


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_of_the_worker_does_not_grow_with_the_replies_answered(system: System, someone: Account) -> None:
    system["worker"].restart()
    fill(system, someone, 500)
    wait_for(lambda: count_completed(system, someone) == 500, seconds=60)
    before = resident_megabytes(system)
    fill(system, someone, 2000)
    wait_for(lambda: count_completed(system, someone) == 2500, seconds=120)

    assert resident_megabytes(system) < before + 20


def test_model_is_not_stormed_when_it_comes_back(system: System, someone: Account) -> None:
    system.services.gemini.add_fault(Fault("503"))
    fill(system, someone, 160)

    def asked_within(seconds: float) -> list[int]:
        """Count the requests in each quarter of a second."""
        counts = []
        for _ in range(int(seconds * 4)):
            system.services.gemini.forget_requests()
            time.sleep(0.25)
            counts.append(len(system.services.gemini.requests))
        return counts

    asked_within(4)
    system.services.gemini.clear()
    after = asked_within(8)

    # All wait, each for a time of its own: within no second do nearly all of them come, as they do (155 of the 160)
    # where they wait equally long. In a shorter time no more can come than the worker begins.
    assert sum(after) > 100, after
    assert max(sum(after[begin : begin + 4]) for begin in range(len(after))) < 130, after
    wait_for(lambda: count_completed(system, someone) == 160)
