"""A circuit breaker: what just failed is not asked again for a while."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import structlog
from redis.exceptions import RedisError

T = TypeVar("T")

log = structlog.get_logger(__name__)


class CircuitOpenError(Exception):
    """The call was skipped, because an earlier one failed a moment ago."""


class RedisBreaker:
    """Guards calls to one Redis: after a failure, calls are skipped for `rest_seconds`.

    A request therefore pays for a dead or hung Redis once in a while and not at every use. Threads may share
    one; it takes no lock, since a call too many does no harm.
    """

    def __init__(self, name: str, rest_seconds: float = 5.0) -> None:
        self._name = name
        self._rest_seconds = rest_seconds
        self._closed_again_at = 0.0

    def call(self, work: Callable[[], T]) -> T:
        """Return what `work` returns.

        Raises `CircuitOpenError` when it was not tried, or was tried and Redis failed.
        """
        if time.monotonic() < self._closed_again_at:
            raise CircuitOpenError(self._name)
        try:
            return work()
        except (RedisError, OSError) as error:
            self._closed_again_at = time.monotonic() + self._rest_seconds
            log.warning("redis_unavailable", use=self._name, reason=type(error).__name__)
            raise CircuitOpenError(self._name) from error
