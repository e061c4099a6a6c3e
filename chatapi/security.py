"""What guards the edge: headers, web sites of other origins, the names we are called by, and proxies in front of us."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import structlog
from flask import Flask, Response, current_app, request
from flask_cors import CORS
from werkzeug.middleware.proxy_fix import ProxyFix

from chatapi.errors import BadRequestError
from chatapi.headers import DOCS_POLICY, SECURITY_HEADERS

if TYPE_CHECKING:
    from types import TracebackType

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    ExceptionInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None] | None

SEND_TIMEOUT_SECONDS = 30
"""For each piece of an answer: who reads more slowly than a few kilobytes a second is cut off."""

CALLED_BY_ADDRESS = frozenset({"/health/live", "/health/ready", "/metrics"})
"""Probes and scrapers know a process by its address, and not by the name of the service."""

PUBLIC_FILES = frozenset({"static", "swagger_ui"})
"""Endpoints whose answers are the same for all, and may be kept."""

NOT_FOR_BROWSERS = frozenset({"/webhook/stripe", "/metrics"})

CORS_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
CORS_REQUEST_HEADERS = (
    "Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID", "Prefer", "X-Request-ID",
)  # fmt: skip
CORS_ANSWER_HEADERS = (
    "Idempotent-Replayed", "Location", "Preference-Applied", "Retry-After", "WWW-Authenticate", "X-RateLimit-Limit",
    "X-RateLimit-Remaining", "X-RateLimit-Reset", "X-Request-ID",
)  # fmt: skip
CORS_MAX_AGE_SECONDS = 7200
"""As long as Chromium keeps the answer to a preflight at most."""

_AUTHORITY = re.compile(r"([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?", re.ASCII)

log = structlog.get_logger(__name__)


class StrangeHostError(BadRequestError):
    """The request names a host that we are not."""

    slug = "unknown_host"
    message = "This service is not known by that name"


class TrustedProxies(ProxyFix):
    """Takes the client's address from what the proxies in front of us have added to `X-Forwarded-For`.

    The scheme and the host are the nearest proxy's word, since proxies replace those and do not add to them. Values are
    told apart by commas and nothing else: read as Werkzeug does, one quotation mark from a client makes the whole list
    void, and the client is taken for the proxy.
    """

    def __init__(self, application: WSGIApplication, hops: int) -> None:
        super().__init__(application, x_for=hops, x_proto=1, x_host=1)

    def _get_real_value(self, trusted: int, value: str | None) -> str | None:
        values = [each.strip() for each in (value or "").split(",")]
        return values[-trusted] if 0 < trusted <= len(values) else None


def init_security(app: Flask) -> None:
    """Guard the edge of `app`, whose request ids must be there already: what is refused here has one too."""
    if app.config["TRUSTED_PROXIES"]:
        app.wsgi_app = TrustedProxies(app.wsgi_app, app.config["TRUSTED_PROXIES"])  # type: ignore[method-assign]
    app.wsgi_app = SecurityHeaders(app.wsgi_app)  # type: ignore[method-assign]
    app.after_request(set_cache_headers)
    app.after_request(limit_send_time)
    app.before_request(refuse_strange_host)
    if app.config["CORS_ORIGINS"]:
        _init_cors(app, app.config["CORS_ORIGINS"])
    if app.config["APP_ENV"] == "production" and not app.config["HOST_NAMES"]:
        log.warning("trusted_hosts_unset")


class SecurityHeaders:
    """WSGI middleware that tells browsers what they may do with an answer.

    Werkzeug looks through all headers for each one that is set, which for so many is a tenth of a short request.
    """

    def __init__(self, application: WSGIApplication) -> None:
        self._application = application
        self._headers = list(SECURITY_HEADERS.items())

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        def start(
            status: str, headers: list[tuple[str, str]], exc_info: ExceptionInfo = None, /
        ) -> Callable[[bytes], object]:
            given = {name for name, _ in headers}
            return start_response(
                status, [*headers, *(each for each in self._headers if each[0] not in given)], exc_info
            )

        return self._application(environ, start)


def set_cache_headers(response: Response) -> Response:
    """Tell everybody not to keep an answer: most of them are somebody's own. The docs have a policy of their own."""
    if request.endpoint == "service.docs":
        response.headers["Content-Security-Policy"] = DOCS_POLICY
    if request.endpoint in PUBLIC_FILES:
        return response
    if "Cache-Control" in response.headers:
        response.cache_control.no_store = True
    else:
        response.headers.add("Cache-Control", "no-store")
    return response


def refuse_strange_host() -> None:
    """Refuse a request by a name that is not ours: a page elsewhere may have had its own name lead to us.

    Some clients put the host into the target too, where it counts for more (RFC 9112, 3.2.2): both must be ours.
    """
    names = current_app.config["HOST_NAMES"]
    if not names or request.path in CALLED_BY_ADDRESS:
        return
    target = str(request.environ.get("RAW_URI") or "/")
    in_target = [] if target.startswith("/") or target == "*" else [_authority(target)]
    if not all(is_host_trusted(host, names) for host in (request.environ.get("HTTP_HOST"), *in_target)):
        raise StrangeHostError


def _authority(target: str) -> str | None:
    try:
        return urlsplit(target).netloc
    except ValueError:
        return None


def is_host_trusted(given: str | None, names: Collection[str]) -> bool:
    """Return whether `given`, a host with or without a port, is one of `names`; `.name` stands for all under it too.

    Werkzeug has a function for it, which knows neither capitals nor IPv6 addresses nor underscores.
    """
    found = _AUTHORITY.fullmatch((given or "").lower())
    if found is None:
        return False
    host = found[1]
    return any(host == name.removeprefix(".") or (name.startswith(".") and host.endswith(name)) for name in names)


def _init_cors(app: Flask, origins: Collection[str]) -> None:
    """Let the pages of `origins` call us; they are compared as a whole, where Flask-CORS would take some for patterns.

    There are no cookies, so credentials in the sense of CORS are not needed.
    """
    # It would log each OPTIONS request.
    logging.getLogger("flask_cors").setLevel(logging.WARNING)
    is_open = "*" in origins
    CORS(
        app,
        resources=[re.compile(f"/(?!(?:{'|'.join(re.escape(path[1:]) for path in NOT_FOR_BROWSERS)})$)")],
        origins="*" if is_open else [re.compile(re.escape(origin) + r"\Z") for origin in origins],
        send_wildcard=is_open,
        always_send=False,
        vary_header=False,
        methods=CORS_METHODS,
        allow_headers=CORS_REQUEST_HEADERS,
        expose_headers=CORS_ANSWER_HEADERS,
        max_age=CORS_MAX_AGE_SECONDS,
    )
    app.before_request(answer_preflight)
    if not is_open:
        app.after_request(vary_by_origin)


def answer_preflight() -> Response | None:
    """Answer a browser's question for what a page of a listed origin may send; Flask-CORS adds what.

    To be called before each request, ahead of the limiter and of sign-in: the question comes without a token, and not
    because somebody wanted something.
    """
    origins = current_app.config["CORS_ORIGINS"]
    is_preflight = request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers
    is_listed = "*" in origins or request.headers.get("Origin") in origins
    if not is_preflight or not is_listed or request.path in NOT_FOR_BROWSERS:
        return None
    return Response(status=204)


def vary_by_origin(response: Response) -> Response:
    """Keep caches from giving the answer for one origin to another, also when it is the one for none."""
    response.vary.add("Origin")
    return response


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
