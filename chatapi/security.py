"""What guards the edge: body and request limits, and whose address a request is counted to."""

from __future__ import annotations

import time
from contextlib import suppress
from ipaddress import IPv6Address, ip_address, ip_network

from flask import Flask, Response, request
from flask_limiter import RateLimitExceeded

from chatapi.errors import RateLimitedError, answer
from chatapi.extensions import limiter

SEND_TIMEOUT_SECONDS = 30
"""For each piece of an answer: who reads more slowly than a few kilobytes a second is cut off."""

LIMITER_RETRY_AFTER = "X-Limiter-Retry-After"
"""Where Flask-Limiter is told to write its Retry-After, which it would put on every answer, also over a refusal's
own. It goes no further than `drop_limiter_retry_after`."""


def init_limits(app: Flask) -> None:
    """Begin to limit requests, and refuse those over the limit in our envelope."""
    app.after_request(drop_limiter_retry_after)  # Registered before the limiter's own, so it runs after that.
    limiter.init_app(app)
    app.register_error_handler(RateLimitExceeded, _answer_rate_limited)


def drop_limiter_retry_after(response: Response) -> Response:
    """Take the limiter's header off again."""
    response.headers.pop(LIMITER_RETRY_AFTER, None)
    return response


def _answer_rate_limited(_error: RateLimitExceeded) -> Response:
    limit = limiter.current_limit
    wait = int(limit.reset_at - time.time()) if limit is not None else 1
    return answer(RateLimitedError(retry_after=max(1, wait)))


def limit_send_time(response: Response) -> Response:
    """Keep a client that does not read from holding a thread: gunicorn itself waits for ever.

    Another server than gunicorn may have no such socket to give; then nothing happens.
    """
    connection = request.environ.get("gunicorn.socket")
    if connection is None:
        return response
    before = connection.gettimeout()
    connection.settimeout(SEND_TIMEOUT_SECONDS)

    def restore() -> None:
        with suppress(OSError):  # It may be closed by now.
            connection.settimeout(before)

    response.call_on_close(restore)
    return response


def client_network(address: str | None) -> str:
    """Return what stands for a client's address in limits: IPv4 as it is, IPv6 by its /64, which one client owns."""
    try:
        parsed = ip_address(address or "")
    except ValueError:
        return "unknown"
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ip_network((parsed, 64), strict=False))
    return str(parsed)
