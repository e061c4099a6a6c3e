"""What a check finds, and running all checks at once within a bound."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from queue import Empty, Queue

LONGEST_SECONDS = 12.0
"""For all checks together: what has not answered by then is said to hang."""


@dataclass(frozen=True)
class Finding:
    """What was found of one thing: `state` is ok, warning, failed or skipped, `advice` what to do about it."""

    name: str
    state: str
    found: str
    advice: str | None = None

    def as_json(self) -> dict[str, str | None]:
        """Return it in values that JSON has."""
        return asdict(self)


def ok(name: str, found: str) -> Finding:
    """Return that all is well with `name`."""
    return Finding(name, "ok", found)


def warning(name: str, found: str, advice: str) -> Finding:
    """Return that `name` will do, but should not stay so."""
    return Finding(name, "warning", found, advice)


def failed(name: str, found: str, advice: str) -> Finding:
    """Return that `name` will not do."""
    return Finding(name, "failed", found, advice)


def skipped(name: str, because: str) -> Finding:
    """Return that `name` was not looked at."""
    return Finding(name, "skipped", because)


@dataclass(frozen=True)
class Check:
    """Work that yields findings one by one, under the name to blame when it does not end."""

    name: str
    work: Callable[[], Iterator[Finding]]


class _Run:
    """One check in a thread of its own, which is left behind when it hangs."""

    def __init__(self, check: Check) -> None:
        self.check = check
        self._found: Queue[Finding | None] = Queue()
        # Nobody waits for it at the end of the process.
        threading.Thread(target=self._work, name=f"doctor-{check.name}", daemon=True).start()

    def _work(self) -> None:
        try:
            for finding in self.check.work():
                self._found.put(finding)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a part, the others are told of
            kind = type(error).__name__
            self._found.put(failed(self.check.name, f"could not be checked ({kind})", "This should not happen."))
        self._found.put(None)

    def findings(self, deadline: float) -> Iterator[Finding]:
        """Yield what it finds until it ends or the time is over."""
        while True:
            try:
                finding = self._found.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                advice = "It takes connections and says nothing: is it overloaded, or a firewall between?"
                yield failed(self.check.name, "gave no answer in time", advice)
                return
            if finding is None:
                return
            yield finding


def run_checks(checks: Sequence[Check], seconds: float = LONGEST_SECONDS) -> list[Finding]:
    """Return what all `checks` find, in their order; they run at the same time, for so long at the most."""
    deadline = time.monotonic() + seconds
    runs = [_Run(check) for check in checks]
    return [finding for run in runs for finding in run.findings(deadline)]


def worst_state(findings: Sequence[Finding]) -> str:
    """Return what can be said of all together."""
    states = {finding.state for finding in findings}
    return "failed" if "failed" in states else "warning" if "warning" in states else "ok"
