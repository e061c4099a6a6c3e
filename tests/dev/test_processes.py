"""Children and their supervisor, with real processes and real signals."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chatapi.dev.processes import Child, StartError, Supervisor, describe_status, stop_all, wait_until

SLEEPER = "import time; print('up', flush=True); time.sleep(600)"
PARENT = (
    "import subprocess, sys, time;"
    "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
    "print(p.pid, flush=True); time.sleep(600)"
)
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
)


@pytest.fixture
def make_child(tmp_path: Path) -> Iterator[Callable[..., Child]]:
    made: list[Child] = []

    def make(program: str, name: str = "child", **options: object) -> Child:
        child = Child(name, [sys.executable, "-c", program], log=tmp_path / f"{name}.log", **options)  # type: ignore[arg-type]
        made.append(child)
        return child

    yield make
    for child in made:
        child.kill()


def says(child: Child) -> str:
    """Return the first line the child prints."""
    assert child.log
    log = child.log
    assert wait_until(lambda: log.exists() and b"\n" in log.read_bytes(), 10)
    return log.read_text().splitlines()[0]


def is_alive(pid: int) -> bool:
    """Return whether a process runs. A zombie whose new parent does not reap it does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_child_leads_a_session_of_its_own(make_child: Callable[..., Child]) -> None:
    child = make_child("import os; print(os.getsid(0), os.getpgid(0), os.getpid(), flush=True)")
    child.start()
    assert says(child) == f"{child.pid} {child.pid} {child.pid}"


def test_stop_ends_the_leader_with_its_signal(make_child: Callable[..., Child]) -> None:
    child = make_child(SLEEPER, stop_signal=signal.SIGTERM)
    child.start()
    says(child)
    child.stop()
    assert child.poll() == -signal.SIGTERM


def test_stop_leaves_no_grandchild(make_child: Callable[..., Child]) -> None:
    child = make_child(PARENT)
    child.start()
    grandchild = int(says(child))
    assert is_alive(grandchild)
    child.stop()
    assert wait_until(lambda: not is_alive(grandchild), 5)


def test_stop_kills_a_child_that_ignores_its_signal(make_child: Callable[..., Child]) -> None:
    child = make_child(STUBBORN, stop_timeout=0.3)
    child.start()
    says(child)
    child.stop()
    assert child.poll() == -signal.SIGKILL


def test_stop_all_waits_for_all_at_the_same_time(make_child: Callable[..., Child]) -> None:
    children = [make_child(STUBBORN, name=f"child-{number}", stop_timeout=0.5) for number in range(4)]
    for child in children:
        child.start()
    for child in children:
        says(child)
    begun = time.monotonic()
    stop_all(children)
    assert time.monotonic() - begun < 1.5
    assert [child.poll() for child in children] == [-signal.SIGKILL] * 4


def test_start_refuses_a_running_child(make_child: Callable[..., Child]) -> None:
    child = make_child(SLEEPER)
    child.start()
    with pytest.raises(RuntimeError, match="running already"):
        child.start()


def test_restart_gives_a_new_process_and_ends_what_a_dead_leader_left(make_child: Callable[..., Child]) -> None:
    child = make_child(PARENT)
    child.start()
    orphan, first = int(says(child)), child.pid
    assert first
    os.kill(first, signal.SIGKILL)
    assert wait_until(lambda: not child.is_running(), 5)
    assert is_alive(orphan)
    child.restart()
    assert child.pid != first
    assert wait_until(lambda: not is_alive(orphan), 5)


def test_missing_command_ends_with_a_sentence(tmp_path: Path) -> None:
    child = Child("missing", ["/nowhere/at-all"], log=tmp_path / "log")
    child.start()
    assert wait_until(lambda: not child.is_running(), 5)
    assert child.poll() == 1
    assert (tmp_path / "log").read_text() == "/nowhere/at-all: No such file or directory\n"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
def test_child_ends_when_its_parent_is_killed(make_child: Callable[..., Child]) -> None:
    program = (
        "import sys, time; from chatapi.dev.processes import Child;"
        f"child = Child('inner', [sys.executable, '-c', {SLEEPER!r}]); child.start();"
        "print(child.pid, flush=True); time.sleep(600)"
    )
    outer = make_child(program)
    outer.start()
    inner = int(says(outer))
    assert outer.pid
    os.kill(outer.pid, signal.SIGKILL)  # The inner one is in a group of its own, out of reach of `kill`.
    assert wait_until(lambda: not is_alive(inner), 5)


def test_supervisor_restarts_a_dead_child_and_says_so(make_child: Callable[..., Child]) -> None:
    said: list[str] = []
    supervisor = Supervisor(said.append)
    child = make_child(SLEEPER, name="worker")
    supervisor.start(child)
    first = child.pid
    assert first
    os.kill(first, signal.SIGKILL)
    assert wait_until(lambda: child.pid != first and child.is_running(), 5, supervisor.watch)
    supervisor.stop()
    assert said == ["worker ended (killed by SIGKILL); starting it again in 0.5 s."]


def test_supervisor_waits_longer_each_time_for_a_child_that_keeps_dying(
    make_child: Callable[..., Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatapi.dev.processes.FIRST_DELAY_SECONDS", 0.01)
    monkeypatch.setattr("chatapi.dev.processes.LONGEST_DELAY_SECONDS", 0.04)
    said: list[str] = []
    supervisor = Supervisor(said.append)
    child = make_child("raise SystemExit(3)", name="web")
    supervisor.start(child)
    assert wait_until(lambda: len(said) >= 5, 20, supervisor.watch)
    assert supervisor.failing(5) == (child, 3)
    supervisor.stop()
    delays = ["0.01", "0.02", "0.04", "0.04", "0.04"]
    assert said == [f"web ended (exit status 3); starting it again in {delay} s." for delay in delays]


def test_supervisor_tries_again_when_a_start_is_refused(make_child: Callable[..., Child]) -> None:
    answers = [None, StartError("not yet"), None]

    def before_start() -> None:
        if answer := answers.pop(0):
            raise answer

    said: list[str] = []
    supervisor = Supervisor(said.append)
    child = make_child(SLEEPER, name="PostgreSQL", before_start=before_start)
    supervisor.start(child)
    child.kill()
    assert wait_until(lambda: not answers and child.is_running(), 10, supervisor.watch)
    supervisor.stop()
    assert said == [
        "PostgreSQL ended (killed by SIGKILL); starting it again in 0.5 s.",
        "PostgreSQL cannot be started (not yet); starting it again in 1 s.",
    ]


def test_supervisor_stops_the_last_started_first(make_child: Callable[..., Child], tmp_path: Path) -> None:
    order = tmp_path / "order"
    program = (
        "import signal, sys, time;"
        f"signal.signal(signal.SIGTERM, lambda *_: (open({str(order)!r}, 'a').write('%s '), sys.exit(0)));"
        "print('up', flush=True); time.sleep(600)"
    )
    supervisor = Supervisor([].append)
    for name in ("postgres", "valkey", "web"):
        child = make_child(program % name, name=name)
        supervisor.start(child)
        says(child)
    supervisor.stop()
    assert order.read_text().split() == ["web", "valkey", "postgres"]


def test_steady_seconds_is_zero_while_a_child_is_down(make_child: Callable[..., Child]) -> None:
    supervisor = Supervisor([].append)
    child = make_child(SLEEPER)
    supervisor.start(child)
    assert supervisor.steady_seconds() > 0
    child.kill()
    assert supervisor.steady_seconds() == 0
    supervisor.stop()


@pytest.mark.parametrize(
    ("status", "words"),
    [(0, "exit status 0"), (7, "exit status 7"), (-9, "killed by SIGKILL"), (-99, "killed by signal 99")],
)
def test_describe_status_names_signals(status: int, words: str) -> None:
    assert describe_status(status) == words
