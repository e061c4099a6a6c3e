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

LOCATION_HEADER = {"Location": {"description": "Where what was made is found", "schema": {"type": "string"}}}


def complete_spec(app: Flask, spec: APISpec, protected: set[str]) -> None:
    """Name each operation for generated clients, and say which need a token: those of the blueprints `protected`."""
    spec.components.security_scheme("bearer", {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"})
    spec.components.schemas.pop("PaginationMetadata", None)  # Added unasked; we page by cursor.
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
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
