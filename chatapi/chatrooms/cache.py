"""The cached first page of a user's room list.

Its key holds the user's `rooms_version` from PostgreSQL, which every change of the list raises in the change's own
transaction: what was cached before a change is not found after it, also when a refill raced the change, and also
when Redis was away meanwhile. Rooms show the alias of what answers in them, so the key knows the catalogue too.

Each process keeps what it has last read or stored for a while: the version it is asked for tells it, as it would tell
Redis, that it is right.
"""

from __future__ import annotations

import threading
import time
from itertools import islice
from typing import cast
from uuid import UUID

from flask import current_app

from chatapi.breaker import CircuitOpenError, RedisBreaker
from chatapi.catalogue import catalogue
from chatapi.extensions import NodesCache, cache

CACHE_TTL_SECONDS = 300
OWN_TTL_SECONDS = 30
MOST_OWN_BYTES = 4_000_000
"""Of all pages that a process keeps, about."""
ENTRY_BYTES = 400
"""What a page takes beside its text."""
PAGE_BEGINS = '{"chatrooms":'
"""Anything else under a page's key is somebody else's."""


class OwnPages:
    """Pages that this process has, the oldest first."""

    def __init__(self) -> None:
        self._pages: dict[str, tuple[float, str]] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._pages)

    def get(self, key: str) -> str | None:
        """Return a page that is not too old."""
        ends_at, page = self._pages.get(key, (0.0, None))
        return page if time.monotonic() < ends_at else None

    def put(self, key: str, page: str) -> None:
        """Keep a page; those that are too old go, and the oldest ones as long as there are too many."""
        now = time.monotonic()
        with self._lock:
            self._drop(key)
            self._pages[key] = (now + OWN_TTL_SECONDS, page)
            self._bytes += len(page) + ENTRY_BYTES
            for oldest, (ends_at, _) in list(islice(self._pages.items(), 8)):
                if now >= ends_at:
                    self._drop(oldest)
            while self._bytes > MOST_OWN_BYTES:
                self._drop(next(iter(self._pages)))

    def _drop(self, key: str) -> None:
        if found := self._pages.pop(key, None):
            self._bytes -= len(found[1]) + ENTRY_BYTES


def load_page(user_id: UUID, rooms_version: int, limit: int) -> str | None:
    """Return the cached page, or None when there is none, or no Redis."""
    key = _key(user_id, rooms_version, limit)
    own = _own().get(key)
    if own is not None:
        return own
    try:
        page = _breaker().call(lambda: cache.get(key), _place_of(key))
    except CircuitOpenError:
        return None
    if not isinstance(page, str) or not page.startswith(PAGE_BEGINS):
        return None
    _own().put(key, page)
    return page


def store_page(user_id: UUID, rooms_version: int, limit: int, page: str) -> None:
    """Keep a page, as JSON that begins with `PAGE_BEGINS`, for `CACHE_TTL_SECONDS`.

    It is kept as it is sent: reading it, only to write it again, would take longer than all else about it.
    """
    key = _key(user_id, rooms_version, limit)
    _own().put(key, page)
    try:
        _breaker().call(lambda: cache.set(key, page, timeout=CACHE_TTL_SECONDS), _place_of(key))
    except CircuitOpenError:
        return


def _place_of(key: str) -> str:
    return cast("NodesCache", cache.cache).place_of(key)


def _own() -> OwnPages:
    own: dict[str, OwnPages] = current_app.extensions
    return own.setdefault("own_pages", OwnPages())


def _breaker() -> RedisBreaker:
    breakers: dict[str, RedisBreaker] = current_app.extensions
    return breakers.setdefault("cache_breaker", RedisBreaker("cache"))


def _key(user_id: UUID, rooms_version: int, limit: int) -> str:
    return f"rooms:{user_id}:{rooms_version}:{limit}:{catalogue().fingerprint}"
