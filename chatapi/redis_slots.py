"""Which node of a Redis Cluster has which slots: learned in a thread, from any node that answers.

Asking within a use would make that wait for one node after the other ([redis_nodes](redis_nodes.py)).
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
import structlog
from redis.crc import REDIS_CLUSTER_HASH_SLOTS
from redis.exceptions import AskError, ClusterDownError, MovedError, TryAgainError

from config_redis import RedisAddress

Node = tuple[str, int]
"""A host and a port."""

UNNAMED = ("", "?")
"""What nodes say for a host that they do not know: then it is the one that was asked."""

OF_ONE_SLOT = (AskError, MovedError, TryAgainError)
"""What a node says that is well, and has a key no more, or not yet."""

LEARN_SECONDS = 1.0
"""How long a node may take to say which has which slots."""

LOOK_AGAIN_SECONDS = 0.5
"""How long they are left alone between two questions while something is wrong."""

ALERT_SECONDS = 15.0
"""For how long after a failure: a failover takes the cluster's `cluster-node-timeout` and more."""

REFRESH_SECONDS = 5.0
"""The same when nothing is wrong: a process that is idle is to know of a failover before its next use."""

log = structlog.get_logger(__name__)


class Slots:
    """Which node has which slots of a cluster, as the last node said that was asked."""

    def __init__(self, address: RedisAddress) -> None:
        self._address = address
        self._owners: list[Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._fault: Exception | None = None
        self._lock = threading.Lock()
        self._is_known = threading.Event()
        self._is_suspect = threading.Event()
        self._alert_until = 0.0
        self._learner: threading.Thread | None = None

    def wait(self, patience: float) -> None:
        """Wait until anything is known. Raises `redis.ConnectionError` after `patience` seconds."""
        self._known(patience)

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
        self._known(patience)
        return self.last_masters()

    def last_masters(self) -> list[Node]:
        """Return all that have slots as far as is known, without waiting."""
        return list(dict.fromkeys(node for node in self._owners if node is not None))

    def moved(self, error: MovedError, asked: Node) -> Node:
        """Note where a slot is now, which `asked` had been asked for; return that."""
        node = (asked[0] if error.host in UNNAMED else error.host, error.port)
        with self._lock:
            self._owners[error.slot_id % REDIS_CLUSTER_HASH_SLOTS] = node
        self._suspect()
        return node

    def notice(self, error: Exception) -> None:
        """Note what a command of several was answered with, whose error nobody raises."""
        asked = self._owners[error.slot_id % REDIS_CLUSTER_HASH_SLOTS] if isinstance(error, MovedError) else None
        if isinstance(error, MovedError) and asked is not None:
            self.moved(error, asked)
        else:
            self._suspect()

    @contextmanager
    def noticing(self) -> Iterator[None]:
        """Have everything looked at again after a failure within the block that may come from a change."""
        try:
            yield
        except (redis.ConnectionError, redis.TimeoutError, ClusterDownError, *OF_ONE_SLOT, OSError):
            self._suspect()
            raise

    def _suspect(self) -> None:
        self._alert_until = time.monotonic() + ALERT_SECONDS
        self._is_suspect.set()

    def _known(self, patience: float) -> list[Node | None]:
        if not self._is_learning():
            self._begin_to_learn()
        if not self._is_known.wait(patience):
            raise _refusal(self._fault)
        return self._owners

    def _is_learning(self) -> bool:
        """Return whether the thread lives, which it does not after a fork."""
        return self._learner is not None and self._learner.is_alive()

    def _begin_to_learn(self) -> None:
        with self._lock:
            if self._is_learning():
                return
            learner = threading.Thread(target=self._learn_for_ever, name="redis-slots", daemon=True)
            try:
                learner.start()
            except RuntimeError as error:  # There are too many threads.
                raise redis.ConnectionError(str(error)) from error
            self._learner = learner

    def _learn_for_ever(self) -> None:
        is_known = True
        while True:
            self._is_suspect.clear()
            owners = self._learn()
            if owners is not None:
                with self._lock:
                    self._owners = owners
                self._is_known.set()
            elif is_known:
                log.warning("redis_cluster_unknown", server=self._address.place, reason=type(self._fault).__name__)
            is_known = owners is not None
            if is_known and time.monotonic() >= self._alert_until:
                self._is_suspect.wait(REFRESH_SECONDS)
            time.sleep(LOOK_AGAIN_SECONDS)

    def _learn(self) -> list[Node | None] | None:
        """Ask one node after the other, masters first; None when no one answers who knows all.

        A node that is cut off from the others knows what was; it is believed when there is nothing better to begin
        with.
        """
        masters = self.last_masters()
        others = [node for node in self._address.nodes if node not in masters]
        outdated = None
        for node in (*random.sample(masters, len(masters)), *random.sample(others, len(others))):
            try:
                is_sound, owners = self._ask(node)
            except Exception as error:  # noqa: BLE001 - whatever a node says, it is another's turn, and this goes on
                self._fault = error
                continue
            if is_sound:
                self._fault = None
                return owners
            self._fault, outdated = redis.ConnectionError("The node is out of touch with the cluster"), owners
        return None if self._is_known.is_set() else outdated

    def _ask(self, node: Node) -> tuple[bool, list[Node | None]]:
        """Return what a node says of all slots, and whether it is in touch with the cluster."""
        client = redis.Redis.from_url(
            self._address.url_of(*node), socket_timeout=LEARN_SECONDS, socket_connect_timeout=LEARN_SECONDS
        )
        try:
            found: Any = client.execute_command("CLUSTER", "SLOTS")
            state: Any = client.execute_command("CLUSTER", "INFO")
        finally:
            client.close()
        owners: list[Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        for first, last, master, *_replicas in found:
            host = (master[0] or b"").decode()
            for slot in range(first, last + 1):
                owners[slot] = (node[0] if host in UNNAMED else host, master[1])
        if not found:
            raise redis.ConnectionError("The node knows of no slots")
        return b"cluster_state:ok" in state, owners


def _refusal(fault: Exception | None) -> redis.RedisError:
    """Return what those are told who ask while no node has said who has which slots: a new error for each."""
    if isinstance(fault, redis.AuthenticationError | redis.TimeoutError):
        return type(fault)(str(fault))
    said = str(fault) if isinstance(fault, redis.RedisError | OSError) else type(fault).__name__
    return redis.ConnectionError("No node of the cluster says who has which slots" + (f": {said}" if fault else ""))


_slots: dict[str, Slots] = {}
_slots_lock = threading.Lock()


def slots_of(url: str, address: RedisAddress) -> Slots:
    """Return what all of this process's uses of a cluster share."""
    with _slots_lock:
        if url not in _slots:
            _slots[url] = Slots(address)
        return _slots[url]
