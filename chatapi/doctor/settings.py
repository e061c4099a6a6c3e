"""The settings as they are, faults or not, and what is to be said of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from marshmallow import ValidationError

from chatapi.doctor.findings import Finding, failed, ok, skipped, warning
from config import ConfigError, SettingsSchema, load_settings, sqlalchemy_url
from config_models import models_or_one
from config_network import trusted_hosts

NAME = "configuration"
ANY_FAULT = "Put it right in the environment or in .env; the service does not start before."
HOW_TO_SET = {
    "DATABASE_URL": "Set it to such as postgresql://user:password@host:5432/database.",
    "REDIS_URL": "Set it to such as redis://:password@host:6379/0, or rediss:// with TLS.",
    "GEMINI_API_KEY": "Make one at https://aistudio.google.com/apikey.",
    "JWT_SECRET": "Make one with `openssl rand -base64 48`; whoever knows it is everybody.",
    "OTP_DELIVERY": "Set it to webhook, with OTP_WEBHOOK_URL and OTP_WEBHOOK_SECRET: docs/sms-delivery.md.",
}
LOOPBACK = ("", "localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Settings:
    """Settings by their names, None where one is missing or at fault, and every fault as a sentence."""

    values: Mapping[str, Any]
    faults: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def has_fault(self, prefix: str) -> bool:
        """Return whether a setting whose name begins so is at fault."""
        return any(fault.startswith(prefix) for fault in self.faults)

    @property
    def is_production(self) -> bool:
        """Whether people depend on it."""
        return bool(self.values["APP_ENV"] != "development")


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Return what of `environ` can be used, and every fault of it."""
    try:
        return Settings(load_settings(environ))
    except ConfigError as error:
        faults = tuple(error.faults)
    try:
        usable = SettingsSchema().load(environ)
    except ValidationError as error:
        usable = error.valid_data if isinstance(error.valid_data, dict) else {}
    values = {**dict.fromkeys(SettingsSchema().fields), **usable}
    for name in ("DATABASE_URL", "DATABASE_DIRECT_URL"):
        values[name] = values[name] and sqlalchemy_url(values[name])
    values["DATABASE_DIRECT_URL"] = values["DATABASE_DIRECT_URL"] or values["DATABASE_URL"]
    for name in ("CACHE_REDIS_URL", "RATE_LIMIT_REDIS_URL"):
        values[name] = values[name] or values["REDIS_URL"]
    if "GEMINI_MODELS" in usable:
        values["GEMINI_MODELS"] = models_or_one(values["GEMINI_MODELS"], values["GEMINI_MODEL"])
    if "TRUSTED_HOSTS" in usable:
        values["TRUSTED_HOSTS"] = trusted_hosts(values["TRUSTED_HOSTS"], values["PUBLIC_URL"])
    values["STAND_INS"] = [name.strip() for name in (values["STAND_INS"] or "").split(",") if name.strip()]
    return Settings(values, faults)


def check_settings(settings: Settings) -> Iterator[Finding]:
    """Yield every fault, and what may stay unset but should not."""
    mode = settings["APP_ENV"] or "unknown mode"
    if not settings.faults:
        yield ok(NAME, f"no fault in it, for {mode}" + ("" if settings.is_production else " (by APP_ENV)"))
    for fault in settings.faults:
        yield _on_fault(fault)
    if settings.is_production:
        yield from _check_edge(settings)


def _on_fault(fault: str) -> Finding:
    name, _, rest = fault.rstrip(".").partition(" ")
    if not re.fullmatch(r"[A-Z_]+", name):
        return failed(NAME, fault, ANY_FAULT)
    return failed(name, rest, HOW_TO_SET.get(name, ANY_FAULT) if rest.startswith("is not set") else ANY_FAULT)


def _check_edge(settings: Settings) -> Iterator[Finding]:
    """Yield what matters where strangers come in."""
    hosts = settings["TRUSTED_HOSTS"]
    if hosts:
        yield ok("TRUSTED_HOSTS", ", ".join(hosts))
    elif not settings.has_fault("TRUSTED_HOSTS"):
        advice = "Set TRUSTED_HOSTS, or PUBLIC_URL, from which it follows: any other Host is refused then."
        yield warning("TRUSTED_HOSTS", "not set, so the service answers to every name", advice)
    if not settings.has_fault("PUBLIC_URL"):
        yield _check_public_url(settings["PUBLIC_URL"])
    if settings["TRUSTED_PROXIES"]:
        yield ok("TRUSTED_PROXIES", f"{settings['TRUSTED_PROXIES']}, as many as must be in front of it")
    else:
        found = "0: whoever connects is taken for the client; behind a proxy, set how many there are"
        yield ok("TRUSTED_PROXIES", found)
    if settings["METRICS_TOKEN"]:
        yield ok("METRICS_TOKEN", "set")
    else:
        advice = "Set METRICS_TOKEN to something random, and give it to Prometheus."
        yield warning("METRICS_TOKEN", "not set, so there is no /metrics", advice)


def _check_public_url(url: str | None) -> Finding:
    if not url:
        return warning(
            "PUBLIC_URL", "not set", "Set it to where the service is for the world: https://api.example.com."
        )
    if urlsplit(url).scheme != "https":
        return warning("PUBLIC_URL", f"{url} is not https", "Tokens and codes would travel in the open: use https.")
    return ok("PUBLIC_URL", url)


def is_remote(host: str | None) -> bool:
    """Return whether what goes to `host` leaves this machine; a path is a socket's folder."""
    return not (host is None or host in LOOPBACK or host.startswith("/"))


def not_set(name: str, setting: str) -> Finding:
    """Return that there is nothing to look at."""
    return skipped(name, f"{setting} is not set, or at fault")
