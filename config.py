"""Settings, read once from the environment; every fault is named at once."""

from __future__ import annotations

import base64
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dotenv import dotenv_values
from marshmallow import EXCLUDE, Schema, ValidationError, fields, pre_load, validates_schema
from marshmallow.validate import OneOf, Range

from config_billing import Words, faults_of_billing, front_end, secret_key
from config_models import ModelList, fault_of_default, model_name, models_or_one
from config_network import Hosts, Origins, trusted_hosts
from config_redis import RedisUrl

ROOT = Path(__file__).resolve().parent
DATA_DIR = ROOT / ".data"

MIN_SECRET_BYTES = 32
"""RFC 7518, section 3.2: an HS256 key is at least as long as its hash."""

MIN_DISTINCT_CHARACTERS = 8

MIN_METRICS_TOKEN = 16
"""Nothing bounds how often somebody may try one."""

WELL_KNOWN_SECRETS = ("secret", "changeme", "change-me", "your-", "your_", "jwt-secret", "jwt_secret", "example")
"""How secrets begin that were copied from somebody's example."""

OTP_DELIVERIES: dict[str, tuple[str, ...]] = {
    "echo": (),
    "webhook": ("OTP_WEBHOOK_URL", "OTP_WEBHOOK_SECRET"),
}
"""The values of OTP_DELIVERY, each with the settings that it needs."""


class ConfigError(Exception):
    """The environment cannot be used as it is.

    `faults` holds one sentence per fault, so that an operator mends them all in one go.
    """

    def __init__(self, faults: list[str]) -> None:
        self.faults = faults
        super().__init__("Cannot start:\n" + "\n".join(f"- {fault}" for fault in faults))


class Url(fields.String):
    """An absolute URL with one of `schemes`."""

    def __init__(self, schemes: tuple[str, ...], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.schemes = schemes

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> str:
        url = str(super()._deserialize(value, attr, data, **kwargs))
        try:
            parts = urlsplit(url)
            _ = parts.port
        except ValueError:  # Its text may quote a piece of a password.
            raise ValidationError(
                "is not a URL; in passwords, / is written %2F, and so is whatever means something"
            ) from None
        if parts.scheme not in self.schemes:
            raise ValidationError(f"must begin with {' or '.join(f'{name}://' for name in self.schemes)}")
        if parts.scheme in ("http", "https") and not parts.hostname:
            raise ValidationError("names no host")
        return url


class Folder(fields.String):
    """A folder that is there or can be made, and that this user can write to."""

    def __init__(self) -> None:
        super().__init__(load_default=None)

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> str:
        name = str(super()._deserialize(value, attr, data, **kwargs))
        try:
            there = next(path for path in (Path(name).absolute(), *Path(name).absolute().parents) if path.exists())
        except (OSError, ValueError) as error:
            raise ValidationError(f"names a folder that cannot be made ({type(error).__name__})") from None
        if not there.is_dir():
            raise ValidationError(f"names a folder that cannot be made: {there} is no folder")
        if not os.access(there, os.W_OK | os.X_OK):
            raise ValidationError(f"names a folder that this user cannot write to: {there}")
        return name


class Count(fields.Integer):
    """A whole number of at least `least`, at most `most`."""

    def __init__(self, default: int, least: int = 1, most: int = 2**31 - 1) -> None:
        message = f"must be a whole number from {least} to {most}"
        super().__init__(
            load_default=default, validate=Range(least, most, error=message), error_messages={"invalid": message}
        )


def _one_of(*choices: str) -> OneOf:
    return OneOf(choices, error="must be one of {choices}")


class SettingsSchema(Schema):
    """Every name the system reads from the environment, with its default."""

    class Meta:
        unknown = EXCLUDE

    APP_ENV = fields.String(load_default="production", validate=_one_of("development", "production"))
    HOST = fields.String(load_default=None)
    PORT = Count(5000, most=65535)
    PUBLIC_URL = Url(("http", "https"), load_default=None)
    FRONTEND_URL = Url(("http", "https"), load_default=None, validate=front_end)
    TRUSTED_HOSTS = Hosts()
    TRUSTED_PROXIES = Count(0, least=0, most=10)
    CORS_ORIGINS = Origins()

    DATABASE_URL = Url(("postgresql", "postgres", "postgresql+psycopg2"), load_default=None)
    DATABASE_DIRECT_URL = Url(("postgresql", "postgres", "postgresql+psycopg2"), load_default=None)
    REDIS_URL = RedisUrl(load_default=None)
    CACHE_REDIS_URL = RedisUrl(load_default=None)
    RATE_LIMIT_REDIS_URL = RedisUrl(load_default=None)

    JWT_SECRET = fields.String(load_default=None)
    JWT_ACCESS_TTL_SECONDS = Count(3600)
    JWT_REFRESH_TTL_SECONDS = Count(30 * 24 * 3600)
    AUTH_IP_LIMIT = Count(30, least=0, most=10_000)
    OTP_GLOBAL_FAILURES = Count(500)
    OTP_DELIVERY = fields.String(load_default=None, validate=_one_of(*OTP_DELIVERIES))
    OTP_WEBHOOK_URL = Url(("http", "https"), load_default=None)
    OTP_WEBHOOK_SECRET = fields.String(load_default=None)

    GEMINI_API_KEY = fields.String(load_default=None)
    GEMINI_API_ENDPOINT = Url(("http", "https"), load_default=None)
    GEMINI_SDK = fields.String(
        load_default="google-generativeai", validate=_one_of("google-generativeai", "google-genai")
    )
    GEMINI_MODEL = fields.String(load_default=None, validate=model_name())
    GEMINI_MODELS = ModelList(load_default=None)
    GEMINI_TIMEOUT_SECONDS = Count(60)
    REPLY_MAX_ATTEMPTS = Count(5, most=100)
    REPLY_ATTEMPT_SECONDS = Count(120)
    REPLY_MAX_AGE_SECONDS = Count(3600)
    MAX_BACKLOG = Count(10_000)
    MAX_IN_FLIGHT_PER_USER = Count(50)
    MAX_OPEN_STREAMS = Count(512, least=0, most=10_000)

    STRIPE_SECRET_KEY = fields.String(load_default=None, validate=secret_key)
    STRIPE_WEBHOOK_SECRET = Words("whsec_")
    STRIPE_PRICE_ID = Words("price_", "plan_")
    STRIPE_API_BASE = Url(("http", "https"), load_default="https://api.stripe.com")
    BILLING_GRACE_DAYS = Count(3, least=0, most=365)
    BASIC_DAILY_PROMPTS = Count(5, least=0)
    RATE_LIMIT_WINDOW_MS = Count(900_000, least=1000)
    RATE_LIMIT_MAX_REQUESTS = Count(100)

    STAND_INS = fields.String(
        load_default="", metadata={"description": "Set by `make run`: what is not the real thing"}
    )

    METRICS_TOKEN = fields.String(load_default=None)
    PROMETHEUS_MULTIPROC_DIR = Folder()
    LOG_DIR = Folder()
    LOG_LEVEL = fields.String(load_default="info", validate=_one_of("debug", "info", "warning", "error"))
    WEB_CONCURRENCY = Count(2, most=1024)
    WEB_THREADS = Count(16, most=1024)
    WORKER_PROCESSES = Count(1, most=1024)
    WORKER_THREADS = Count(128, most=4096)

    @pre_load
    def drop_empty(self, environ: Mapping[str, str], **_options: Any) -> dict[str, str]:
        """Take a name set to nothing for one that is not set, as `NAME=` in a compose file means."""
        return {name: value.strip() for name, value in environ.items() if value.strip()}

    @validates_schema(skip_on_field_errors=False)
    def check_needed(self, settings: dict[str, Any], **_options: Any) -> None:
        """Name what must be set and is not, and what does not go together."""
        faults = {}
        if settings.get("REPLY_ATTEMPT_SECONDS", 1) <= settings.get("GEMINI_TIMEOUT_SECONDS", 0):
            faults["REPLY_ATTEMPT_SECONDS"] = "must be more than GEMINI_TIMEOUT_SECONDS, or calls outlive their lease"
        if fault := _fault_of_webhook_secret(settings.get("OTP_WEBHOOK_SECRET") or ""):
            faults["OTP_WEBHOOK_SECRET"] = fault
        delivery = settings.get("OTP_DELIVERY")
        for name in OTP_DELIVERIES.get(delivery or "", ()):
            if settings.get(name, "") is None:
                faults[name] = f"is not set, but OTP_DELIVERY is {delivery}"
        if faults:
            raise ValidationError(faults)

    @validates_schema(skip_on_field_errors=False)
    def check_default_model(self, settings: dict[str, Any], **_options: Any) -> None:
        """Name a default that is not among the models, or that not everybody may use."""
        if settings.get("GEMINI_MODELS") and "GEMINI_MODEL" in settings:
            fault = fault_of_default(settings["GEMINI_MODEL"], settings["GEMINI_MODELS"])
            if fault:
                raise ValidationError(fault, "GEMINI_MODEL")

    @validates_schema(skip_on_field_errors=False)
    def check_production(self, settings: dict[str, Any], **_options: Any) -> None:
        """Name what would be unsafe outside development."""
        if settings.get("APP_ENV") != "production":
            return
        faults = {
            name: "is not set"
            for name in ("DATABASE_URL", "REDIS_URL", "GEMINI_API_KEY")
            if settings.get(name, "") is None
        }
        if settings.get("OTP_DELIVERY", "") is None:
            faults["OTP_DELIVERY"] = f"is not set; production needs {_real_deliveries()}"
        elif settings.get("OTP_DELIVERY") == "echo":
            faults["OTP_DELIVERY"] = (
                f"is echo, which hands sign-in codes to whoever asks; production needs {_real_deliveries()}"
            )
        secret = settings["JWT_SECRET"] or ""
        if fault := _fault_of_secret(secret):
            faults["JWT_SECRET"] = fault
        if "*" in settings.get("CORS_ORIGINS", ()):
            faults["CORS_ORIGINS"] = "is *, which lets every web site in; name the origins of your front ends"
        if 0 < len(settings.get("METRICS_TOKEN") or "") < MIN_METRICS_TOKEN:
            faults["METRICS_TOKEN"] = (
                f"has fewer than {MIN_METRICS_TOKEN} characters; make one with `openssl rand -hex 32`"
            )
        faults.update(faults_of_billing(settings))
        if faults:
            raise ValidationError(faults)


def _real_deliveries() -> str:
    return " or ".join(name for name in OTP_DELIVERIES if name != "echo")


def _fault_of_secret(secret: str) -> str | None:
    if not secret:
        return "is not set"
    if secret.lower().startswith(WELL_KNOWN_SECRETS) or len(set(secret)) < MIN_DISTINCT_CHARACTERS:
        return "is a well-known or trivial one; make one with `openssl rand -base64 48`"
    if len(secret.encode()) < MIN_SECRET_BYTES:
        return f"is shorter than {MIN_SECRET_BYTES} bytes; make one with `openssl rand -base64 48`"
    return None


def _fault_of_webhook_secret(secret: str) -> str | None:
    if secret.startswith("whsec_"):
        try:
            base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        except ValueError:
            return "begins with whsec_, but what follows is not base64"
    return None


def load_environment() -> dict[str, str]:
    """Return the environment, completed from `.env` and, in development, from what `make run` has started.

    What is set in the environment wins over `.env`, and both win over `.data/services.env`, which
    `make run` writes while its embedded servers are up, so that `flask` commands reach them.
    """
    environ = {name: value for name, value in dotenv_values(ROOT / ".env").items() if value is not None}
    environ.update(os.environ)
    if environ.get("APP_ENV") == "development":
        is_stripe_named = bool(environ.get("STRIPE_SECRET_KEY") or environ.get("STRIPE_API_BASE"))
        for name, value in dotenv_values(DATA_DIR / "services.env").items():
            # A key of one's own belongs to Stripe itself, and not to the stand-in, whose prices and secrets it has not.
            if not environ.get(name) and not (is_stripe_named and name.startswith("STRIPE_")):
                environ[name] = value or ""
    return environ


def load_settings(environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the settings that `environ` (default: the process's) asks for, by their environment names.

    Raises `ConfigError` with every fault there is.
    """
    schema = SettingsSchema()
    try:
        settings: dict[str, Any] = schema.load(load_environment() if environ is None else environ)
    except ValidationError as error:
        raise ConfigError(_sentences(error)) from None
    if settings["APP_ENV"] == "development":
        # Where `make run` is not up, these lead nowhere, and the error of whoever connects says so.
        settings["DATABASE_URL"] = settings["DATABASE_URL"] or f"postgresql://postgres@/postgres?host={DATA_DIR}"
        settings["REDIS_URL"] = settings["REDIS_URL"] or f"unix://{DATA_DIR}/valkey.sock"
        settings["JWT_SECRET"] = settings["JWT_SECRET"] or development_secret()
        settings["OTP_DELIVERY"] = settings["OTP_DELIVERY"] or "echo"
        settings["FRONTEND_URL"] = settings["FRONTEND_URL"] or f"http://localhost:{settings['PORT']}"
    settings["DATABASE_URL"] = sqlalchemy_url(settings["DATABASE_URL"])
    settings["DATABASE_DIRECT_URL"] = sqlalchemy_url(settings["DATABASE_DIRECT_URL"] or settings["DATABASE_URL"])
    settings["GEMINI_MODELS"] = models_or_one(settings["GEMINI_MODELS"], settings["GEMINI_MODEL"])
    settings["GEMINI_MODEL"] = settings["GEMINI_MODEL"] or settings["GEMINI_MODELS"][0]["alias"]
    settings["STAND_INS"] = [name.strip() for name in settings["STAND_INS"].split(",") if name.strip()]
    if settings["APP_ENV"] == "production":
        settings["TRUSTED_HOSTS"] = trusted_hosts(settings["TRUSTED_HOSTS"], settings["PUBLIC_URL"])
    settings["CACHE_REDIS_URL"] = settings["CACHE_REDIS_URL"] or settings["REDIS_URL"]
    settings["RATE_LIMIT_REDIS_URL"] = settings["RATE_LIMIT_REDIS_URL"] or settings["REDIS_URL"]
    settings["HOST"] = settings["HOST"] or ("127.0.0.1" if settings["APP_ENV"] == "development" else "0.0.0.0")  # noqa: S104 - a container's address is not known beforehand
    return settings


def _sentences(error: ValidationError) -> list[str]:
    messages: dict[str, Any] = error.normalized_messages()  # type: ignore[no-untyped-call]
    return [
        f"{name} {message.rstrip('.')}."
        for name, texts in sorted(messages.items())
        for message in ([texts] if isinstance(texts, str) else texts)
    ]


def sqlalchemy_url(url: str) -> str:
    """Name the driver in a PostgreSQL URL: without it SQLAlchemy 2.1 looks for psycopg 3."""
    for prefix in ("postgres://", "postgresql://"):
        if url.startswith(prefix):
            return "postgresql+psycopg2://" + url.removeprefix(prefix)
    return url


def development_secret(path: Path = DATA_DIR / "jwt_secret") -> str:
    """Return this checkout's own secret, made at the first call and kept in a file only its owner can read."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f"{path.name}.{os.getpid()}")
        draft.touch(mode=0o600)
        draft.write_text(secrets.token_urlsafe(48))
        try:
            os.link(draft, path)
        except FileExistsError:
            pass  # Another process was first, and its secret counts.
        finally:
            draft.unlink()
    return path.read_text()
