"""What the OpenAPI document says beyond what the routes' decorators say."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any

from apispec import APISpec
from flask import Flask
from flask_limiter import ExemptionScope

from chatapi.errors import (
    INVALID,
    LIMITED,
    UNAVAILABLE,
    BadRequestError,
    ChatAPIError,
    UnauthorizedError,
    UnsupportedMediaTypeError,
    describe,
    http_error,
)
from chatapi.extensions import limiter
from chatapi.openapi_examples import BY_OPERATION, BY_SCHEMA, PARAMETERS

SPEC_OPTIONS: dict[str, Any] = {
    "info": {
        "description": (
            "A chat backend: sign in with a mobile number, open chatrooms, send prompts, read the replies.\n\n"
            "Every answer has an `X-Request-ID`. Errors all have one form, `Error`, whose `error` is a stable name for "
            "programs. Where there is a `Retry-After`, the same request may succeed after so many seconds."
        ),
    },
    "servers": [{"url": "/", "description": "Where this document comes from"}],
}

ANY_ERROR = (
    "What any route may answer: 400 `bad_request` for what cannot be read, and `unknown_host` for a name that is not "
    "the service's; 405 `method_not_allowed`; 413 `payload_too_large`; 415 `unsupported_media_type`; 422 "
    "`validation_failed`; 429 `rate_limited` and 503 `service_unavailable`, both with `Retry-After` in seconds. "
    "Answers that count against the request budget have `X-RateLimit-Limit`, `X-RateLimit-Remaining` and "
    "`X-RateLimit-Reset` (seconds since 1970)."
)

ANY_ERRORS = (
    BadRequestError(),
    http_error(HTTPStatus.METHOD_NOT_ALLOWED),
    http_error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    UnsupportedMediaTypeError(),
    UNAVAILABLE,
    http_error(HTTPStatus.INTERNAL_SERVER_ERROR),
)

LOCATION_HEADER = {"Location": {"description": "Where what was made is found", "schema": {"type": "string"}}}

OF_USERS, OF_METRICS = "bearer", "metrics"
"""Whose token is asked for: a user's, or that of METRICS_TOKEN."""


def complete_spec(app: Flask, spec: APISpec, tokens: Mapping[str, str]) -> None:
    """Name each operation for generated clients, say which need a token, and give examples.

    `tokens` has whose that is, by the name of a blueprint.
    """
    _describe_security(spec)
    _describe_common_answers(spec)
    for rule, operation, name in _operations(app, spec):
        blueprint = rule.endpoint.rpartition(".")[0]
        answers = operation["responses"]
        operation["operationId"] = name
        token = tokens.get(blueprint)
        operation["security"] = [] if token is None else [{token: []}]
        if token == OF_USERS:
            answers["401"] = {"$ref": "#/components/responses/UNAUTHORIZED"}
        # A query argument that is not known is refused wherever it is sent.
        answers.setdefault("422", {"$ref": "#/components/responses/UNPROCESSABLE_ENTITY"})
        if limiter.limit_manager.exemption_scope(app, rule.endpoint, blueprint) == ExemptionScope.NONE:
            answers.setdefault("429", {"$ref": "#/components/responses/RATE_LIMITED"})
        operation["responses"] = dict(sorted(answers.items()))  # `default` comes last.
        _give_examples(operation, name)
    _describe_parameters(spec)
    _drop_empty_tags(spec)


def name_models(spec: APISpec, aliases: list[str]) -> None:
    """Say which models a chatroom can name here: it is a matter of configuration, which a schema does not know."""
    for name in ("CreateChatroom", "UpdateChatroom"):
        spec.components.schemas[name]["properties"]["model"]["enum"] = [*aliases, None]


def _operations(app: Flask, spec: APISpec) -> Iterator[tuple[Any, dict[str, Any], str]]:
    """Yield each documented operation, with its rule and its name."""
    for rule in app.url_map.iter_rules():
        path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
        operations = spec._paths.get(path, {})  # noqa: SLF001 - apispec has no way to visit them
        methods = {method.lower() for method in rule.methods or ()} & operations.keys()
        view = rule.endpoint.rpartition(".")[2]
        for method in sorted(methods):
            yield rule, operations[method], view if len(methods) == 1 else f"{view}_{method}"


def _describe_security(spec: APISpec) -> None:
    spec.components.security_scheme(
        OF_USERS,
        {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "JWT",
            "description": "The `token` that verify-otp, login and refresh answer with",
        },
    )
    spec.components.security_scheme(
        OF_METRICS, {"type": "http", "scheme": "bearer", "description": "The setting METRICS_TOKEN of the service"}
    )


def _describe_common_answers(spec: APISpec) -> None:
    """Describe the refusals that routes share, once for all of them."""
    spec.components.schemas.pop("PaginationMetadata", None)  # Added unasked; we page by cursor.
    known = spec.components.responses
    known["DEFAULT_ERROR"] = _answer(ANY_ERROR, *ANY_ERRORS)
    known["UNPROCESSABLE_ENTITY"] = _answer("What was sent is not valid; `errors` says why", INVALID)
    spec.components.response("UNAUTHORIZED", _answer("No token, or not a good one", UnauthorizedError()))
    spec.components.response("RATE_LIMITED", _answer("The request budget is used up", LIMITED))


def _answer(description: str, *errors: ChatAPIError) -> dict[str, Any]:
    """Return the response that says `errors`, each by an example."""
    described = describe(errors)
    body = {"schema": {"$ref": "#/components/schemas/Error"}, "examples": described.pop("examples")}
    return {"description": description, **described, "content": {"application/json": body}}


def _give_examples(operation: dict[str, Any], name: str) -> None:
    """Give each body that has none the example of the operation, or else that of its schema."""
    bodies = {status: answer.get("content", {}) for status, answer in operation["responses"].items()}
    bodies["request"] = operation.get("requestBody", {}).get("content", {})
    for place, content in bodies.items():
        for media_type, body in content.items():
            schema = body.get("schema", {}).get("$ref", "").rpartition("/")[2]
            is_ours = "example" not in body and "examples" not in body and media_type != "text/markdown"
            if is_ours and ((name, place) in BY_OPERATION or schema in BY_SCHEMA):
                body["example"] = BY_OPERATION.get((name, place), BY_SCHEMA.get(schema))


def _describe_parameters(spec: APISpec) -> None:
    for path in spec._paths.values():  # noqa: SLF001
        for fields in (path, *path.values()):
            for parameter in fields.get("parameters", []) if isinstance(fields, dict) else []:
                parameter.update(PARAMETERS.get(parameter["name"], {}))


def _drop_empty_tags(spec: APISpec) -> None:
    """Forget the tags of blueprints whose routes are shown under another's."""
    used = {tag for path in spec._paths.values() for each in path.values() if "tags" in each for tag in each["tags"]}  # noqa: SLF001
    spec._tags[:] = [tag for tag in spec._tags if tag["name"] in used]  # noqa: SLF001
