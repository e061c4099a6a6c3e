"""The cached first page of a user's room list.

Its key holds the user's `rooms_version` from PostgreSQL, which every change of the list raises in the change's own
transaction: what was cached before a change is not found after it, also when a refill raced the change, and also
when Redis was away meanwhile. Rooms show the alias of what answers in them, so the key knows the catalogue too.
"""

from __future__ import annotations

from typing import cast
from uuid import UUID

from flask import current_app

from chatapi.breaker import CircuitOpenError, RedisBreaker
from chatapi.catalogue import catalogue
from chatapi.extensions import NodesCache, cache

CACHE_TTL_SECONDS = 300
PAGE_BEGINS = '{"chatrooms":'
"""Anything else under a page's key is somebody else's."""


def load_page(user_id: UUID, rooms_version: int, limit: int) -> str | None:
    """Return the cached page, or None when there is none, or no Redis."""
    try:
        key = _key(user_id, rooms_version, limit)
        page = _breaker().call(lambda: cache.get(key), _place_of(key))
    except CircuitOpenError:
        return None
    return page if isinstance(page, str) and page.startswith(PAGE_BEGINS) else None


def store_page(user_id: UUID, rooms_version: int, limit: int, page: str) -> None:
    """Keep a page, as JSON that begins with `PAGE_BEGINS`, for `CACHE_TTL_SECONDS`.

    It is kept as it is sent: reading it, only to write it again, would take longer than all else about it.
    """
    try:
        key = _key(user_id, rooms_version, limit)
        _breaker().call(lambda: cache.set(key, page, timeout=CACHE_TTL_SECONDS), _place_of(key))
    except CircuitOpenError:
        return


def _place_of(key: str) -> str:
    return cast("NodesCache", cache.cache).place_of(key)


def _breaker() -> RedisBreaker:
    breakers: dict[str, RedisBreaker] = current_app.extensions
    return breakers.setdefault("cache_breaker", RedisBreaker("cache"))


def _key(user_id: UUID, rooms_version: int, limit: int) -> str:
    return f"rooms:{user_id}:{rooms_version}:{limit}:{catalogue().fingerprint}"
