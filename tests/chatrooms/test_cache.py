"""Pages of the list that a process keeps by itself."""

from __future__ import annotations

import pytest
from flask import Flask

from chatapi.chatrooms import cache
from chatapi.chatrooms.cache import OwnPages
from tests.round_trips import round_trips
from tests.support import Account


def test_page_is_kept_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("chatapi.chatrooms.cache.time.monotonic", lambda: now)
    pages = OwnPages()
    pages.put("key", "page")

    now += cache.OWN_TTL_SECONDS - 0.1
    assert pages.get("key") == "page"
    now += 0.2
    assert pages.get("key") is None


def test_oldest_pages_go_when_there_are_too_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MOST_OWN_BYTES", 10 * (10 + cache.ENTRY_BYTES))
    pages = OwnPages()
    for number in range(30):
        pages.put(str(number), "x" * 10)
    pages.put("29", "y" * 10)  # In the place of what was there.

    assert [key for key in map(str, range(30)) if pages.get(key)] == [str(number) for number in range(20, 30)]


def test_pages_that_are_too_old_go_when_others_come(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("chatapi.chatrooms.cache.time.monotonic", lambda: now)
    pages = OwnPages()
    for number in range(20):
        pages.put(str(number), "page")
    now += cache.OWN_TTL_SECONDS

    for number in range(20, 25):
        pages.put(str(number), "page")

    assert len(pages) == 5


def test_page_that_is_longer_than_all_may_be_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MOST_OWN_BYTES", 10 * (10 + cache.ENTRY_BYTES))
    pages = OwnPages()

    pages.put("key", "x" * cache.MOST_OWN_BYTES)

    assert pages.get("key") is None


def test_page_that_another_process_has_cached_is_read_from_redis_once(app: Flask, account: Account) -> None:
    account.open_room(title="one")
    account.call("GET", "/chatroom")
    app.extensions["own_pages"] = OwnPages()

    commands = []
    for _ in range(2):
        with round_trips() as sent:
            page = account.call("GET", "/chatroom").get_json()
        commands.append(sent.commands)

    assert (page["cached"], [room["title"] for room in page["chatrooms"]]) == (True, ["one"])
    assert commands == [2, 1]
