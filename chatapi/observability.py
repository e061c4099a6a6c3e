"""The service routes: index, health, docs."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flask import Response, current_app, jsonify, render_template, send_from_directory
from flask_swagger_ui import __file__ as swagger_ui_file
from marshmallow import fields

from chatapi.extensions import limiter
from chatapi.parsing import ApiBlueprint
from chatapi.readiness import run_checks
from chatapi.schemas import ApiSchema, Timestamp
from config_billing import is_half_configured

API_VERSION = "0.1.0"

_SWAGGER_UI = Path(swagger_ui_file).parent / "dist"

blueprint = ApiBlueprint("service", __name__, description="The service itself", template_folder="templates")


class IndexSchema(ApiSchema):
    """What this is and where to go from here."""

    name = fields.String(required=True)
    version = fields.String(required=True)
    links = fields.Dict(keys=fields.String(), values=fields.String(), required=True)


class HealthSchema(ApiSchema):
    """The service is up."""

    status = fields.String(required=True, metadata={"example": "OK"})
    timestamp = Timestamp(required=True)


class ReadinessSchema(ApiSchema):
    """Whether the service can do its work: `ok`, `degraded` (it can, with something missing) or `unavailable`."""

    status = fields.String(required=True)
    checks = fields.Dict(keys=fields.String(), values=fields.String(), required=True)
    notes = fields.List(fields.String(), required=True)


@blueprint.get("/")
@blueprint.response(200, IndexSchema)
def index() -> dict[str, Any]:
    """Name the service and its entry points"""
    links = {
        "docs": "/docs",
        "openapi": "/openapi.json",
        "health": "/health",
        "sign_in": "/auth/send-otp",
        "user": "/user/me",
        "chatrooms": "/chatroom",
    }
    return {"name": "chatapi", "version": API_VERSION, "links": links}


@blueprint.get("/health")
@blueprint.response(200, HealthSchema)
def health() -> dict[str, Any]:
    """Say that the service is up"""
    return {"status": "OK", "timestamp": datetime.now(UTC)}


@blueprint.get("/health/live")
@limiter.exempt
@blueprint.response(200, HealthSchema)
def live() -> dict[str, Any]:
    """Say that the process answers, whatever else is away"""
    return {"status": "OK", "timestamp": datetime.now(UTC)}


@blueprint.get("/health/ready")
@limiter.exempt
@blueprint.response(200, ReadinessSchema)
@blueprint.alt_response(503, schema=ReadinessSchema, description="PostgreSQL is away or its schema is too old")
def ready() -> Response:
    """Say whether the service can do its work

    503 only when PostgreSQL is away or its schema is older than the code: without Redis work is slower, not lost.
    """
    found = run_checks()
    notes = [f"{name} is a stand-in" for name in current_app.config["STAND_INS"]]
    if is_half_configured(current_app.config):
        notes.append("Stripe is configured in part, so nothing is sold")
    is_down = found["postgresql"] != "ok"
    is_degraded = any(state != "ok" for state in found.values())
    status = "unavailable" if is_down else "degraded" if is_degraded else "ok"
    response = jsonify(status=status, checks=found, notes=notes)
    if is_down:
        response.status_code = 503
        response.headers["Retry-After"] = "5"
    return response


@blueprint.get("/docs")
@blueprint.doc(tags=["service"])
@blueprint.response(200, {"type": "string"}, content_type="text/html", description="A page")
def docs() -> Response:
    """Show the API in Swagger UI"""
    return Response(render_template("docs.html"), mimetype="text/html")


def swagger_ui(filename: str) -> Response:
    """Serve Swagger UI's own files, so that the docs need no CDN."""
    return send_from_directory(_SWAGGER_UI, filename)
