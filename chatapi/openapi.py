"""What the OpenAPI document says beyond what the routes' decorators say."""

from __future__ import annotations

import re
from typing import Any

from apispec import APISpec
from flask import Flask

SPEC_OPTIONS: dict[str, Any] = {
    "info": {
        "description": "A chat backend: sign in with a mobile number, open chatrooms, send prompts, read the replies.",
    },
    "servers": [{"url": "/"}],
}

ANY_ERROR = (
    "What any route may answer: 400 `bad_request` for what cannot be read, and `unknown_host` for a name that is not "
    "the service's; 405 `method_not_allowed`; 413 `payload_too_large`; 415 `unsupported_media_type`; 422 "
    "`validation_failed`; 429 `rate_limited` and 503 `service_unavailable`, both with `Retry-After` in seconds. "
    "Answers that count against the request budget have `X-RateLimit-Limit`, `X-RateLimit-Remaining` and "
    "`X-RateLimit-Reset` (seconds since 1970)."
)

LOCATION_HEADER = {"Location": {"description": "Where what was made is found", "schema": {"type": "string"}}}


def complete_spec(app: Flask, spec: APISpec, protected: set[str]) -> None:
    """Name each operation for generated clients, and say which need a token: those of the blueprints `protected`."""
    spec.components.security_scheme("bearer", {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"})
    spec.components.schemas.pop("PaginationMetadata", None)  # Added unasked; we page by cursor.
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    if "DEFAULT_ERROR" in spec.components.responses:
        spec.components.responses["DEFAULT_ERROR"]["description"] = ANY_ERROR
    spec.components.response("UNAUTHORIZED", {"description": "No token, or not a good one", "content": error})
    for rule in app.url_map.iter_rules():
        path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
        operations = spec._paths.get(path, {})  # noqa: SLF001 - apispec has no way to visit them
        methods = {method.lower() for method in rule.methods or ()} & operations.keys()
        blueprint, _, name = rule.endpoint.rpartition(".")
        for method in methods:
            operation = operations[method]
            operation["operationId"] = name if len(methods) == 1 else f"{name}_{method}"
            operation["security"] = [{"bearer": []}] if blueprint in protected else []
            if blueprint in protected:
                operation["responses"]["401"] = {"$ref": "#/components/responses/UNAUTHORIZED"}


def name_models(spec: APISpec, aliases: list[str]) -> None:
    """Say which models a chatroom can name here: it is a matter of configuration, which a schema does not know."""
    for name in ("CreateChatroom", "UpdateChatroom"):
        spec.components.schemas[name]["properties"]["model"]["enum"] = [*aliases, None]
