"""One call to the model: a hard deadline for the whole of it, and an end from any thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self


class UpstreamCall:
    """A call that is about to be made, or under way; good for one call.

    An adapter enters it around the call, and tells it by `watch` what shuts the connection that the call runs on.
    After `seconds`, or when somebody cancels it, that is done, whatever the call waits for at that moment.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.is_cancelled = False
        self.is_expired = False
        self._lock = threading.Lock()
        self._shut: Callable[[], None] | None = None
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._timer.cancel()
        with self._lock:
            self._shut = None

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

    def cancel(self) -> None:
        """End the call from any thread, also before it has begun."""
        with self._lock:
            self.is_cancelled = True
            if self._shut is not None:
                self._shut()

    def _expire(self) -> None:
        with self._lock:
            self.is_expired = True
            if self._shut is not None:
                self._shut()
