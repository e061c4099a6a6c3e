"""The cached first page of a user's room list.

Its key holds the user's `rooms_version` from PostgreSQL, which every change of the list raises in the change's own
transaction: what was cached before a change is not found after it, also when a refill raced the change, and also
when Redis was away meanwhile. Rooms show the alias of what answers in them, so the key knows the catalogue too.
"""

from __future__ import annotations

from typing import Any, cast
from uuid import UUID

from flask import current_app

from chatapi.breaker import CircuitOpenError, RedisBreaker
from chatapi.catalogue import catalogue
from chatapi.extensions import cache

CACHE_TTL_SECONDS = 300


def load_page(user_id: UUID, rooms_version: int, limit: int) -> dict[str, Any] | None:
    """Return the cached page, or None when there is none, or no Redis."""
    try:
        page = _breaker().call(lambda: cache.get(_key(user_id, rooms_version, limit)))
    except CircuitOpenError:
        return None
    is_page = isinstance(page, dict) and page.keys() == {"chatrooms", "next_cursor"}
    return cast("dict[str, Any]", page) if is_page else None


def store_page(user_id: UUID, rooms_version: int, limit: int, page: dict[str, Any]) -> None:
    """Keep a page (`chatrooms`, `next_cursor`) for `CACHE_TTL_SECONDS`."""
    try:
        _breaker().call(lambda: cache.set(_key(user_id, rooms_version, limit), page, timeout=CACHE_TTL_SECONDS))
    except CircuitOpenError:
        return


def _breaker() -> RedisBreaker:
    breakers: dict[str, RedisBreaker] = current_app.extensions
    server = current_app.config["CACHE_REDIS_URL"]
    return breakers.setdefault("cache_breaker", RedisBreaker("cache", server=server))


def _key(user_id: UUID, rooms_version: int, limit: int) -> str:
    return f"rooms:{user_id}:{rooms_version}:{limit}:{catalogue().fingerprint}"
