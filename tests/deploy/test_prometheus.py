"""Rules, dashboard and the example of a configuration in a real Prometheus that scrapes the running system."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from chatapi.dev.embedded import free_port
from chatapi.dev.gemini_faults import Fault
from tests.deploy.support import PROMETHEUS, alerts, dashboard, panels, recorded, rules
from tests.support import Account, wait_for
from tests.system.support import METRICS_TOKEN, HttpClient, System, finish

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

MAY_BE_EMPTY = {
    "Alerts": "nothing is wrong with the system that is scraped",
}
"""Panels that need not show anything here, each with the reason."""

SCRAPE_SECONDS = 1


class Prometheus:
    """A Prometheus of the test's own, with our rules and our example of a configuration."""

    def __init__(self, folder: Path, targets: list[str]) -> None:
        self.port = free_port()
        shutil.copytree(PROMETHEUS / "rules", folder / "rules")
        (folder / "token").write_text(METRICS_TOKEN)
        config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
        config["global"].update(scrape_interval=f"{SCRAPE_SECONDS}s", scrape_timeout="1s", evaluation_interval="1s")
        (job,) = config["scrape_configs"]
        job["authorization"]["credentials_file"] = str(folder / "token")
        job["static_configs"] = [{"targets": targets}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        command = [
            "prometheus",
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]
        with (folder / "prometheus.log").open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def get(self, path: str, **parameters: Any) -> Any:
        answer = requests.get(f"http://127.0.0.1:{self.port}/api/v1/{path}", params=parameters, timeout=10)
        body = answer.json()
        assert body["status"] == "success", (parameters, body)
        return body["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return found

    def value(self, expression: str) -> float:
        (sample,) = self.query(expression)
        return float(sample["value"][1])

    def is_scraping(self, targets: int) -> bool:
        try:
            states = [target["health"] for target in self.get("targets")["activeTargets"]]
        except requests.RequestException:
            return False
        return states == ["up"] * targets

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=20)


@pytest.fixture
def prometheus(tmp_path: Path, system: System) -> Iterator[Callable[..., Prometheus]]:
    """Return what starts a Prometheus that scrapes these ports."""
    if shutil.which("prometheus") is None:
        if os.environ.get("PROMETHEUS_IS_NEEDED"):
            pytest.fail("prometheus is not installed")
        pytest.skip("prometheus is not installed; .ci/check-deploy does so")
    started: list[Prometheus] = []

    def start(*ports: int) -> Prometheus:
        started.append(Prometheus(tmp_path, [f"127.0.0.1:{port}" for port in ports]))
        wait_for(lambda: started[0].is_scraping(len(ports)), seconds=30)
        return started[0]

    yield start
    for each in started:
        each.stop()


def make_traffic(system: System, someone: Account) -> None:
    """Have one of everything that is counted, some seconds long, so that there are rates."""
    room_id = someone.open_room()
    for _ in range(4):
        reply_id = someone.prompt(room_id, "hello")
        path = f"/chatroom/{room_id}/message/{reply_id}/stream"
        system.client.get(path, headers=someone.headers)
        finish(someone, room_id, reply_id)
        someone.call("GET", "/chatroom")
        system.client.post("/webhook/stripe", json={})
        system.client.get("/no-such-thing")
        time.sleep(SCRAPE_SECONDS)


def in_test_terms(expression: str) -> str:
    """Return a panel's expression with its variables filled in."""
    return expression.replace("$job", "chatapi").replace("$instance", ".*").replace("$__rate_interval", "1m")


def is_critical(alert: dict[str, Any]) -> bool:
    return bool(alert["labels"]["severity"] == "critical")


def test_every_panel_and_every_alert_can_be_asked_for_and_every_panel_shows_something(
    system: System,
    someone: Account,
    prometheus: Callable[..., Prometheus],
) -> None:
    server = prometheus(system.port)
    make_traffic(system, someone)
    wait_for(lambda: server.query("chatapi_sweep_age_seconds and chatapi_billing_reconciled_timestamp_seconds"))
    wait_for(lambda: all(server.query(name) for name in recorded()), seconds=30)

    loaded = [rule for group in server.get("rules")["groups"] for rule in group["rules"]]
    assert sorted(rule["name"] for rule in loaded) == sorted(rule.get("alert") or rule["record"] for rule in rules())
    assert {rule["name"]: rule.get("lastError") for rule in loaded if rule["health"] != "ok"} == {}
    for alert in alerts().values():
        server.query(alert["expr"])
    empty = {
        panel["title"]
        for panel in panels()
        for target in panel["targets"]
        if not [sample for sample in server.query(in_test_terms(target["expr"])) if sample["value"][1] != "NaN"]
    }
    assert empty <= set(MAY_BE_EMPTY)
    for variable in dashboard()["templating"]["list"][1:]:
        name = variable["query"]["query"].rpartition(", ")[2].rstrip(")")
        assert server.get(f"label/{name}/values", **{"match[]": "chatapi_build_info"}), name
    wait_for(lambda: [each for each in server.get("alerts")["alerts"] if is_critical(each)] == [])


def test_two_hosts_on_one_database_are_added_up_where_processes_count_and_not_where_postgresql_does(
    system: System,
    someone: Account,
    prometheus: Callable[..., Prometheus],
    tmp_path: Path,
) -> None:
    port, web = free_port(), system["web"]
    env = web.env
    web.env = {**env, "PORT": str(port), "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "metrics-of-b")}
    with system.another("web"):
        web.env = env
        wait_for(lambda: _answers(port))
        server = prometheus(system.port, port)
        time.sleep(3 * SCRAPE_SECONDS)
        before = server.value("sum(chatapi_replies_accepted_total)")
        system.services.gemini.add_fault(Fault("hang"))
        room_id = someone.open_room()
        someone.prompt(room_id, "on one host")
        elsewhere = Account(someone.id, someone.mobile_number, someone.token, HttpClient(port))
        elsewhere.prompt(elsewhere.open_room(), "on the other")

        wait_for(lambda: server.value("sum(chatapi_replies_accepted_total)") == before + 2)
        wait_for(lambda: server.value("chatapi:reply_jobs:max") == 2)
        assert server.value("sum(chatapi_reply_jobs)") == 4
        assert server.value("sum(up)") == 2
        system.services.gemini.clear()


def _answers(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/health/live", timeout=2).ok
    except requests.RequestException:
        return False
