"""The text of replies while it is being written: a Redis Stream for each, of short life.

A worker appends what the model says as entries of fencing token, offset and text (in characters); any number of
readers follow. Whatever is missing here, because Redis was away or was flushed, is in PostgreSQL once the reply has
ended. A second stream holds nothing but the end, for those who only wait for that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, cast
from uuid import UUID

import redis
from flask import Flask, current_app

from chatapi.breaker import CircuitOpenError, RedisBreaker
from chatapi.extensions import REDIS_OPTIONS
from chatapi.redis_nodes import Nodes, connect

LIVE_SECONDS = 900
"""How long what an attempt wrote is kept, at the least as long as an attempt may take."""
ENDED_SECONDS = 120

MOST_WAIT_SECONDS = 5.0
"""How long one read may wait: as often a reader sees if its client and its session are still there."""
QUICK_WAIT_SECONDS = 0.5
"""How long one may wait on which a request's answer depends: should Redis hang, that comes later by no more."""

BEGINNING = "0-0"


@dataclass(frozen=True)
class Written:
    """What was appended in one go: `text` stands at `offset` of what the lease `token` has written.

    The first of an attempt has no text. `position` is Redis's own name for the entry; `is_end` says that the reply has
    ended, and PostgreSQL how.
    """

    position: str
    token: int = 0
    offset: int = 0
    text: str = ""
    is_end: bool = False


@dataclass(frozen=True)
class Piece:
    """What a worker wants appended. `is_first` makes the stream anew where it is gone."""

    message_id: UUID
    token: int
    offset: int
    text: str
    is_first: bool


class LiveReplies:
    """Reads and writes these streams; one for each process. Threads may share it."""

    def __init__(self, url: str, most_readers: int) -> None:
        self._writer = connect(url, protocol=2, **REDIS_OPTIONS)
        # A read that waits has a connection to itself. Its patience belongs to the connection, hence several kinds.
        waits = (0.0, QUICK_WAIT_SECONDS, MOST_WAIT_SECONDS)
        self._readers = {seconds: _patient(url, seconds, most_readers) for seconds in waits}
        self._breaker = RedisBreaker("live_replies", rest_seconds=1.0)

    def append(self, pieces: Sequence[Piece]) -> list[bool | None]:
        """Append `pieces` in one round trip to each server that has some of their streams.

        Returns for each if it is there (True), or not because its stream was lost before it (False) or its server is
        away (None); then it may be there.
        """
        keys = [_key(piece.message_id) for piece in pieces]
        arrived: list[bool | None] = [None] * len(pieces)
        for place, group in self._writer.grouped(keys).items():
            with suppress(CircuitOpenError):
                found = self._breaker.call(partial(self._append, pieces, keys, group), place)
                for position, entry_id in zip(group, found, strict=True):
                    if isinstance(entry_id, Exception):
                        self._writer.notice(entry_id)
                        self._breaker.say(entry_id, place)
                    else:
                        arrived[position] = entry_id is not None
        return arrived

    def _append(self, pieces: Sequence[Piece], keys: Sequence[str], group: Sequence[int]) -> list[Any]:
        """Append those pieces that one server has; return for each its id, None, or an error if others have none."""

        def write(client: redis.Redis) -> list[Any]:
            pipeline = client.pipeline(transaction=False)
            for position in group:
                piece = pieces[position]
                entry = {"t": piece.token, "o": piece.offset, "x": piece.text}
                pipeline.xadd(keys[position], cast("Any", entry), nomkstream=not piece.is_first)
                pipeline.expire(keys[position], LIVE_SECONDS)
            found = pipeline.execute(raise_on_error=False)[::2]
            # A server that has some of the streams no more has written the others.
            if all(isinstance(entry_id, Exception) for entry_id in found):
                raise found[0]
            return found

        return self._writer.run([keys[position] for position in group], write)

    def announce_end(self, message_id: UUID) -> None:
        """Tell all who follow a reply, or wait for it, that it has ended. Nothing happens while Redis is away."""

        def write(client: redis.Redis) -> None:
            pipeline = client.pipeline(transaction=False)
            for key in (_key(message_id), _end_key(message_id)):
                pipeline.xadd(key, {"e": "1"})
                pipeline.expire(key, ENDED_SECONDS)
            pipeline.execute()

        try:
            key = _key(message_id)
            self._breaker.call(lambda: self._writer.run(key, write), self._writer.place_of(key))
        except CircuitOpenError:
            return

    def read(self, message_id: UUID, after: str, wait_seconds: float = 0.0) -> list[Written]:
        """Return what was written after the entry `after`; if there is nothing, wait for it.

        Raises `CircuitOpenError` while Redis is away.
        """
        return self._read(_key(message_id), after, wait_seconds)

    def wait_for_end(self, message_id: UUID, wait_seconds: float) -> bool:
        """Wait for the end of a reply; return whether it was announced. Raises `CircuitOpenError`."""
        return bool(self._read(_end_key(message_id), BEGINNING, wait_seconds))

    def _read(self, key: str, after: str, wait_seconds: float) -> list[Written]:
        wait_seconds = min(wait_seconds, MOST_WAIT_SECONDS)
        nodes = next(nodes for seconds, nodes in self._readers.items() if wait_seconds <= seconds)
        block = int(wait_seconds * 1000) or None  # For Redis, 0 is for ever.

        def read(client: redis.Redis) -> list[Any]:
            return cast("list[Any]", client.xread({key: after}, block=block))

        found = self._breaker.call(lambda: nodes.run(key, read), nodes.place_of(key))
        entries: Iterable[tuple[str, Mapping[str, str]]] = found[0][1] if found else ()
        return [_written(position, entry) for position, entry in entries]


def init_live(app: Flask) -> None:
    """Give the application its live replies."""
    most_readers = app.config["MAX_OPEN_STREAMS"] + app.config["WEB_THREADS"]
    app.extensions["live_replies"] = LiveReplies(app.config["REDIS_URL"], most_readers)


def live_replies() -> LiveReplies:
    """Return the application's."""
    return cast("LiveReplies", current_app.extensions["live_replies"])


def _patient(url: str, wait_seconds: float, most: int) -> Nodes:
    options = {**REDIS_OPTIONS, "socket_timeout": wait_seconds + REDIS_OPTIONS["socket_timeout"]}
    return connect(url, protocol=2, decode_responses=True, encoding_errors="replace", max_connections=most, **options)


def _key(message_id: UUID) -> str:
    return f"chatapi:live:{{{message_id}}}"


def _end_key(message_id: UUID) -> str:
    return f"chatapi:live:{{{message_id}}}:end"


def _written(position: str, entry: Mapping[str, str]) -> Written:
    if "e" in entry:
        return Written(position, is_end=True)
    try:
        return Written(position, int(entry["t"]), int(entry["o"]), entry["x"])
    except (KeyError, ValueError):  # None of ours. Without a token it is older than everything, and is passed over.
        return Written(position)
