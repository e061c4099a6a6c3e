"""Holds every answer that the suite sees against the OpenAPI document."""

from __future__ import annotations

import re
from typing import Any

from flask import Flask, Response, request
from jsonschema.protocols import Validator
from openapi_schema_validator import OAS31Validator

from chatapi.extensions import api


def check_answers(app: Flask) -> None:
    """Make each answer of `app` that does not match the document fail the test that asked for it."""
    document = api.spec.to_dict()

    @app.after_request
    def check(response: Response) -> Response:
        if request.url_rule is not None and request.method not in ("OPTIONS", "HEAD"):
            _check(document, request.url_rule.rule, response)
        return response


def _check(document: dict[str, Any], rule: str, response: Response) -> None:
    path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule)
    operation = document["paths"].get(path, {}).get(request.method.lower())
    if operation is None:
        return
    responses = operation["responses"]
    documented = responses.get(str(response.status_code), responses.get("default"))
    assert response.status_code < 300 or documented is not None, (path, response.status_code)
    assert str(response.status_code) in responses or response.status_code >= 400, (path, response.status_code)
    while "$ref" in documented:
        documented = resolve(document, documented["$ref"])
    content = documented.get("content", {})
    assert response.mimetype in content or not content, (path, response.mimetype)
    schema = content.get("application/json", {}).get("schema") if response.is_json else None
    if schema is not None:
        found = faults(document, schema, response.get_json())
        assert not found, (path, found)


def faults(document: dict[str, Any], schema: dict[str, Any], value: Any) -> list[str]:
    """Return where a value is not as the document's schema says."""
    validator: Validator = OAS31Validator({**document, **schema}, format_checker=OAS31Validator.FORMAT_CHECKER)
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]


def resolve(document: dict[str, Any], reference: str) -> dict[str, Any]:
    node: Any = document
    for name in reference.removeprefix("#/").split("/"):
        node = node[name]
    return node  # type: ignore[no-any-return]
