"""The access log: request ids, and a line for each request once its answer is known."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import structlog
from flask import Response, g, request

from chatapi.ids import uuid7
from chatapi.request_ids import REQUEST_ID_HEADER

_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)

_PROBES = frozenset({"/health/live", "/health/ready", "/metrics"})
"""Asked for by machines every few seconds: logged at debug only, unless they fail."""

log = structlog.get_logger(__name__)


def begin_request() -> None:
    """Note when the request came in and what it is called: the client's own name for it, if it is a sane one."""
    given = request.headers.get(REQUEST_ID_HEADER, "")
    g.request_id = given if _SANE_REQUEST_ID.fullmatch(given) else str(uuid7())
    g.began_at = time.perf_counter()
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(request_id=g.request_id)


def end_request(response: Response) -> Response:
    """Name the request in its answer, and log it by its route: paths would hold ids, queries whatever was typed.

    The user is whom a good token names. Addresses are personal data and not needed to run the service: whoever
    needs them has them in the proxy's log, by the same request id.
    """
    if "request_id" not in g:  # Refused before anything could be noted.
        begin_request()
    response.headers[REQUEST_ID_HEADER] = g.request_id
    route = request.url_rule.rule if request.url_rule else None
    claims = g.get("claims")
    is_dull = route in _PROBES and response.status_code < 400
    (log.debug if is_dull else log.info)(
        "request",
        method=request.method,
        route=route,
        status=response.status_code,
        milliseconds=_milliseconds_since(g.began_at),
        user_id=str(claims.user_id) if claims else None,
    )
    if response.is_streamed and not response.direct_passthrough:
        response.call_on_close(_end_of_stream(route, g.request_id, g.began_at))
    # What the server logs next in this thread is of another request.
    response.call_on_close(structlog.contextvars.clear_contextvars)
    return response


def _end_of_stream(route: str | None, request_id: str, began_at: float) -> Callable[[], None]:
    """Return what logs how long a streamed answer took as a whole; whatever thread closes it."""

    def ended() -> None:
        log.info("stream_ended", route=route, request_id=request_id, milliseconds=_milliseconds_since(began_at))

    return ended


def _milliseconds_since(began_at: float) -> float:
    return round((time.perf_counter() - began_at) * 1000, 1)
