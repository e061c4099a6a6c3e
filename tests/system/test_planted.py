"""Whatever somebody plants in Redis is data at most: nothing of it is run, no request fails for it, no work is lost."""

from __future__ import annotations

import os
import pickle
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.support import Account, wait_for
from tests.system.events import Reader
from tests.system.support import System, finish

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

KINDS = {
    "chatapi:cache:rooms:*",
    "chatapi:limits*",
    "chatapi:live:*",
    "chatapi:live:*:end",
    "{dramatiq}:replies",
    "{dramatiq}:replies.msgs",
    "{dramatiq}:bell:replies",
}
"""What our code reads from Redis, and what happens to be there for sure."""


class Planted:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self._path}",)


@pytest.fixture
def pickled(tmp_path: Path) -> Any:
    path = tmp_path / "was_loaded"
    payload = pickle.dumps(Planted(path))
    pickle.loads(payload)  # noqa: S301 - our own, to see that it would work
    assert path.exists()
    path.unlink()
    yield payload
    assert not path.exists()


@pytest.fixture
def store(system: System) -> Iterator[redis.Redis]:
    """The system's Redis, with nothing in it that was planted before or stays for who comes next."""
    with redis.Redis.from_url(system.services.valkey.url) as store:
        store.flushall()
        yield store
        store.flushall()


def kind_of(key: bytes) -> str:
    name = re.sub(r"\{?[0-9a-f]{8}-[0-9a-f-]{27}\}?", "*", key.decode())
    for prefix in ("chatapi:cache:rooms:*", "chatapi:limits"):
        if name.startswith(prefix):
            return prefix.rstrip("*") + "*"
    return name


def plant(store: redis.Redis, junk: bytes) -> set[str]:
    """Put `junk` into every key, in the way of its type; return which kinds of keys there were."""
    kinds = set()
    for key in store.scan_iter():
        kind = store.type(key)
        if kind == b"string":
            store.set(key, junk, keepttl=True)
        elif kind == b"list":
            store.lpush(key, junk)
        elif kind == b"hash":
            names = store.hkeys(key)
            store.hset(key, mapping={**dict.fromkeys(names[: len(names) // 2], junk), junk: junk})
        elif kind == b"stream":
            store.xadd(key, {"t": junk, "o": junk, "x": junk})
            store.xadd(key, {junk: junk})
        elif kind == b"set":
            store.sadd(key, junk)
        kinds.add(kind_of(key))
    return kinds


JUNK = {"pickle": None, "number": b"1e400", "json": b'{"actor_name": "generate_reply", "args": [[]]}', "list": b"[]"}


@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK.keys())
def test_nothing_is_run_or_fails_and_all_work_is_done_when_every_key_holds_junk(
    system: System, someone: Account, store: redis.Redis, pickled: bytes, junk: bytes | None
) -> None:
    said_before = len(system.log_of("web"))
    rooms = [someone.open_room(title="planted") for _ in range(6)]
    slow_room = someone.open_room(title="planted slow")
    # What failed a moment ago is left alone for some seconds.
    wait_for(lambda: someone.call("GET", "/user/me") and list(store.scan_iter("chatapi:limits*")))
    ended = someone.prompt(rooms[0], "before")
    finish(someone, rooms[0], ended)
    streamed = someone.prompt(slow_room, "[[words=200 chunk_ms=100]] under way")
    reader = Reader(someone, slow_room, streamed)
    reader.read(most=3)
    system["worker"].ask_to_stop()
    time.sleep(1)
    someone.call("GET", "/chatroom")
    replies = [(room, someone.prompt(room, "waits")) for room in rooms]

    kinds = plant(store, junk or pickled)

    assert kinds >= KINDS
    for method, path in (
        ("GET", "/chatroom"),
        ("GET", "/user/me"),
        ("GET", f"/chatroom/{rooms[0]}"),
        ("GET", "/health"),
    ):
        answer = someone.call(method, path)
        assert answer.status_code == 200, (path, answer.get_json())
    assert [room["title"] for room in someone.call("GET", "/chatroom").get_json()["chatrooms"]].count("planted") == 6
    replies.append((rooms[1], someone.prompt(rooms[1], "after")))
    assert Reader(someone, rooms[0], ended).read_to_end().name == "done"
    assert reader.read_to_end().name == "done"
    assert reader.text == someone.read(slow_room, streamed)["content"]
    wait_for(lambda: not system["worker"].is_running())
    system["worker"].start()
    for room, reply_id in replies:
        assert finish(someone, room, reply_id, seconds=90)["status"] == "completed"
        assert Reader(someone, room, reply_id).read_to_end().name == "done"
    assert someone.daily_usage() == len(replies) + 2
    # A stream that breaks is resumed, so that its reader might not notice.
    said = system.log_of("web")[said_before:]
    assert not re.search("Traceback|unexpected_error|Error handling request", said)
