"""What gunicorn makes of the environment; it is read in processes of its own, as it changes the one that reads it."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from chatapi.dev.embedded import free_port
from chatapi.dev.system import health
from config import ROOT
from tests.support import Services, wait_for

GUNICORN = Path(sys.executable).with_name("gunicorn")
READ = (
    "import json, runpy; conf = runpy.run_path('gunicorn.conf.py'); "
    "print(json.dumps({name: value for name, value in conf.items() if isinstance(value, (int, str))}))"
)


def read_conf(services: Services, descriptors: int | None = None, **changes: str) -> dict[str, Any]:
    """Return the settings, read where no more than so many files may be open."""

    def limit() -> None:
        if descriptors:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(descriptors, 256), descriptors))

    done = subprocess.run(
        [sys.executable, "-c", READ],
        env={**services.environ, **changes},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=limit,
    )
    settings: dict[str, Any] = json.loads(done.stdout)
    return settings


def test_threads_are_for_ordinary_requests_and_for_those_who_wait(services: Services) -> None:
    conf = read_conf(services, WEB_THREADS="7", MAX_OPEN_STREAMS="40", WEB_CONCURRENCY="3")

    assert (conf["workers"], conf["threads"]) == (3, 47)
    assert conf["worker_connections"] >= conf["threads"] + 1000


def test_connections_are_fewer_when_descriptors_are_few(services: Services) -> None:
    conf = read_conf(services, descriptors=1500, MAX_OPEN_STREAMS="512")

    assert conf["worker_connections"] + conf["threads"] < 1500


@pytest.mark.parametrize(("workers", "ends"), [("1", False), ("2", True)])
def test_worker_ends_by_itself_only_when_there_is_another(services: Services, workers: str, *, ends: bool) -> None:
    conf = read_conf(services, WEB_CONCURRENCY=workers)

    assert (conf["max_requests"] > 0) == ends
    assert (conf["max_requests_jitter"] > 0) == ends


def start(environ: Mapping[str, str], output: Path) -> subprocess.Popen[bytes]:
    """Start gunicorn as an operator does, who has set nothing but the environment."""
    with output.open("wb") as file:
        return subprocess.Popen([GUNICORN, "wsgi:app"], env=dict(environ), cwd=ROOT, stdout=file, stderr=file)


def test_gunicorn_logs_as_the_application_does_and_leaves_in_good_order(services: Services, tmp_path: Path) -> None:
    port, output = free_port(), tmp_path / "output"
    production = {
        "APP_ENV": "production",
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "WEB_CONCURRENCY": "1",
        "GEMINI_API_KEY": "a key of the tests",
        "OTP_DELIVERY": "webhook",
        "OTP_WEBHOOK_URL": "https://sms.example/send",
        "OTP_WEBHOOK_SECRET": "a secret of the tests, of some length",
        "STAND_INS": "",
    }
    gunicorn = start({**services.environ, **production}, output)
    try:
        wait_for(lambda: health(port), seconds=60)
        gunicorn.send_signal(signal.SIGTERM)
        assert gunicorn.wait(20) == 0
    finally:
        gunicorn.kill()

    lines = [json.loads(line) for line in output.read_text().splitlines()]
    events = {line["event"] for line in lines if line["logger"] == "gunicorn.error"}
    assert "Using worker: chatapi.web_worker.LobbyWorker" in events
    assert any(event.startswith("Worker ready") for event in events)
    assert {line["level"] for line in lines} <= {"info", "warning"}


def test_faults_of_the_environment_are_named_without_a_traceback(tmp_path: Path) -> None:
    gunicorn = start({"PATH": os.environ["PATH"], "HOME": str(tmp_path), "WEB_THREADS": "none"}, tmp_path / "output")

    assert gunicorn.wait(30) != 0
    text = (tmp_path / "output").read_text()
    assert "WEB_THREADS" in text
    assert "Traceback" not in text
