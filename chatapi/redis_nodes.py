"""Who has a key: one Redis, the master that Sentinels name, or the cluster node that holds its slot.

A use names its key and gets a client of whoever has it (`Nodes.run`). It waits for that one alone, by the time-outs
that it brought: which node has which slots is learned beside it (`redis_slots`). redis-py's own cluster client asks
one node after the other within the call, for as long as they all take together
([0035](../docs/decisions/0035-redis-cluster-by-the-slot.md)).
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar, cast

import redis
from redis.backoff import NoBackoff
from redis.commands.core import Script
from redis.connection import parse_url
from redis.crc import key_slot
from redis.exceptions import MovedError
from redis.retry import Retry
from redis.sentinel import Sentinel

from chatapi.redis_slots import LEARN_SECONDS, Node, slots_of
from config_redis import RedisAddress, bracketed, redis_address

T = TypeVar("T")
MOST_HOPS = 3
"""How often a use follows a slot that moved: more than once only when it moves again meanwhile."""


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
    def grouped(self, keys: Sequence[str]) -> dict[str, list[int]]:
        """Return the positions of `keys` by the place of the server that has them, as `place_of` says it.

        Waits as long as connecting may take while nothing is known of them.
        """

    @abstractmethod
    def notice(self, error: Exception) -> None:
        """Learn from an error that a pipeline has kept to itself: `run` sees only what is raised."""

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
        return OneServer(address.servers, *_watched(address, options))
    return OneServer(address.servers, redis.Redis.from_url(url, **options))


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

    def grouped(self, keys: Sequence[str]) -> dict[str, list[int]]:
        return {self._place: list(range(len(keys)))} if keys else {}

    def notice(self, error: Exception) -> None:
        pass  # There is nobody else to ask.

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
    parameters: dict[str, Any] = parse_url(address.url_of("localhost", 1))
    for name in ("host", "port", "connection_class"):
        parameters.pop(name, None)
    tls = {name: value for name, value in parameters.items() if name.startswith("ssl_")}
    patience = options.get("socket_connect_timeout")
    share = patience / len(address.nodes) if patience else None
    # Without a word about it, these clients would try ten times; those of a URL do not.
    once = Retry(NoBackoff(), 0)
    waits = {"socket_timeout": share, "socket_connect_timeout": share, "retry": once}
    sentinels = Sentinel(
        address.nodes, sentinel_kwargs={**dict(address.sentinel_options), **tls, "ssl": address.has_tls, **waits}
    )
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
        self._slots = slots_of(url, address)
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
        return self._address.servers if node is None else bracketed(*node)

    def grouped(self, keys: Sequence[str]) -> dict[str, list[int]]:
        with suppress(redis.RedisError):
            self._slots.wait(self._patience)
        groups: dict[str, list[int]] = {}
        for position, key in enumerate(keys):
            groups.setdefault(self.place_of(key), []).append(position)
        return groups

    def notice(self, error: Exception) -> None:
        self._slots.notice(error)

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
            if node not in self._clients:
                for gone in self._clients.keys() - self._slots.last_masters():
                    # Who waits for an answer there comes to the end of the time-out, or of the connection.
                    self._clients.pop(gone).connection_pool.disconnect(inuse_connections=False)
                self._clients[node] = redis.Redis.from_url(self._address.url_of(*node), **self._options)
            return self._clients[node]


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
