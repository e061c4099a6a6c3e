"""What these tests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from chatapi.doctor.findings import Finding, run_checks
from chatapi.doctor.redis_checks import redis_checks
from chatapi.doctor.settings import Settings

SECRET = "geheim-7c1f"
WEBHOOK_URL = "https://api.example.com/webhook/stripe"
Read = Callable[..., Settings]


def named(findings: Any, name: str) -> Finding:
    (found,) = [each for each in findings if each.name == name]
    return found


def redis_findings(settings: Settings) -> list[Finding]:
    return run_checks(redis_checks(settings))
