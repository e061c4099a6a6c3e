"""What the OpenAPI document says of the subscription routes."""

from __future__ import annotations

from typing import Any

import pytest
from flask.testing import FlaskClient


@pytest.fixture
def document(client: FlaskClient) -> dict[str, Any]:
    document: dict[str, Any] = client.get("/openapi.json").get_json()
    return document


@pytest.mark.parametrize(
    ("path", "slug"),
    [
        ("/subscribe/pro", "already_subscribed"),
        ("/subscription/cancel", "not_subscribed"),
        ("/subscription/resume", "not_subscribed"),
        ("/subscription/portal", "not_subscribed"),
    ],
)
def test_refusals_are_documented_by_their_names(document: dict[str, Any], path: str, slug: str) -> None:
    operation = document["paths"][path]["post"]

    assert {"409", "503"} <= operation["responses"].keys()
    for name in (slug, "billing_unavailable", "billing_not_configured"):
        assert f"`{name}`" in operation["description"]


@pytest.mark.parametrize(
    ("method", "alias", "path"),
    [("post", "/subscription/pro", "/subscribe/pro"), ("get", "/subscribe/status", "/subscription/status")],
)
def test_alias_is_documented_as_one(document: dict[str, Any], method: str, alias: str, path: str) -> None:
    paths = document["paths"]

    assert paths[alias][method]["summary"] == f"Alias of `{method.upper()} {path}`"
    assert paths[alias][method]["responses"] == paths[path][method]["responses"]
    assert "Alias" not in paths[path][method]["summary"]


@pytest.mark.parametrize(
    ("schema", "field", "known"),
    [
        ("PastSubscription", "tier", {"type": "string", "enum": ["pro"]}),
        ("Subscription", "cancel_at_period_end", {"description": "True when it ends with the paid period"}),
        ("Profile", "subscription_status", {"description": "Stripe's word, null if there never was a subscription"}),
    ],
)
def test_fields_are_described(document: dict[str, Any], schema: str, field: str, known: dict[str, Any]) -> None:
    assert document["components"]["schemas"][schema]["properties"][field].items() >= known.items()
