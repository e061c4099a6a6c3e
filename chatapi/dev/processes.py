"""Child processes: each in a session of its own, watched, started again when it dies, stopped in order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import config

EXEC_SCRIPT = Path(__file__).with_name("_exec.py")
FIRST_DELAY_SECONDS = 0.5
LONGEST_DELAY_SECONDS = 10.0
STEADY_SECONDS = 30.0
"""A child that ran for so long before it died is tried again with the first delay."""


class StartError(Exception):
    """Something cannot be started. The message is one sentence that says what it is and what to do."""


class Child:
    """A process that is the leader of a session and group of its own, so that the terminal's Ctrl-C passes it by.

    `user` is a (uid, gid) to run as. What it prints is added to `log`, or goes where this process's own output goes.
    `before_start` runs before each start and may raise `StartError`.

    On Linux the child gets its stop signal when the *thread* that started it ends: start it from the main thread.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path = config.ROOT,
        user: tuple[int, int] | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        stop_timeout: float = 10.0,
        log: Path | None = None,
        before_start: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.argv = [str(word) for word in argv]
        self.env = env
        self.cwd = cwd
        self.user = user
        self.stop_signal = stop_signal
        self.stop_timeout = stop_timeout
        self.log = log
        self.before_start = before_start
        self._process: subprocess.Popen[bytes] | None = None
        self._group: int | None = None

    @property
    def pid(self) -> int | None:
        """The process id of the leader, also after its end; None before the first start."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the process, which must not be running. It may take a while to be of use."""
        if self.is_running():
            raise RuntimeError(f"{self.name} is running already")
        self.kill()
        self.before_start()
        user = f"{self.user[0]}:{self.user[1]}" if self.user else "-"
        wrapper = [sys.executable, "-I", "-S", str(EXEC_SCRIPT), str(os.getpid()), str(int(self.stop_signal)), user]
        output = self.log.open("ab") if self.log else None
        try:
            self._process = subprocess.Popen(  # noqa: S603 - the command is written in this package
                [*wrapper, *self.argv],
                env=self.env,
                cwd=self.cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if output else None,
                start_new_session=True,
            )
        finally:
            if output:
                output.close()
        self._group = self._process.pid

    def poll(self) -> int | None:
        """Return the exit status of a process that has ended (negative: the signal that killed it), else None."""
        return self._process.poll() if self._process else None

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def ask_to_stop(self) -> None:
        """Send the stop signal to the leader alone: a dramatiq whose whole group gets it drops its work."""
        if self._process:
            self._process.send_signal(self.stop_signal)

    def kill(self) -> None:
        """Kill what is left of the whole group at once, also what a dead leader has left behind."""
        if self._process is None or self._group is None:
            return
        with suppress(ProcessLookupError, PermissionError):  # macOS refuses to signal a group of zombies.
            os.killpg(self._group, signal.SIGKILL)
        self._process.wait()
        self._group = None  # Once empty, its number may become another process's.

    def stop(self) -> None:
        """End the process in good order, or by force after `stop_timeout` seconds."""
        stop_all([self])

    def restart(self) -> None:
        self.stop()
        self.start()


def stop_all(children: Sequence[Child], idle: Callable[[], None] = lambda: None) -> None:
    """Ask all of `children` to stop, wait for them side by side, and kill what remains; `idle` runs meanwhile."""
    for child in children:
        child.ask_to_stop()
    asked = time.monotonic()
    while any(child.is_running() and time.monotonic() < asked + child.stop_timeout for child in children):
        idle()
        time.sleep(0.02)
    for child in children:
        child.kill()


def wait_until(check: Callable[[], bool], timeout: float, idle: Callable[[], None] = lambda: None) -> bool:
    """Return True as soon as `check` does, False after `timeout` seconds; `idle` runs between, and may raise."""
    deadline = time.monotonic() + timeout
    while not check():
        if time.monotonic() > deadline:
            return False
        idle()
        time.sleep(0.05)
    return True


def describe_status(status: int) -> str:
    """Say in words how a process has ended."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


@dataclass
class _Watched:
    child: Child
    started_at: float = 0.0
    failures: int = 0
    last_status: int | None = None
    restart_at: float | None = None


class Supervisor:
    """Starts children, starts again those that die, and stops them in the reverse order of their start.

    It has no thread: somebody calls `watch` a few times a second. `say` gets one line for each death.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._groups: list[list[_Watched]] = []

    def start(self, *children: Child) -> None:
        """Start `children`, which will also be stopped together."""
        group: list[_Watched] = []
        self._groups.append(group)
        for child in children:
            child.start()
            group.append(_Watched(child, started_at=time.monotonic()))

    def watch(self) -> None:
        """Note who has died, and start those again whose delay has passed."""
        for watched in self._all():
            if watched.restart_at is None:
                self._note_death(watched)
            elif time.monotonic() >= watched.restart_at:
                self._start_again(watched)

    def failing(self, times: int) -> tuple[Child, int | None] | None:
        """Return a child that has died `times` in a row soon after its start, and its last exit status."""
        return next(
            ((watched.child, watched.last_status) for watched in self._all() if watched.failures >= times), None
        )

    def steady_seconds(self) -> float:
        """Return for how long all children have been running, 0 if one is not."""
        if any(not watched.child.is_running() for watched in self._all()):
            return 0.0
        return time.monotonic() - max((watched.started_at for watched in self._all()), default=0.0)

    def stop(self, idle: Callable[[], None] = lambda: None) -> None:
        """Stop everything, the last started group first."""
        while self._groups:
            stop_all([watched.child for watched in self._groups.pop()], idle)

    def _all(self) -> Iterable[_Watched]:
        return (watched for group in self._groups for watched in group)

    def _note_death(self, watched: _Watched) -> None:
        status = watched.child.poll()
        if status is None:
            return
        watched.last_status = status
        watched.child.kill()
        self._retry_later(watched, f"{watched.child.name} ended ({describe_status(status)})")

    def _start_again(self, watched: _Watched) -> None:
        watched.restart_at = None
        watched.started_at = time.monotonic()
        try:
            watched.child.start()
        except (StartError, OSError) as error:
            self._retry_later(watched, f"{watched.child.name} cannot be started ({error})")

    def _retry_later(self, watched: _Watched, what: str) -> None:
        is_first = time.monotonic() - watched.started_at > STEADY_SECONDS
        watched.failures = 1 if is_first else watched.failures + 1
        # The exponent is bounded too: a float has room for 2**1023 only.
        delay = min(FIRST_DELAY_SECONDS * 2 ** min(watched.failures - 1, 10), LONGEST_DELAY_SECONDS)
        watched.restart_at = time.monotonic() + delay
        self._say(f"{what}; starting it again in {delay:g} s.")
