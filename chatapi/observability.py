"""Request ids, the access log, and the service routes: index, health, docs."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import redis
import structlog
from alembic.script import ScriptDirectory
from flask import Flask, Response, current_app, g, jsonify, render_template, request, send_from_directory
from flask_swagger_ui import __file__ as swagger_ui_file
from marshmallow import fields
from sqlalchemy import text

from chatapi.extensions import REDIS_OPTIONS, db, limiter
from chatapi.ids import uuid7
from chatapi.parsing import ApiBlueprint
from chatapi.schemas import ApiSchema, Timestamp
from config_billing import is_half_configured

API_VERSION = "0.1.0"

CHECK_BUDGET_SECONDS = 0.8
"""Readiness answers within a second, whatever hangs."""

_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_SWAGGER_UI = Path(swagger_ui_file).parent / "dist"

log = structlog.get_logger(__name__)

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


def begin_request() -> None:
    """Note when the request came in and what it is called: the client's own name for it, if it is a sane one."""
    given = request.headers.get("X-Request-ID", "")
    g.request_id = given if _SANE_REQUEST_ID.fullmatch(given) else str(uuid7())
    g.began_at = time.perf_counter()
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(request_id=g.request_id)


def end_request(response: Response) -> Response:
    """Name the request in its answer, and log it by its route: paths would hold ids, queries whatever was typed."""
    if "request_id" not in g:  # Refused before anything could be noted.
        begin_request()
    response.headers["X-Request-ID"] = g.request_id
    log.info(
        "request",
        method=request.method,
        route=str(request.url_rule) if request.url_rule else None,
        status=response.status_code,
        milliseconds=round((time.perf_counter() - g.began_at) * 1000, 1),
    )
    return response


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
    found = run_checks({"postgresql": _check_postgresql, "redis": _check_redis})
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
@blueprint.response(200, content_type="text/html")
def docs() -> Response:
    """Show the API in Swagger UI"""
    return Response(render_template("docs.html"), mimetype="text/html")


def swagger_ui(filename: str) -> Response:
    """Serve Swagger UI's own files, so that the docs need no CDN."""
    return send_from_directory(_SWAGGER_UI, filename)


def run_checks(checks: dict[str, Callable[[], str]]) -> dict[str, str]:
    """Run all `checks` at once and return what each says, `timed out` for one that hangs or its kind of failure."""
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001 - for other threads

    def within_app(check: Callable[[], str]) -> str:
        with app.app_context():
            return check()

    # Not a `with`: leaving it would wait for a check that hangs.
    pool = ThreadPoolExecutor(max_workers=len(checks), thread_name_prefix="health")
    pending = {name: pool.submit(within_app, check) for name, check in checks.items()}
    pool.shutdown(wait=False)
    deadline = time.monotonic() + CHECK_BUDGET_SECONDS
    found = {}
    for name, future in pending.items():
        try:
            found[name] = future.result(timeout=max(0.0, deadline - time.monotonic()))
        except FutureTimeoutError:
            found[name] = "timed out"
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a part, the answer names it
            found[name] = f"unavailable ({type(error).__name__})"
    return found


@dataclass(frozen=True)
class Revisions:
    """The migrations that this code comes with."""

    known: frozenset[str]
    head: str | None


def read_revisions(migrations: Path) -> Revisions:
    """Return what the migrations folder holds."""
    scripts = ScriptDirectory(str(migrations))
    return Revisions(frozenset(each.revision for each in scripts.walk_revisions()), scripts.get_current_head())


def _check_postgresql() -> str:
    """A schema that this code does not know is newer, and migrations only expand: it will do."""
    current = db.session.scalar(text("SELECT version_num FROM alembic_version"))
    is_known = current is None or current in current_app.config["KNOWN_REVISIONS"]
    is_older = is_known and current != current_app.config["HEAD_REVISION"]
    return "schema is older than the code, run `flask db upgrade`" if is_older else "ok"


def _check_redis() -> str:
    client = redis.Redis.from_url(current_app.config["REDIS_URL"], **REDIS_OPTIONS)
    try:
        client.ping()
    finally:
        client.close()
    return "ok"
