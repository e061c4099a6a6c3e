"""Counting and timing requests, and the connections to PostgreSQL that they use."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING

from flask import Flask, Response, request
from flask_limiter import RequestLimit
from sqlalchemy import event
from sqlalchemy.pool import Pool

from chatapi import metrics
from chatapi.extensions import limiter

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

ARRIVED_AT = "chatapi.arrived_at"
SIGN_IN_LIMIT = "sign_in_rate_limited"
"""What the limits of sign-in are counted as: their refusals call themselves as those of the one budget do."""


class Clock:
    """WSGI middleware that notes when a request came in: before it waited for a place, as whoever sent it did."""

    def __init__(self, application: WSGIApplication) -> None:
        self._application = application

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if not metrics.is_started():
            metrics.started("web")
        environ[ARRIVED_AT] = time.perf_counter()
        return self._application(environ, start_response)


def init_metering(app: Flask) -> None:
    """Begin to count. To be called when all other middleware is there, and before others look at answers."""
    app.wsgi_app = Clock(app.wsgi_app)  # type: ignore[method-assign]
    app.after_request(_count)
    if not event.contains(Pool, "checkout", metrics.connection_taken):
        event.listen(Pool, "checkout", metrics.connection_taken)
        event.listen(Pool, "checkin", metrics.connection_returned)


def _count(response: Response) -> Response:
    """Count an answer as it begins: how long a stream goes on says nothing about us, but about its reply."""
    route = str(request.url_rule) if request.url_rule else "none"
    arrived_at = request.environ.get(ARRIVED_AT)
    seconds = None if arrived_at is None or _is_waiting() else time.perf_counter() - arrived_at
    metrics.answered(request.method, route, response.status_code, seconds)
    if response.status_code >= HTTPStatus.BAD_REQUEST:
        metrics.refused(_slug(response))
    return response


def _is_waiting() -> bool:
    """Return whether the client asked to be answered late."""
    return "wait" in request.headers.get("Prefer", "")


def _slug(response: Response) -> str | None:
    """Return what a refusal calls itself, as clients see it."""
    try:
        slug = json.loads(response.get_data())["error"] if response.is_json and not response.is_streamed else None
    except (ValueError, KeyError, TypeError):
        return None
    if slug == "rate_limited" and not _is_over_budget(limiter.current_limit):
        return SIGN_IN_LIMIT
    return slug if isinstance(slug, str) else None


def _is_over_budget(limit: RequestLimit | None) -> bool:
    return limit is not None and limit.breached
