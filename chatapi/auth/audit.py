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


def record(action: str, number_hash: bytes, **details: Any) -> None:
    """Note that the operator at the terminal does `action` to a number's account; it stands once committed.

    It goes to the log as well, where the number is named by its hash only.
    """
    actor = operator()
    db.session.add(AuditEvent(action=action, actor=actor, number_hash=number_hash, details=details))
    log.info("audit", action=action, actor=actor, number_hash=number_hash.hex(), **details)


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
