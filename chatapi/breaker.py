"""A circuit breaker: what just failed is not asked again for a while."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

import structlog
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from chatapi import metrics
from chatapi.redis_slots import OF_ONE_SLOT

T = TypeVar("T")

SILENCE_SECONDS = 1.0
"""For how long a server that one use found away is left alone by all: a request has several uses, and pays for one."""

log = structlog.get_logger(__name__)

_silent_until: dict[str, float] = {}
"""By where a server is, for the breakers of this process."""


class CircuitOpenError(Exception):
    """The call was skipped, because an earlier one failed a moment ago."""


class RedisBreaker:
    """Guards one use of Redis: after a failure, calls are skipped for `rest_seconds`.

    A request therefore pays for a dead or hung Redis once in a while and not at every use. Each server that a use asks
    has a rest of its own, by its `place`. Uses of the same one learn of each other when it is away, for
    `SILENCE_SECONDS`. Threads may share a breaker.
    """

    def __init__(self, name: str, rest_seconds: float = 5.0) -> None:
        self._name = name
        self._rest_seconds = rest_seconds
        self._closed_again_at: dict[str, float] = {}
        self._said_until: dict[str, float] = {}
        self._lock = threading.Lock()

    def call(self, work: Callable[[], T], place: str) -> T:
        """Return what `work` returns, which asks the server at `place`.

        Raises `CircuitOpenError` when it was not tried, or was tried and Redis failed.
        """
        if self.is_open(place):
            raise CircuitOpenError(self._name)
        try:
            return work()
        except OF_ONE_SLOT as error:  # No reason to leave the node alone.
            self.say(error, place)
            raise CircuitOpenError(self._name) from error
        except (RedisError, OSError) as error:
            self._open(error, place)
            raise CircuitOpenError(self._name) from error

    def is_open(self, place: str) -> bool:
        """Return whether calls to `place` are skipped now."""
        return time.monotonic() < max(self._closed_again_at.get(place, 0.0), _silent_until.get(place, 0.0))

    def _open(self, error: Exception, place: str) -> None:
        """Rest from now on."""
        now = time.monotonic()
        if isinstance(error, RedisConnectionError | RedisTimeoutError | OSError):
            _silent_until[place] = now + SILENCE_SECONDS
        self._closed_again_at[place] = now + self._rest_seconds
        self.say(error, place)

    def say(self, error: Exception, place: str) -> None:
        """Log and count that a use has failed, once in as long as a rest: of many threads only the first does.

        `call` says so of what `work` raises.
        """
        now = time.monotonic()
        with self._lock:
            is_said = now < self._said_until.get(place, 0.0)
            if not is_said:
                self._said_until[place] = now + self._rest_seconds
        if not is_said:
            log.warning("redis_unavailable", use=self._name, server=place, reason=type(error).__name__)
            metrics.redis_failed(self._name)
