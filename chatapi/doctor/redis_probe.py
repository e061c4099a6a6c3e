"""One Redis looked at: does it answer, how fast, does it keep what is put there, and how it is set."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

import redis

from chatapi.broker import BILLING_QUEUE, CHORES_QUEUE, NAMESPACE
from chatapi.chatrooms.prompts import REPLIES_QUEUE
from chatapi.replies.titles import TITLES_QUEUE

SECONDS = 2.0
"""For each answer."""

PINGS = 3
PROBE_SECONDS = 30
PROBE_PREFIX = "chatapi:probe:"
QUEUES = (REPLIES_QUEUE, TITLES_QUEUE, CHORES_QUEUE, BILLING_QUEUE)
SETTINGS = {"queue": "REDIS_URL", "cache": "CACHE_REDIS_URL", "limits": "RATE_LIMIT_REDIS_URL"}
"""What Redis is used for, and where each use is set."""


@dataclass
class Probed:
    """What a Redis has shown. `fault` is why it is of no use, None when it is."""

    place: str
    fault: str | None = None
    is_away: bool = False
    latency_ms: float | None = None
    version: str | None = None
    policy: str | None = None
    used_bytes: int | None = None
    max_bytes: int | None = None
    clients: int | None = None
    max_clients: int | None = None
    blocked_clients: int | None = None
    is_replica: bool = False
    is_persistent: bool | None = None
    queues: dict[str, dict[str, int]] = field(default_factory=dict)


def place_of(url: str) -> str:
    """Return where a Redis is, without who we are there."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return parts.path
    try:
        port = parts.port or 6379
    except ValueError:
        return "the address in it"
    return f"{parts.hostname or 'localhost'}:{port}{parts.path if parts.path != '/' else ''}"


def probe(url: str, *, writes: bool, counts_queues: bool) -> Probed:
    """Look at the Redis of `url`, and with `writes` put a key there, read it and delete it."""
    probed = Probed(place_of(url))
    client = None
    try:
        client = redis.Redis.from_url(url, socket_timeout=SECONDS, socket_connect_timeout=SECONDS)
        probed.latency_ms = _ping(client)
        _read_info(cast("Mapping[str, Any]", client.info()), probed)
        if writes:
            _write(client, probed)
        if counts_queues:
            probed.queues = _count(client)
    except (redis.RedisError, OSError, ValueError) as error:
        probed.fault, probed.is_away = _fault(error), not isinstance(error, redis.ResponseError)
    finally:
        if client is not None:
            client.close()
    return probed


def _ping(client: redis.Redis) -> float:
    """Return the shortest of some round trips in milliseconds; the first one also connects."""
    client.ping()
    taken = []
    for _ in range(PINGS):
        began = time.perf_counter()
        client.ping()
        taken.append(time.perf_counter() - began)
    return round(min(taken) * 1000, 2)


def _read_info(info: Mapping[str, Any], probed: Probed) -> None:
    probed.version = info.get("valkey_version") or info.get("redis_version")
    probed.policy = info.get("maxmemory_policy")
    probed.used_bytes, probed.max_bytes = info.get("used_memory"), info.get("maxmemory")
    probed.clients, probed.max_clients = info.get("connected_clients"), info.get("maxclients")
    probed.blocked_clients = info.get("blocked_clients")
    probed.is_replica = info.get("role") == "slave"
    if "aof_enabled" in info:
        probed.is_persistent = bool(info["aof_enabled"]) or bool(info.get("rdb_saves"))


def _write(client: redis.Redis, probed: Probed) -> None:
    """Put a key, read it, delete it, and run a script, as the queue does."""
    key, value = PROBE_PREFIX + secrets.token_hex(8), secrets.token_hex(8)
    client.set(key, value, ex=PROBE_SECONDS)
    found = cast("bytes | None", client.get(key))
    if found is None or found.decode(errors="replace") != value:
        probed.fault = "a key that was just put there is gone or another"
    client.eval("return redis.call('DEL', KEYS[1])", 1, key)
    if client.exists(key):
        probed.fault = "a key cannot be deleted"


def _count(client: redis.Redis) -> dict[str, dict[str, int]]:
    """Return, by queue, what waits for a worker, and what workers have fetched and not acknowledged yet."""
    pipeline = client.pipeline(transaction=False)
    for queue in QUEUES:
        pipeline.llen(f"{NAMESPACE}:{queue}")
        pipeline.hlen(f"{NAMESPACE}:{queue}.msgs")
    lengths = iter(pipeline.execute())
    counts = {}
    for queue in QUEUES:
        ready, all_messages = next(lengths), next(lengths)
        counts[queue] = {"ready": ready, "unacknowledged": max(0, all_messages - ready)}
    return counts


def _fault(error: Exception) -> str:
    """Return what a Redis or its library says, in one line; neither quotes passwords."""
    if isinstance(error, redis.AuthenticationError):
        return "it does not take the user or the password"
    if isinstance(error, redis.TimeoutError):
        return f"no answer within {SECONDS:g} s"
    if isinstance(error, redis.ResponseError):
        return " ".join(str(error).split())[:200].rstrip(".")
    if isinstance(error, ValueError):
        return "its address cannot be read"
    reason = re.sub(r"Error \S+ connecting to \S+ ", "", " ".join(str(error).split()))[:200].rstrip(".")
    return reason or type(error).__name__
