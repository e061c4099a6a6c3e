"""How many requests a caller may make: one budget over all routes, counted in Redis.

Redis is never waited for: while it is away, each process counts by itself ([security.md](../docs/security.md)).
"""

from __future__ import annotations

import logging
import threading
import time
from functools import lru_cache
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any, cast

from flask import Flask, Response, current_app, g, request
from flask_limiter import RateLimitExceeded
from limits.storage import Storage

from chatapi.breaker import CircuitOpenError, RedisBreaker
from chatapi.errors import RateLimitedError, answer
from chatapi.extensions import REDIS_OPTIONS, limiter
from chatapi.redis_nodes import Bound, connect

KEY_PREFIX = "chatapi:limits:"

MOST_OWN_WINDOWS = 100_000
"""How many callers a process counts by itself, at some 200 bytes each."""

COUNT_SCRIPT = b"""
local count = redis.call('INCRBY', KEYS[1], ARGV[1])
local left = redis.call('PTTL', KEYS[1])
if left < 0 then
  redis.call('EXPIRE', KEYS[1], ARGV[2])
  left = ARGV[2] * 1000
end
return {count, left}
"""
"""One round trip for what Flask-Limiter's own storage takes three for, and no counter that lacks an end."""


class OwnWindows:
    """Counters of this process alone, each for a window of time that begins with its first count."""

    def __init__(self, most: int = MOST_OWN_WINDOWS) -> None:
        self._most = most
        self._windows: dict[str, tuple[int, float]] = {}
        self._lock = threading.Lock()

    def add(self, key: str, seconds: int, amount: int) -> tuple[int, float]:
        """Count, and return how much it is now and when (in seconds since 1970) it begins anew."""
        now = time.time()
        with self._lock:
            count, ends_at = self._windows.get(key, (0, now))
            if ends_at <= now:
                self._windows.pop(key, None)  # What is added comes last, so what ends next comes first.
                count, ends_at = 0, now + seconds
            self._windows[key] = window = count + amount, ends_at
            while len(self._windows) > self._most or next(iter(self._windows.values()))[1] <= now:
                del self._windows[next(iter(self._windows))]
        return window


class RequestCounts:
    """Counters in Redis, for all processes, and of this process while Redis is away. Threads may share one."""

    def __init__(self, url: str) -> None:
        self._nodes = connect(url, protocol=2, **REDIS_OPTIONS)
        self._script = Bound(self._nodes, KEY_PREFIX).register_script(COUNT_SCRIPT)
        self._breaker = RedisBreaker("limits")
        self._own = OwnWindows()

    def add(self, key: str, seconds: int, amount: int) -> tuple[int, float]:
        """Count, and return how much it is now and when (in seconds since 1970) it begins anew."""
        try:
            place = self._nodes.place_of(KEY_PREFIX + key)
            count, left = self._breaker.call(lambda: self._count(KEY_PREFIX + key, seconds, amount), place)
        except CircuitOpenError:
            return self._own.add(key, seconds, amount)
        return int(count), time.time() + int(left) / 1000

    def _count(self, key: str, seconds: int, amount: int) -> Any:
        return self._nodes.run(key, lambda client: self._script([key], [amount, seconds], client=client))


class CountedStorage(Storage):
    """What Flask-Limiter counts with: the application's counters, and for its headers what it has just counted.

    Its own fallback to memory would have the first requests after an outage wait for Redis several times each, keep as
    many counters as it is given addresses, and log a traceback for each thread that finds Redis away.
    """

    STORAGE_SCHEME = ["chatapi"]  # noqa: RUF012 - limits declares it so

    @property
    def base_exceptions(self) -> type[Exception]:
        """What it may raise: nothing that is looked for."""
        return CircuitOpenError

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Count a request in its window, and remember that for the answer's headers."""
        counts = cast("RequestCounts", current_app.extensions["request_counts"])
        g.counted, g.window_ends_at = counts.add(key, expiry, amount)
        return cast("int", g.counted)

    def get(self, key: str) -> int:  # noqa: ARG002 - there is one budget, so it is that one
        """Return how many requests there were in the window with this one: a later one does not change it."""
        return cast("int", g.get("counted", 0))

    def get_expiry(self, key: str) -> float:  # noqa: ARG002
        """Return when the window ends, in seconds since 1970."""
        return cast("float", g.get("window_ends_at", 0.0))

    def check(self) -> bool:
        """Say that counting goes on, with or without Redis."""
        return True

    def reset(self) -> int | None:
        """Leave the counters to their end."""
        return None

    def clear(self, key: str) -> None:
        """Leave the counter to its end."""


def init_limits(app: Flask) -> None:
    """Begin to limit requests, and refuse those over the limit in our envelope."""
    # The access log has every refusal; Flask-Limiter's own line would add the address.
    logging.getLogger("flask-limiter").setLevel(logging.WARNING)
    app.config.update(
        RATELIMIT_STORAGE_URI=f"{CountedStorage.STORAGE_SCHEME[0]}://",
        RATELIMIT_STRATEGY="fixed-window",
        RATELIMIT_REQUEST_IDENTIFIER=limited_endpoint,
    )
    app.extensions["request_counts"] = RequestCounts(app.config["RATE_LIMIT_REDIS_URL"])
    app.after_request(_show_budget)
    limiter.init_app(app)
    app.register_error_handler(RateLimitExceeded, _answer_rate_limited)


def limited_endpoint() -> str:
    """Return what Flask-Limiter looks at to see if the request is exempt.

    It would pass whatever matches no route, which costs like any other request, and our static files.
    """
    return "unlisted" if request.endpoint in (None, "static") else str(request.endpoint)


def _show_budget(response: Response) -> Response:
    """Say how much of the budget is left, and when it begins anew; Flask-Limiter's way takes longer than its counting.

    It would also put a `Retry-After` on every answer, over a refusal's own.
    """
    if "counted" in g:
        most = current_app.config["RATE_LIMIT_MAX_REQUESTS"]
        response.headers.add("X-RateLimit-Limit", str(most))
        response.headers.add("X-RateLimit-Remaining", str(max(0, most - g.counted)))
        response.headers.add("X-RateLimit-Reset", str(int(g.window_ends_at) + 1))
    return response


def _answer_rate_limited(_error: RateLimitExceeded) -> Response:
    wait = int(g.get("window_ends_at", 0.0) - time.time()) + 1
    return answer(RateLimitedError(retry_after=max(1, wait)))


@lru_cache(maxsize=10_000)
def client_network(address: str | None) -> str:
    """Return what stands for a client's address in limits: IPv4 as it is, IPv6 by its /64, which one client owns.

    Some proxies add the port. What is no address stands for itself, with all others that are none.
    """
    text = (address or "").strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        parsed = ip_address(text.partition("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ip_network((parsed, 64), strict=False))
    return str(parsed)
