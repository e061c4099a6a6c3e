"""Reading requests strictly, and the blueprint class that does it."""

from __future__ import annotations

import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, NoReturn, TypeVar, cast

import marshmallow as ma
from flask import Request, current_app, request
from flask_smorest import Blueprint
from webargs import core
from webargs.flaskparser import FlaskParser, is_json_request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from chatapi.errors import (
    INVALID,
    LIMITED,
    UNAVAILABLE,
    BadRequestError,
    ChatAPIError,
    UnsupportedMediaTypeError,
    ValidationFailedError,
    describe,
)
from chatapi.schemas import ErrorSchema

MAX_BODY_BYTES = 64 * 1024
WEBHOOK_PATH = "/webhook/stripe"
MAX_WEBHOOK_BYTES = 1024 * 1024

ANYWHERE = (BadRequestError(), INVALID, LIMITED, UNAVAILABLE)
"""What any route may refuse. One that has a refusal of its own with the same status is documented with both."""

V = TypeVar("V", bound=Callable[..., Any])


def _unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member is there twice")
    return members


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def strict_json(body: bytes) -> Any:
    """Return what the JSON text `body` says (RFC 8259, and of its freedoms the strict reading).

    Raises `BadRequestError` for what is no JSON, for invalid UTF-8, `NaN` and `Infinity`, duplicate members and
    nesting too deep to read.
    """
    try:
        return json.loads(body.decode("utf-8"), object_pairs_hook=_unique_members, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise BadRequestError("The body is not valid JSON") from None


class StrictParser(FlaskParser):
    """webargs with our envelope, and without its leniencies."""

    DEFAULT_UNKNOWN_BY_LOCATION = {**FlaskParser.DEFAULT_UNKNOWN_BY_LOCATION, "query": ma.RAISE, "json": ma.RAISE}  # noqa: RUF012 - webargs declares it so

    def load_json(self, req: Request, schema: ma.Schema) -> Any:
        """Return the body; none at all is an empty object, where none is wanted also under a Content-Type."""
        body = read_body(req)
        if not body and (not req.mimetype or (is_json_request(req) and not schema.fields)):
            return {}
        if "Content-Encoding" in req.headers or not is_json_request(req):
            raise UnsupportedMediaTypeError
        return strict_json(body)

    def handle_error(
        self,
        error: ma.ValidationError,
        req: Request,  # noqa: ARG002
        schema: ma.Schema,  # noqa: ARG002
        **_options: Any,
    ) -> NoReturn:
        """Answer 422 with what is wrong per field."""
        messages: dict[str, Any] = error.normalized_messages()  # type: ignore[no-untyped-call]
        fields = next(iter(messages.values())) if len(messages) == 1 and _is_location(messages) else messages
        raise ValidationFailedError(errors=fields) from None


def _is_location(messages: dict[str, Any]) -> bool:
    location, fields = next(iter(messages.items()))
    return location in core.Parser.__location_map__ and isinstance(fields, dict)


def max_body_bytes(path: str) -> int:
    """Return how long a body sent to `path` may be."""
    return MAX_WEBHOOK_BYTES if path == WEBHOOK_PATH else MAX_BODY_BYTES


def read_body(req: Request) -> bytes:
    """Return the body as it came. Raises `BadRequestError` if it cannot be read, 413 if it is too long."""
    longest = max_body_bytes(req.path)
    # One more than is allowed: a chunked body that is longer is cut there in silence, and found here.
    req.max_content_length = longest + 1
    try:
        body = req.get_data(cache=True)
    except HTTPException:
        raise
    except Exception as error:
        raise BadRequestError("The body could not be read") from error
    if len(body) > longest:
        raise RequestEntityTooLarge
    return body


class ApiBlueprint(Blueprint):  # type: ignore[misc]
    """A flask-smorest blueprint that reads requests strictly."""

    ARGUMENTS_PARSER = StrictParser()

    def arguments(self, schema: ma.Schema | type[ma.Schema], **options: Any) -> Callable[[V], V]:
        """Declare what a route takes. The schema is made once: making one copies each of its fields."""
        made = schema() if isinstance(schema, type) else schema
        return cast("Callable[[V], V]", super().arguments(made, **options))

    def problems(self, *refusals: ChatAPIError | type[ChatAPIError]) -> Callable[[V], V]:
        """Document the refusals of a route that are its own, each by an example of the one envelope.

        A class stands for an error with nothing but its own message; an instance shows what else there is, and whether
        there is a `Retry-After`.
        """
        errors = [each() if isinstance(each, type) else each for each in refusals]

        def decorate(view: V) -> V:
            for status in sorted({error.status for error in errors}):
                same = [error for error in (*errors, *ANYWHERE) if error.status == status]
                slugs = " or ".join(dict.fromkeys(f"`{error.slug}`" for error in same))
                description = f"{HTTPStatus(status).phrase}: {slugs}"
                view = self.alt_response(status, schema=ErrorSchema, description=description, **describe(same))(view)
            return view

        return decorate


def refuse_unknown_query() -> None:
    """Answer 422 to query arguments of a route that takes none; routes with a query schema see to their own.

    To be called before each request: a misspelt argument would otherwise be passed over in silence.
    """
    if not request.args or request.endpoint is None:
        return
    view = current_app.view_functions[request.endpoint]
    parameters = getattr(view, "_apidoc", {}).get("arguments", {}).get("parameters", [])
    if not any(parameter["in"] == "query" for parameter in parameters):
        raise ValidationFailedError(errors={name: ["Unknown field."] for name in request.args})
