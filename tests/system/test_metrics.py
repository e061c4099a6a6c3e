"""The figures of web, worker and sweeper together, whichever process is asked for them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from chatapi.dev.embedded import free_port
from tests.support import Account, wait_for
from tests.system.support import METRICS_TOKEN, HttpClient, System, finished


def samples(client: HttpClient) -> Iterator[Sample]:
    answer = client.get("/metrics", headers={"Authorization": f"Bearer {METRICS_TOKEN}"})
    assert answer.status_code == 200, answer.text
    for family in text_string_to_metric_families(answer.text):
        yield from family.samples


def scrape(system: System) -> dict[str, float]:
    return {sample.name: sample.value for sample in samples(system.client) if not sample.labels}


def requests_to(client: HttpClient, route: str) -> float:
    found = (each for each in samples(client) if each.name == "chatapi_http_requests_total")
    return sum(sample.value for sample in found if sample.labels["route"] == route)


def processes(client: HttpClient) -> dict[str, float]:
    return {each.labels["kind"]: each.value for each in samples(client) if each.name == "chatapi_processes"}


def test_metrics_add_up_what_all_processes_count_and_outlive_them(system: System, someone: Account) -> None:
    room_id = someone.open_room()
    before = scrape(system)
    reply_ids = [someone.prompt(room_id, "hello") for _ in range(6)]
    wait_for(lambda: finished(someone, room_id, reply_ids))

    system.kill("worker")
    system["worker"].restart()

    # Several, for both of the processes that may answer.
    for found in [scrape(system) for _ in range(8)]:
        for name in (
            "chatapi_replies_accepted_total",
            "chatapi_replies_completed_total",
            "chatapi_reply_duration_seconds_count",
            "chatapi_reply_first_text_seconds_count",
        ):
            assert found[name] - before[name] == 6, name
        assert found["chatapi_database_up"] == 1
        assert found["chatapi_open_streams"] == 0


def test_requests_are_counted_over_both_web_processes_and_all_processes_are_seen(system: System) -> None:
    before = requests_to(system.client, "/health/live")
    for _ in range(40):
        system.client.get("/health/live")

    assert [requests_to(system.client, "/health/live") - before for _ in range(8)] == [40] * 8
    found = {"web": 2, "worker": 1, "chores": 1, "billing": 1, "sweeper": 1}
    wait_for(lambda: processes(system.client) == found)
    wait_for(lambda: scrape(system).get("chatapi_sweep_age_seconds", 99) < 25)


@pytest.mark.slow
def test_folder_that_gunicorn_makes_does_not_grow_with_restarts_and_goes_with_it(
    system: System, tmp_path: Path
) -> None:
    port, web = free_port(), system["web"]
    env, client = web.env, HttpClient(port)
    web.env = {**env, "PORT": str(port), "PROMETHEUS_MULTIPROC_DIR": "", "TMPDIR": str(tmp_path)}
    with system.another("web") as more:
        web.env = env
        wait_for(lambda: is_live(port))
        (folder,) = tmp_path.glob("chatapi-metrics-*")
        workers: set[str] = set()
        for _ in range(3):
            count = requests_to(client, "/health/live")
            workers |= alive(folder)
            os.kill(more.pid or 0, signal.SIGHUP)
            wait_for_others(folder, port, workers)
            assert requests_to(client, "/health/live") > count

        def is_tidy() -> bool:
            processes(client)
            return len(list(folder.glob("counter_*.db"))) <= 3

        wait_for(is_tidy)
        more.stop()

    assert list(tmp_path.glob("chatapi-metrics-*")) == []


def alive(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("alive_*")}


def wait_for_others(folder: Path, port: int, known: set[str]) -> None:
    """Wait until a web process has begun that is none of the known; it does with its first request."""
    wait_for(lambda: is_live(port) and alive(folder) - known)


def is_live(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/health/live", timeout=5).ok
    except requests.RequestException:
        return False
