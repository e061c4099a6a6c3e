"""The errors this API answers with: a status, a slug for programs, a sentence for people; and the one handler."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

import structlog
from flask import Flask, Response, jsonify
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from werkzeug.exceptions import HTTPException, MethodNotAllowed

DATABASE_RETRY_AFTER_SECONDS = 2
SCHEMA_RETRY_AFTER_SECONDS = 30
UNDEFINED_FUNCTION = "42883"
"""The schema is older than the code: `flask db upgrade` adds what is called."""

log = structlog.get_logger(__name__)

_SLUGS = {
    HTTPStatus.NOT_FOUND: "not_found",
    HTTPStatus.METHOD_NOT_ALLOWED: "method_not_allowed",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "payload_too_large",
    HTTPStatus.INTERNAL_SERVER_ERROR: "internal_error",
}
_SENTENCES = {
    HTTPStatus.NOT_FOUND: "There is nothing at this address",
    HTTPStatus.METHOD_NOT_ALLOWED: "This address does not take that method",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is too large",
    HTTPStatus.BAD_REQUEST: "The request could not be understood",
}


class ChatAPIError(Exception):
    """An answer other than success. Raised by services, turned into the one envelope at the edge.

    `status` is the HTTP status, `slug` the stable name a program may switch on, `extra` further members of the
    envelope, and `retry_after` whole seconds for the header of that name.
    """

    status = HTTPStatus.INTERNAL_SERVER_ERROR
    slug = "internal_error"
    message = "Something went wrong on our side"

    def __init__(
        self,
        message: str | None = None,
        *,
        errors: Mapping[str, Any] | None = None,
        extra: Mapping[str, Any] | None = None,
        retry_after: int | None = None,
    ) -> None:
        self.message = message or self.message
        self.errors = errors
        self.extra = extra or {}
        self.retry_after = retry_after
        super().__init__(self.message)


class BadRequestError(ChatAPIError):
    """The request cannot be read, or not be done."""

    status = HTTPStatus.BAD_REQUEST
    slug = "bad_request"
    message = "The request could not be understood"


class UnauthorizedError(ChatAPIError):
    """No token, or not a good one."""

    status = HTTPStatus.UNAUTHORIZED
    slug = "unauthorized"
    message = "Sign in first: a valid access token is needed"


class NotFoundError(ChatAPIError):
    """What was asked for is not there, or not the caller's: one answer for both."""

    status = HTTPStatus.NOT_FOUND
    slug = "not_found"
    message = "Not found"


class ConflictError(ChatAPIError):
    """What was asked for does not go with how things are now."""

    status = HTTPStatus.CONFLICT
    slug = "conflict"
    message = "This cannot be done as things are now"


class UnsupportedMediaTypeError(ChatAPIError):
    """The body is not plain JSON."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    slug = "unsupported_media_type"
    message = "Send the body as application/json, without Content-Encoding"


class ValidationFailedError(ChatAPIError):
    """The request is well formed, but not valid; `errors` maps fields to what is wrong with them."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    slug = "validation_failed"
    message = "The request is not valid"


class RateLimitedError(ChatAPIError):
    """Too many requests."""

    status = HTTPStatus.TOO_MANY_REQUESTS
    slug = "rate_limited"
    message = "Too many requests, try again later"


class ServiceUnavailableError(ChatAPIError):
    """Something we need is away; trying again is safe."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    slug = "service_unavailable"
    message = "The service is not available right now, try again shortly"


def envelope(error: ChatAPIError) -> dict[str, Any]:
    """Return the body that every error of this API has."""
    status = HTTPStatus(error.status)
    body: dict[str, Any] = {
        "code": status.value,
        "status": status.phrase,
        "error": error.slug,
        "message": error.message,
        **error.extra,
    }
    if error.errors is not None:
        body["errors"] = error.errors
    return body


def answer(error: ChatAPIError) -> Response:
    """Return the response that says `error`."""
    response = jsonify(envelope(error))
    response.status_code = int(error.status)
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    if error.status == HTTPStatus.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


INVALID = ValidationFailedError(errors={"title": ["Length must be between 1 and 200."]})
LIMITED = RateLimitedError(retry_after=60)
UNAVAILABLE = ServiceUnavailableError(retry_after=DATABASE_RETRY_AFTER_SECONDS)
"""What most routes may refuse, for the documentation."""

RETRY_AFTER_HEADER = {
    "Retry-After": {
        "description": "Seconds after which to try again",
        "schema": {"type": "integer", "minimum": 0},
        "example": DATABASE_RETRY_AFTER_SECONDS,
    }
}


CHALLENGE_HEADER = {"WWW-Authenticate": {"description": "`Bearer`", "schema": {"type": "string"}, "example": "Bearer"}}


def describe(errors: Iterable[ChatAPIError]) -> dict[str, Any]:
    """Return the `examples` of an OpenAPI response that says `errors`, and its `headers` if it has any.

    There is one example for each slug; the first error with it gives it.
    """
    known: dict[str, ChatAPIError] = {}
    for error in errors:
        known.setdefault(error.slug, error)
    examples = {slug: {"summary": error.message, "value": envelope(error)} for slug, error in known.items()}
    headers: dict[str, Any] = {}
    if any(error.retry_after is not None for error in known.values()):
        headers |= RETRY_AFTER_HEADER
    if any(error.status == HTTPStatus.UNAUTHORIZED for error in known.values()):
        headers |= CHALLENGE_HEADER
    return {"examples": examples, **({"headers": headers} if headers else {})}


def http_error(status: HTTPStatus) -> ChatAPIError:
    """Return what is answered for an error of HTTP itself, such as 405, that Flask or Werkzeug raises."""
    known = ChatAPIError(_SENTENCES.get(status, status.phrase + "."))
    known.status = status
    known.slug = _SLUGS.get(status, status.phrase.lower().replace(" ", "_").replace("-", "_"))
    return known


def register_error_handlers(app: Flask) -> None:
    """Answer every error in the one envelope, whoever raises it."""
    app.register_error_handler(ChatAPIError, answer)
    app.register_error_handler(HTTPException, _answer_http_exception)
    app.register_error_handler(DBAPIError, _answer_database_error)
    app.register_error_handler(PoolTimeoutError, _answer_database_error)
    app.register_error_handler(Exception, _answer_unexpected)


def _answer_http_exception(error: HTTPException) -> Response:
    """Answer what Flask, Werkzeug or an extension raises; their own headers, such as Allow, stay."""
    response = answer(http_error(HTTPStatus(error.code or 500)))
    if isinstance(error, MethodNotAllowed) and error.valid_methods:
        response.headers["Allow"] = ", ".join(sorted(error.valid_methods))
    return response


def _answer_database_error(error: DBAPIError | PoolTimeoutError) -> Response:
    """Answer 503 while PostgreSQL is away or too busy: what was asked for was not done, or not surely done."""
    if not isinstance(error, PoolTimeoutError | OperationalError) and not error.connection_invalidated:
        log_database_error(error)
        is_behind = getattr(error.orig, "pgcode", None) == UNDEFINED_FUNCTION
        return answer(ServiceUnavailableError(retry_after=SCHEMA_RETRY_AFTER_SECONDS) if is_behind else ChatAPIError())
    log.warning("database_unavailable", reason=type(error).__name__)
    return answer(ServiceUnavailableError(retry_after=DATABASE_RETRY_AFTER_SECONDS))


def log_database_error(error: SQLAlchemyError) -> None:
    """Log a failure of a statement by its kind and place, without its message: that quotes values, such as prompts."""
    frames = traceback.extract_tb(error.__traceback__)
    where = [
        f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames if "site-packages" not in frame.filename
    ]
    sqlstate = getattr(getattr(error, "orig", None), "pgcode", None)
    log.error("database_error", reason=type(error).__name__, sqlstate=sqlstate, where=where)


def kind_of(error: Exception) -> str:
    """Return what kind of failure it is, without its message; a certificate that is not trusted is one of its own."""
    is_about_trust = "certificate verify failed" in str(error).lower().replace("_", " ")
    return "certificate not trusted" if is_about_trust else type(error).__name__


def _answer_unexpected(error: Exception) -> Response:
    log.error("unexpected_error", exc_info=error)
    return answer(ChatAPIError())
