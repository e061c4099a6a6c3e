"""The application factory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flask import Flask

from chatapi import access_log, cli, limits, observability, openapi, parsing, scrape, security
from chatapi.admission import init_admission
from chatapi.auth.routes import blueprint as auth
from chatapi.auth.session_routes import blueprint as sessions
from chatapi.auth.tokens import configure_jwt, identify_caller, init_tokens, notice_ended_session, require_user
from chatapi.broker import check_eviction_policy, init_broker
from chatapi.catalogue import init_catalogue
from chatapi.chatrooms.live import init_live
from chatapi.chatrooms.message_routes import blueprint as messages
from chatapi.chatrooms.model_routes import blueprint as models
from chatapi.chatrooms.routes import blueprint as chatrooms
from chatapi.database_waits import CONNECT_SECONDS, SERVER_BOUNDS, BoundedConnection, init_database_waits
from chatapi.debug_logs import init_debug_logs
from chatapi.errors import register_error_handlers
from chatapi.extensions import REDIS_OPTIONS, JSONCacheSerializer, api, cache, db
from chatapi.logs import configure_from
from chatapi.metering import init_metering
from chatapi.migrating import init_migrations, read_revisions
from chatapi.readiness import init_readiness
from chatapi.subscriptions.gateway import init_gateway
from chatapi.subscriptions.routes import blueprint as subscriptions
from chatapi.subscriptions.webhook_routes import blueprint as webhook
from chatapi.users.routes import blueprint as users
from config import ROOT, ConfigError, load_settings

PUBLIC = (observability.blueprint, scrape.blueprint, auth, webhook)
PROTECTED = (sessions, users, chatrooms, messages, models, subscriptions)
"""Every route of these needs a good token; a route in a new blueprint is one or the other, and it is said here."""

MIGRATIONS = ROOT / "migrations"


class _Application(Flask):
    """Flask, in which nothing is asynchronous."""

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Return `func` without a look: Flask inspects each function that it calls, some twenty for a request."""
        return func


def create_app(environ: Mapping[str, str] | None = None) -> Flask:
    """Return the application that `environ` (default: the process's environment) describes.

    Raises `ConfigError` naming every fault of the environment.
    """
    settings = load_settings(environ)
    app = _Application(__name__)
    app.url_map.merge_slashes = False  # An empty segment is no other address, and a redirect no answer of ours.
    app.config.from_mapping(settings)
    app.config.from_mapping(_framework_settings(settings))
    configure_from(settings)
    _init_extensions(app)
    _register_routes(app)
    cli.register_commands(app)
    if settings["APP_ENV"] == "production" and (fault := check_eviction_policy(app)):
        raise ConfigError([fault])
    return app


def _framework_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what Flask and its extensions want to be told, in their own names."""
    revisions = read_revisions(MIGRATIONS)
    return {
        # One more than the parser allows: a chunked body that is longer is cut here in silence, and found there.
        "MAX_CONTENT_LENGTH": parsing.MAX_BODY_BYTES + 1,
        "SQLALCHEMY_DATABASE_URI": settings["DATABASE_URL"],
        "SQLALCHEMY_ENGINE_OPTIONS": {
            "pool_timeout": 5,
            "pool_size": 10,
            "max_overflow": 10,
            # Errors go to logs, and parameters are prompts, numbers and hashes.
            "hide_parameters": True,
            "connect_args": {
                "connection_factory": BoundedConnection,
                "connect_timeout": CONNECT_SECONDS,
                "application_name": "chatapi",
                # A server that vanished without a word is noticed, and does not hold a thread for ever.
                "keepalives_idle": 5,
                "keepalives_interval": 2,
                "keepalives_count": 3,
                "tcp_user_timeout": 15_000,
                "options": " ".join(
                    f"-c {name}={value}" for name, value in {"timezone": "UTC", **SERVER_BOUNDS}.items()
                ),
            },
        },
        "CACHE_TYPE": "chatapi.extensions.NodesCache",
        "CACHE_REDIS_URL": settings["CACHE_REDIS_URL"],
        "CACHE_KEY_PREFIX": "chatapi:cache:",
        "CACHE_SERIALIZER": JSONCacheSerializer,
        "CACHE_OPTIONS": dict(REDIS_OPTIONS),
        # Flask has a setting of the same name, which refuses probes too.
        "HOST_NAMES": settings["TRUSTED_HOSTS"],
        "TRUSTED_HOSTS": None,
        "API_TITLE": "chatapi",
        "API_VERSION": observability.API_VERSION,
        "OPENAPI_VERSION": "3.1.0",
        "OPENAPI_URL_PREFIX": "/",
        "OPENAPI_JSON_PATH": "openapi.json",
        "API_SPEC_OPTIONS": openapi.SPEC_OPTIONS,
        "KNOWN_REVISIONS": revisions.known,
        "HEAD_REVISION": revisions.head,
        **configure_jwt(dict(settings)),
    }


def _init_extensions(app: Flask) -> None:
    db.init_app(app)
    init_database_waits(app)
    init_migrations(app, MIGRATIONS)
    init_tokens(app)
    cache.init_app(app)
    init_broker(app)
    init_live(app)
    init_admission(app)
    init_catalogue(app)
    init_gateway(app)
    init_readiness(app)
    init_debug_logs(app)


def _register_routes(app: Flask) -> None:
    """Register what happens around a request, in its order, and the blueprints.

    The limiter comes after the caller is known, whose budget it charges, and before anything that costs.
    """
    init_metering(app)
    app.before_request(access_log.begin_request)
    app.after_request(access_log.end_request)
    security.init_security(app)
    app.before_request(identify_caller)
    limits.init_limits(app)
    app.before_request(notice_ended_session)
    app.before_request(parsing.refuse_unknown_query)
    register_error_handlers(app)
    api.init_app(app)
    app.add_url_rule("/docs/assets/<path:filename>", "swagger_ui", observability.swagger_ui)
    for blueprint in PROTECTED:
        app.before_request_funcs.setdefault(blueprint.name, []).append(require_user)
    for blueprint in (*PUBLIC, *PROTECTED):
        api.register_blueprint(blueprint)
    tokens = {blueprint.name: openapi.OF_USERS for blueprint in PROTECTED}
    openapi.complete_spec(app, api.spec, {**tokens, scrape.blueprint.name: openapi.OF_METRICS})
    openapi.name_models(api.spec, [model["alias"] for model in app.config["GEMINI_MODELS"]])
