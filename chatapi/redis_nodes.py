"""Who has a key: one Redis, the master that Sentinels name, or the cluster node that holds its slot.

A use names its key and gets a client of whoever has it (`Nodes.run`). It never waits for longer than by the time-outs
that it brought: which node has which slots is learned beside it, in a thread, from any node that answers. redis-py's
own cluster client asks one node after the other within the call, for as long as they all take together
([0035](../docs/decisions/0035-redis-cluster-by-the-slot.md)).
"""

from __future__ import annotations

import os
import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import redis
import structlog
from redis.backoff import NoBackoff
from redis.commands.core import Script
from redis.connection import parse_url
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError, TryAgainError
from redis.retry import Retry
from redis.sentinel import Sentinel

from config_redis import RedisAddress, bracketed, redis_address

T = TypeVar("T")
Node = tuple[str, int]
"""A host and a port."""

MOST_HOPS = 3
"""How often a use follows a slot that moved: more than once only when it moves again meanwhile."""

LEARN_SECONDS = 1.0
"""How long a node may take to say which has which slots."""

LOOK_AGAIN_SECONDS = 0.5
"""How often they are asked while something is wrong."""

ALERT_SECONDS = 15.0
"""For how long after a failure: a failover takes the cluster's `cluster-node-timeout` and more."""

REFRESH_SECONDS = 5.0
"""How often they are asked when nothing is: a process that is idle is to know of a failover before its next use."""

log = structlog.get_logger(__name__)


class Nodes(ABC):
    """The servers behind one URL, spoken to with one set of options. Threads may share it."""

    @abstractmethod
    def run(self, keys: str | Sequence[str], work: Callable[[redis.Redis], T]) -> T:
        """Return what `work` returns with a client of the server that has `keys`, which are of one server.

        `work` may run again when its keys are in one slot and that has moved: a refused command has done nothing.
        Raises what `work` does, and `redis.ConnectionError` while it is not known who has the keys.
        """

    @abstractmethod
    def place_of(self, key: str) -> str:
        """Return where the server is that has a key, without waiting for it to be known; for people, and breakers."""

    @abstractmethod
    def grouped(self, keys: Sequence[str]) -> list[list[int]]:
        """Return the positions of `keys`, those that one server has together."""

    @abstractmethod
    def each(self, work: Callable[[redis.Redis], T]) -> list[T]:
        """Return what `work` returns with a client of each server that takes writes. Raises as `run` does."""

    @abstractmethod
    def close(self) -> None:
        """Close all connections."""


def connect(url: str, **options: Any) -> Nodes:
    """Return the servers of a URL (`config_redis`); nothing is connected yet.

    `options` are those of redis-py's connections; the time-outs among them are kept by every use.
    """
    address = redis_address(url)
    if address.is_cluster:
        return Cluster(address, url, options)
    if address.is_sentinel:
        return OneServer(address.place, *_watched(address, options))
    return OneServer(address.place, redis.Redis.from_url(url, **options))


class OneServer(Nodes):
    """One server that has all keys, and clients of the Sentinels who name it, if there are any."""

    def __init__(self, place: str, client: redis.Redis, *sentinels: redis.Redis) -> None:
        self._place = place
        self._client = client
        self._sentinels = sentinels

    def run(self, keys: str | Sequence[str], work: Callable[[redis.Redis], T]) -> T:  # noqa: ARG002
        return work(self._client)

    def place_of(self, key: str) -> str:  # noqa: ARG002
        return self._place

    def grouped(self, keys: Sequence[str]) -> list[list[int]]:
        return [list(range(len(keys)))] if keys else []

    def each(self, work: Callable[[redis.Redis], T]) -> list[T]:
        return [work(self._client)]

    def close(self) -> None:
        for client in (self._client, *self._sentinels):
            client.close()
            client.connection_pool.disconnect()


def _watched(address: RedisAddress, options: dict[str, Any]) -> tuple[redis.Redis, ...]:
    """Return a client of the master that the Sentinels name, and those of the Sentinels, asked at each new connection.

    They are asked one after the other, so they share the time that connecting may take.
    """
    prefix = "sentinel_"
    of_sentinels = {name.removeprefix(prefix): value for name, value in address.options if name.startswith(prefix)}
    parameters: dict[str, Any] = parse_url(address.url_of("localhost", 1))
    for name in ("host", "port", "connection_class"):
        parameters.pop(name, None)
    tls = {name: value for name, value in parameters.items() if name.startswith("ssl_")}
    patience = options.get("socket_connect_timeout")
    share = patience / len(address.nodes) if patience else None
    # Without a word about it, these clients would try ten times; those of a URL do not.
    once = Retry(NoBackoff(), 0)
    waits = {"socket_timeout": share, "socket_connect_timeout": share, "retry": once}
    sentinels = Sentinel(address.nodes, sentinel_kwargs={**of_sentinels, **tls, "ssl": address.has_tls, **waits})
    client: redis.Redis = sentinels.master_for(
        address.service, **{**parameters, **options, "ssl": address.has_tls, "retry": once}
    )
    return client, *sentinels.sentinels


class Cluster(Nodes):
    """A cluster's masters, each with a client of its own that is made when it is first needed."""

    def __init__(self, address: RedisAddress, url: str, options: dict[str, Any]) -> None:
        self._address = address
        self._options = options
        self._patience = float(options.get("socket_connect_timeout") or LEARN_SECONDS)
        self._slots = _slots_of(url, address)
        self._clients: dict[Node, redis.Redis] = {}
        self._lock = threading.Lock()

    def run(self, keys: str | Sequence[str], work: Callable[[redis.Redis], T]) -> T:
        of_slots = {key_slot(key.encode()) for key in ([keys] if isinstance(keys, str) else keys)}
        node = self._slots.owner(next(iter(of_slots)), self._patience)
        for _ in range(MOST_HOPS - 1):
            try:
                with self._slots.noticing():
                    return work(self._client(node))
            except MovedError as error:
                node = self._slots.moved(error, node)
                if len(of_slots) > 1:
                    raise
        with self._slots.noticing():
            return work(self._client(node))

    def place_of(self, key: str) -> str:
        node = self._slots.last_owner(key_slot(key.encode()))
        return self._address.place if node is None else bracketed(*node)

    def grouped(self, keys: Sequence[str]) -> list[list[int]]:
        groups: dict[Node, list[int]] = {}
        for position, key in enumerate(keys):
            node = self._slots.owner(key_slot(key.encode()), self._patience)
            groups.setdefault(node, []).append(position)
        return list(groups.values())

    def each(self, work: Callable[[redis.Redis], T]) -> list[T]:
        found = []
        for node in self._slots.masters(self._patience):
            with self._slots.noticing():
                found.append(work(self._client(node)))
        return found

    def close(self) -> None:
        with self._lock:
            clients, self._clients = self._clients, {}
        for client in clients.values():
            client.close()

    def _client(self, node: Node) -> redis.Redis:
        with self._lock:
            client = self._clients.get(node)
            if client is None:
                client = self._clients[node] = redis.Redis.from_url(self._address.url_of(*node), **self._options)
            return client


class Slots:
    """Which node has which slots of a cluster, as the last node said that was asked."""

    def __init__(self, address: RedisAddress) -> None:
        self._address = address
        self._owners: list[Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._fault: redis.RedisError | None = None
        self._lock = threading.Lock()
        self._is_known = threading.Event()
        self._is_suspect = threading.Event()
        self._alert_until = 0.0
        self._learner_pid = 0

    def owner(self, slot: int, patience: float) -> Node:
        """Return who has a slot; wait for that for `patience` seconds. Raises `redis.ConnectionError`."""
        node = self._known(patience)[slot]
        if node is None:
            self._is_suspect.set()
            raise redis.ConnectionError("A slot of the cluster has no node")
        return node

    def last_owner(self, slot: int) -> Node | None:
        """Return who has a slot as far as is known, without waiting."""
        return self._owners[slot]

    def masters(self, patience: float) -> list[Node]:
        """Return all that have slots. Raises `redis.ConnectionError`."""
        return list(dict.fromkeys(node for node in self._known(patience) if node is not None))

    def moved(self, error: MovedError, asked: Node) -> Node:
        """Note where a slot is now, which `asked` had been asked for; return that."""
        node = (error.host or asked[0], error.port)
        with self._lock:
            self._owners[error.slot_id % REDIS_CLUSTER_HASH_SLOTS] = node
        self._is_suspect.set()
        return node

    @contextmanager
    def noticing(self) -> Iterator[None]:
        """Have everything looked at again after a failure within the block that may come from a change."""
        try:
            yield
        except (redis.ConnectionError, redis.TimeoutError, ClusterDownError, AskError, TryAgainError, OSError):
            self._alert_until = time.monotonic() + ALERT_SECONDS
            self._is_suspect.set()
            raise

    def _known(self, patience: float) -> list[Node | None]:
        if self._learner_pid != os.getpid():
            self._begin_to_learn()
        if not self._is_known.wait(patience):
            raise self._fault or redis.ConnectionError("No node of the cluster has answered")
        return self._owners

    def _begin_to_learn(self) -> None:
        """Start the thread, of which a fork leaves nothing behind."""
        with self._lock:
            if self._learner_pid != os.getpid():
                self._learner_pid = os.getpid()
                threading.Thread(target=self._learn_for_ever, name="redis-slots", daemon=True).start()

    def _learn_for_ever(self) -> None:
        is_known = True
        while True:
            self._is_suspect.clear()
            owners = self._learn()
            if owners is not None:
                with self._lock:
                    has_changed, self._owners = owners != self._owners, owners
                self._is_known.set()
                if has_changed:
                    self._alert_until = 0.0
            elif is_known:
                log.warning("redis_cluster_unknown", server=self._address.place, reason=type(self._fault).__name__)
            is_known = owners is not None
            if is_known and time.monotonic() >= self._alert_until:
                self._is_suspect.wait(REFRESH_SECONDS)
            time.sleep(LOOK_AGAIN_SECONDS)

    def _learn(self) -> list[Node | None] | None:
        """Ask one node after the other, those first that had slots; None when no one answers who knows."""
        nodes = list(dict.fromkeys([*filter(None, self._owners), *self._address.nodes]))
        random.shuffle(nodes)
        for node in nodes:
            try:
                return self._ask(node)
            except Exception as error:  # noqa: BLE001 - whatever a node says, it is another's turn, and this goes on
                self._fault = _as_refusal(error)
        return None

    def _ask(self, node: Node) -> list[Node | None]:
        client = redis.Redis.from_url(
            self._address.url_of(*node), socket_timeout=LEARN_SECONDS, socket_connect_timeout=LEARN_SECONDS
        )
        try:
            found: Any = client.execute_command("CLUSTER", "SLOTS")
        finally:
            client.close()
        owners: list[Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        for first, last, master, *_replicas in found:
            host = (master[0] or b"").decode() or node[0]
            for slot in range(first, last + 1):
                owners[slot] = (host, master[1])
        if not found:
            raise redis.ConnectionError("The node knows of no slots")
        return owners


def _as_refusal(error: Exception) -> redis.RedisError:
    """Return what those are told who ask while no node has said who has which slots."""
    if isinstance(error, redis.AuthenticationError | redis.TimeoutError):
        return error
    said = str(error) if isinstance(error, redis.RedisError | OSError) else type(error).__name__
    return redis.ConnectionError(f"No node of the cluster says who has which slots: {said}")


_slots: dict[str, Slots] = {}
_slots_lock = threading.Lock()


def _slots_of(url: str, address: RedisAddress) -> Slots:
    """Return what all of this process's uses of a cluster share."""
    with _slots_lock:
        return _slots.setdefault(url, Slots(address))


class Bound:
    """What a library takes for a client, of the server that has `key`, whichever that is at each command.

    For single commands. A script that is registered with it finds its way by the same key.
    """

    def __init__(self, nodes: Nodes, key: str) -> None:
        self._nodes = nodes
        self._key = key

    def register_script(self, script: bytes) -> Script:
        """Return the script, to be called with keys of the same slot."""
        return Script(cast("redis.Redis", self), script)

    def close(self) -> None:
        """Close all connections."""
        self._nodes.close()

    def __getattr__(self, command: str) -> Callable[..., Any]:
        return lambda *words, **options: self._nodes.run(
            self._key, lambda client: getattr(client, command)(*words, **options)
        )


class Routed:
    """What a library takes for a client whose commands name one key each, first or as `name`."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes

    def __getattr__(self, command: str) -> Callable[..., Any]:
        def run(*words: Any, **options: Any) -> Any:
            key = words[0] if words else options["name"]
            return self._nodes.run(key, lambda client: getattr(client, command)(*words, **options))

        return run
