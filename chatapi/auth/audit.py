"""The audit log: what operators did to accounts, and who they were."""

from __future__ import annotations

import getpass
import os
from typing import Any

import structlog
from sqlalchemy import select

from chatapi.auth.models import AuditEvent
from chatapi.extensions import db

log = structlog.get_logger(__name__)


def record(action: str, number_hash: bytes, **details: Any) -> AuditEvent:
    """Note that the operator at the terminal does `action` to a number's account. Once committed, `announce` it."""
    event = AuditEvent(action=action, actor=operator(), number_hash=number_hash, details=details)
    db.session.add(event)
    return event


def announce(event: AuditEvent) -> None:
    """Log an event that is committed; the number is named by its hash only."""
    log.info(
        "audit", action=event.action, actor=event.actor, number_hash=event.number_hash.hex(), details=event.details
    )


def list_events(number_hash: bytes) -> list[AuditEvent]:
    """Return what was done to a number's account, oldest first."""
    query = select(AuditEvent).where(AuditEvent.number_hash == number_hash).order_by(AuditEvent.id)
    return list(db.session.scalars(query))


def operator() -> str:
    """Return who is at the terminal, also behind sudo, as far as the system knows."""
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):  # A container's user may have no name.
        return f"uid {os.getuid()}"
