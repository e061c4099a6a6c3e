"""Identifiers: UUIDv7, made here and not in the database."""

from __future__ import annotations

import re
from uuid import UUID

from uuid_utils.compat import uuid7

from chatapi.errors import NotFoundError

_CANONICAL = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)

__all__ = ["parse_id", "uuid7"]


def parse_id(value: str, what: str) -> UUID:
    """Return `value` as an id.

    Raises `NotFoundError` naming `what` when it is malformed: the same answer as for an id that never was.
    """
    if not _CANONICAL.fullmatch(value):
        raise NotFoundError(f"{what} not found")
    return UUID(value)
