"""One call to a provider: a hard deadline for the whole of it, and an end from any thread."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

_current = threading.local()
"""`_current.call` is the call that this thread makes, for the connection it is made on."""


class UpstreamCall:
    """A call that is about to be made, or under way; good for one call.

    An adapter enters it around the call, in the thread that makes it, and whatever connection the call runs on tells it
    by `watch` how that is shut. After `seconds`, or when somebody cancels it, that is done, whatever the call waits
    for at that moment.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.ends_at = math.inf
        self.is_cancelled = False
        self.is_expired = False
        self._lock = threading.Lock()
        self._shut: Callable[[], None] | None = None
        self._at_exit = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self.ends_at = time.monotonic() + self.seconds
        _current.call = self
        _watchdog.add(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        _watchdog.remove(self)
        _current.call = None
        self.unwatch()
        self._at_exit.close()

    @property
    def is_over(self) -> bool:
        """Whether the call was cancelled or has run out of time."""
        return self.is_cancelled or self.is_expired

    def watch(self, shut: Callable[[], None]) -> None:
        """Note what ends the call; if it is over already, end it now."""
        with self._lock:
            self._shut = shut
            if self.is_over:
                shut()

    def unwatch(self) -> None:
        """Forget what was noted, before the connection serves another call or is no more."""
        with self._lock:
            self._shut = None

    def at_exit(self, close: Callable[[], object]) -> None:
        """Have `close` run in the calling thread when the call is left, however that happens."""
        self._at_exit.callback(close)

    def cancel(self) -> None:
        """End the call from any thread, also before it has begun."""
        with self._lock:
            self.is_cancelled = True
            if self._shut is not None:
                self._shut()

    def expire(self) -> None:
        """End the call because its time is up."""
        with self._lock:
            self.is_expired = True
            if self._shut is not None:
                self._shut()


def current_call() -> UpstreamCall:
    """Return the call that this thread is making."""
    call: UpstreamCall | None = getattr(_current, "call", None)
    if call is None:
        raise RuntimeError("An upstream is called within an UpstreamCall only")
    return call


class _Watchdog:
    """Ends calls at their deadlines, by one thread for the whole process: a timer each would double its threads."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew, as in a forked child, which has none of its parent's threads."""
        self._changed = threading.Condition()
        self._calls: set[UpstreamCall] = set()
        self._wakes_at = math.inf
        self._thread: threading.Thread | None = None

    def add(self, call: UpstreamCall) -> None:
        with self._changed:
            self._calls.add(call)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="upstream-deadlines", daemon=True)
                self._thread.start()
            elif call.ends_at < self._wakes_at:
                self._changed.notify()

    def remove(self, call: UpstreamCall) -> None:
        with self._changed:
            self._calls.discard(call)

    def _run(self) -> None:
        while True:
            # Outside the lock: a call that is being shut may at this moment want to be removed.
            for call in self._wait_for_late_calls():
                call.expire()

    def _wait_for_late_calls(self) -> list[UpstreamCall]:
        with self._changed:
            now = time.monotonic()
            late = [call for call in self._calls if call.ends_at <= now]
            self._calls.difference_update(late)
            self._wakes_at = min((call.ends_at for call in self._calls), default=math.inf)
            if not late:
                self._changed.wait(None if self._wakes_at == math.inf else self._wakes_at - now)
            return late


_watchdog = _Watchdog()
os.register_at_fork(after_in_child=_watchdog.reset)
