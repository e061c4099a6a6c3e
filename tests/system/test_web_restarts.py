"""The web restarted under load in every way there is: nobody's request fails, and streams go on where they were."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from chatapi.dev.embedded import free_port
from chatapi.dev.processes import Child
from chatapi.dev.system import health
from tests.support import Account, wait_for
from tests.system.events import Reader
from tests.system.load import Load
from tests.system.proxy import Proxy
from tests.system.support import HttpClient, System, finish

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

SETTINGS = {"GEMINI_TIMEOUT_SECONDS": "800", "REPLY_ATTEMPT_SECONDS": "900"}
"""So that one attempt lasts as long as a test, however slow the machine: another would have readers begin anew."""

TIMES = 10
VERY_LONG = "[[words=20000 chunk_ms=100]]"


def workers_of(web: Child) -> set[int]:
    """Return the worker processes of a gunicorn."""
    return {int(pid) for pid in Path(f"/proc/{web.pid}/task/{web.pid}/children").read_text().split()}


def ready(web: Child) -> set[int]:
    """Return the workers that have begun to serve."""
    assert web.log is not None
    return {int(pid) for pid in re.findall(r"Worker ready \(pid: (\d+)\)", web.log.read_text())}


def reload(web: Child) -> None:
    """Have all workers replaced, and wait for it."""
    before = workers_of(web)
    os.kill(web.pid or 0, signal.SIGHUP)
    wait_for(lambda: len(workers_of(web) & ready(web) - before) == 2 and not workers_of(web) & before, seconds=60)


@contextmanager
def another_web(system: System, *options: str) -> Iterator[tuple[Child, int]]:
    """Run one more instance within the block; return it with its port."""
    like, port = system["web"], free_port()
    assert like.env is not None
    web = Child(
        "another web", [*like.argv, *options], env={**like.env, "PORT": str(port)}, log=system.logs / "web2.log"
    )
    web.start()
    try:
        wait_for(lambda: health(port))
        yield web, port
    finally:
        web.kill()


@contextmanager
def used(account: Account, port: int) -> Iterator[Load]:
    """Have people call, wait and follow a reply within the block; hold that all goes well for each of them."""
    here = Account(account.id, account.mobile_number, account.token, HttpClient(port))  # type: ignore[arg-type]
    load, room_id = Load(port), account.open_room(title="followed")
    reply_id = account.prompt(room_id, VERY_LONG)
    readers = [Reader(here, room_id, reply_id) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        reading = [pool.submit(reader.read_to_end, 300) for reader in readers]
        try:
            wait_for(lambda: all(reader.text for reader in readers))
            with load.running(account=here, room_id=account.open_room(title="waits")):
                yield load
        finally:
            account.call("POST", f"/chatroom/{room_id}/message/{reply_id}/stop")
        for each in reading:
            each.result()
    assert load.failures == []
    assert {reader.text for reader in readers} == {finish(account, room_id, reply_id)["content"]}
    assert {reader.resets for reader in readers} == {0}
    assert min(reader.connections for reader in readers) > 1
    assert load.statuses.keys() == {200, 201}
    assert load.waited.keys() <= {"pending", "processing", "stopped"}


def test_no_request_fails_when_web_is_reloaded_ten_times_under_load(system: System, someone: Account) -> None:
    with used(someone, system.port) as load:
        for _ in range(TIMES):
            reload(system["web"])
            time.sleep(0.5)

    assert load.statuses.total() > 10 * TIMES


def test_no_request_fails_when_two_instances_are_restarted_in_turns_under_load(
    system: System, someone: Account
) -> None:
    with another_web(system) as (other, other_port):
        instances = [(system["web"], system.port), (other, other_port)]
        with closing(Proxy([system.port, other_port])) as proxy, used(someone, proxy.port) as load:
            for number in range(TIMES):
                web, port = instances[number % 2]
                web.ask_to_stop()
                wait_for(lambda web=web: not web.is_running(), seconds=20)  # type: ignore[misc]
                web.start()
                wait_for(lambda port=port: health(port), seconds=60)  # type: ignore[misc]

    assert load.statuses.total() > 10 * TIMES


def test_no_request_fails_when_workers_end_by_themselves_under_load(system: System, someone: Account) -> None:
    options = ("--max-requests", "150", "--max-requests-jitter", "50")
    with another_web(system, *options) as (web, port), used(someone, port) as load:
        at_first = workers_of(web)
        wait_for(lambda: len(ready(web)) >= 6 and not workers_of(web) & at_first, seconds=120)

    assert load.statuses.total() > 300
