"""One Redis looked at: does it answer, how fast, does it keep what is put there, and how it is set."""

from __future__ import annotations

import math
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import redis
from redis.exceptions import AskError, MovedError

from chatapi.bell import NAMESPACE, probe_key
from chatapi.broker import BILLING_QUEUE, CHORES_QUEUE
from chatapi.chatrooms.prompts import REPLIES_QUEUE
from chatapi.redis_nodes import Nodes, connect
from chatapi.replies.titles import TITLES_QUEUE
from config_redis import redis_address

SECONDS = 2.0
"""For each answer."""

PINGS = 3
PROBE_SECONDS = 30
QUEUES = (REPLIES_QUEUE, TITLES_QUEUE, CHORES_QUEUE, BILLING_QUEUE)
SETTINGS = {"queue": "REDIS_URL", "cache": "CACHE_REDIS_URL", "limits": "RATE_LIMIT_REDIS_URL"}
"""What Redis is used for, and where each use is set."""


@dataclass
class Probed:
    """What a Redis has shown. `fault` is why it is of no use, None when it is."""

    place: str
    fault: str | None = None
    is_away: bool = False
    masters: int = 0
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
    try:
        return redis_address(url).place
    except ValueError:
        return "the address in it"


def probe(url: str, *, writes: bool, counts_queues: bool) -> Probed:
    """Look at the Redis of `url`, and with `writes` put a key there, read it and delete it.

    Of a cluster, all masters are looked at, and what is shown is of the one that is worst off: the slowest, the
    fullest, the one with the most connections.
    """
    probed = Probed(place_of(url))
    nodes = None
    try:
        nodes = connect(url, socket_timeout=SECONDS, socket_connect_timeout=SECONDS)
        latencies = nodes.each(_ping)
        probed.masters, probed.latency_ms = len(latencies), max(latencies)
        _read_info(nodes.each(lambda client: cast("Mapping[str, Any]", client.info())), probed)
        nodes.run(NAMESPACE, lambda client: client.exists(NAMESPACE))
        if writes:
            _write(nodes, probed)
        if counts_queues:
            probed.queues = nodes.run(NAMESPACE, _count)
    except (redis.RedisError, OSError, ValueError) as error:
        probed.fault, probed.is_away = _fault(error), not isinstance(error, redis.ResponseError)
    finally:
        if nodes is not None:
            nodes.close()
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


def _read_info(infos: Sequence[Mapping[str, Any]], probed: Probed) -> None:
    def values(name: str) -> list[Any]:
        return [info[name] for info in infos if name in info]

    probed.version = next(iter(values("valkey_version") or values("redis_version")), None)
    # Of several policies one that evicts is what matters.
    probed.policy = next(iter(sorted(values("maxmemory_policy"), key=lambda policy: policy == "noeviction")), None)
    fullest = max(infos, key=lambda info: info.get("used_memory", 0) / (info.get("maxmemory") or math.inf))
    probed.used_bytes, probed.max_bytes = fullest.get("used_memory"), fullest.get("maxmemory")
    busiest = max(infos, key=lambda info: info.get("connected_clients", 0))
    probed.clients, probed.max_clients = busiest.get("connected_clients"), busiest.get("maxclients")
    probed.blocked_clients = busiest.get("blocked_clients")
    probed.is_replica = "slave" in values("role")
    if persistent := [info["aof_enabled"] or info.get("rdb_saves") for info in infos if "aof_enabled" in info]:
        probed.is_persistent = all(persistent)


def _write(nodes: Nodes, probed: Probed) -> None:
    """Put a key, read it, delete it, and run a script, as the queue does."""
    key, value = probe_key(), secrets.token_hex(8)

    def write(client: redis.Redis) -> str | None:
        client.set(key, value, ex=PROBE_SECONDS)
        found = cast("bytes | None", client.get(key))
        client.eval("return redis.call('DEL', KEYS[1])", 1, key)
        if client.exists(key):
            return "a key cannot be deleted"
        if found is None or found.decode(errors="replace") != value:
            return "a key that was just put there is gone or another"
        return None

    probed.fault = nodes.run(key, write)


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
    if isinstance(error, MovedError):
        return "it is a node of a cluster, and others have some of the keys"
    if isinstance(error, AskError):
        return "the queue's slot of the cluster is being moved to another node"
    if isinstance(error, redis.TimeoutError):
        return f"no answer within {SECONDS:g} s"
    if isinstance(error, redis.ResponseError):
        return " ".join(str(error).split())[:200].rstrip(".")
    if isinstance(error, ValueError):
        return "its address cannot be read"
    reason = re.sub(r"Error \S+ connecting to \S+ ", "", " ".join(str(error).split()))[:200].rstrip(".")
    return reason or type(error).__name__
