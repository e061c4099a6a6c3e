"""What the OpenAPI document says beyond what the routes' decorators say."""

from __future__ import annotations

from typing import Any

from apispec import APISpec

SPEC_OPTIONS: dict[str, Any] = {
    "info": {
        "description": "A chat backend: sign in with a mobile number, open chatrooms, send prompts, read the replies.",
    },
    "servers": [{"url": "/"}],
}


def complete_spec(spec: APISpec, protected_tags: set[str]) -> None:
    """Say which operations need a token, and give each a name for generated clients."""
    spec.components.security_scheme("bearer", {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"})
    for path, operations in spec._paths.items():  # noqa: SLF001 - apispec has no way to visit them
        for method, operation in operations.items():
            if method == "parameters":
                continue
            operation["operationId"] = _operation_id(method, path)
            operation["security"] = [{"bearer": []}] if protected_tags & set(operation["tags"]) else []


def _operation_id(method: str, path: str) -> str:
    words = [part.strip("{}").replace("-", "_").replace(".", "_") for part in path.strip("/").split("/") if part]
    return "_".join([method, *words]) if words else f"{method}_index"
