"""A Valkey cluster of three masters and three replicas on loopback, and one that Sentinels watch."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import redis

from chatapi.dev.embedded import EmbeddedValkey, free_port
from chatapi.dev.processes import Child, stop_all
from tests.support import wait_for

MASTERS = 3
NODE_TIMEOUT_MS = 1500
"""After so long a silence a master is said to have failed, and a replica takes its place."""


class Process:
    """A server that can be killed, and made to hang."""

    child: Child

    def kill(self) -> None:
        os.kill(self.child.pid or 0, signal.SIGKILL)
        wait_for(lambda: not self.child.is_running())

    @contextmanager
    def frozen(self) -> Iterator[None]:
        os.kill(self.child.pid or 0, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.child.pid or 0, signal.SIGCONT)


class Server(Process):
    """One Valkey, alone or part of something."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = free_port()
        embedded = EmbeddedValkey(folder, self.port)
        embedded.prepare()
        self._wait_ready = embedded.wait_ready
        self.child = embedded.child(log=folder / "log")
        self.child.argv += options

    def start(self) -> None:
        self.child.start()
        assert self._wait_ready(), "Valkey does not start"

    def ask(self, *words: Any) -> Any:
        with redis.Redis(port=self.port, decode_responses=True, socket_timeout=5) as client:
            return client.execute_command(*words)


class Sentinel(Process):
    """One that watches a master, and with others names another when that is away."""

    def __init__(self, folder: Path, service: str, master: Server) -> None:
        self.port = free_port()
        self._service = service
        folder.mkdir()
        conf = folder / "sentinel.conf"
        conf.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {folder}\n"
            f"sentinel monitor {service} 127.0.0.1 {master.port} 2\n"
            f"sentinel down-after-milliseconds {service} 1000\n"
            f"sentinel failover-timeout {service} 5000\n"
        )
        self.child = Child("sentinel", [master.child.argv[0], conf, "--sentinel"], log=folder / "log")

    def sees_all(self) -> bool:
        """Return whether it knows the replica and the others."""
        try:
            with redis.Redis(port=self.port, decode_responses=True, socket_timeout=5) as client:
                state: Any = client.sentinel_master(self._service)
        except redis.RedisError:
            return False
        return bool(state["num-slaves"] == 1 and state["num-other-sentinels"] == 2)


class ValkeyCluster:
    """Six servers: masters first, then their replicas in the same order."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="chatapi-cluster-"))
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", str(NODE_TIMEOUT_MS))
        # The port of the cluster's bus is some 10,000 higher unless told, where there may be no ports.
        self.servers = [
            Server(self.folder / str(number), *options, "--cluster-port", str(free_port()))
            for number in range(2 * MASTERS)
        ]
        self.url = "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in self.servers)

    def start(self) -> None:
        for server in self.servers:
            server.start()
        masters, replicas = self.servers[:MASTERS], self.servers[MASTERS:]
        bounds = [round(16384 * number / MASTERS) for number in range(MASTERS + 1)]
        for master, (first, next_one) in zip(masters, pairwise(bounds), strict=True):
            master.ask("CLUSTER", "ADDSLOTSRANGE", first, next_one - 1)
        for number, server in enumerate(self.servers):
            server.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            bus = server.child.argv[-1]
            self.servers[0].ask("CLUSTER", "MEET", "127.0.0.1", server.port, bus)
        wait_for(lambda: all(_knows(server, 2 * MASTERS) for server in self.servers))
        for master, replica in zip(masters, replicas, strict=True):
            replica.ask("CLUSTER", "REPLICATE", master.ask("CLUSTER", "MYID"))
        wait_for(self.is_whole)

    def is_whole(self) -> bool:
        """Return whether all nodes agree that all is well, each master with a replica that is up to date."""
        try:
            return self._is_whole()
        except redis.RedisError:
            return False

    def _is_whole(self) -> bool:
        infos = [server.ask("INFO", "replication") for server in self.servers]
        fed = [info for info in infos if info["role"] == "master" and info["connected_slaves"] == 1]
        linked = [info for info in infos if info["role"] == "slave" and info["master_link_status"] == "up"]
        states = [server.ask("CLUSTER INFO")["cluster_state"] for server in self.servers]
        return len(fed) == len(linked) == MASTERS and set(states) == {"ok"}

    def masters(self) -> list[Server]:
        return [server for server in self.servers if server.ask("ROLE")[0] == "master"]

    def move_slot(self, key: str, to: Server) -> None:
        """Give a key's slot to another master, with all keys in it."""
        old = self.owner(key)
        slot, old_id, new_id = to.ask("CLUSTER", "KEYSLOT", key), old.ask("CLUSTER", "MYID"), to.ask("CLUSTER", "MYID")
        to.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", old_id)
        old.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", new_id)
        if keys := old.ask("CLUSTER", "GETKEYSINSLOT", slot, 1000):
            old.ask("MIGRATE", "127.0.0.1", to.port, "", 0, 5000, "KEYS", *keys)
        for server in (to, old):
            server.ask("CLUSTER", "SETSLOT", slot, "NODE", new_id)

    @contextmanager
    def without_failover(self) -> Iterator[None]:
        """Have no replica take over within the block, and the other masters go on meanwhile."""
        for server in self.servers:
            server.ask("CONFIG", "SET", "cluster-replica-no-failover", "yes", "cluster-require-full-coverage", "no")
        try:
            yield
        finally:
            for server in self.servers:
                server.ask("CONFIG", "SET", "cluster-replica-no-failover", "no", "cluster-require-full-coverage", "yes")

    def owner(self, key: str) -> Server:
        """Return which server has a key now, as one says that is running."""
        asked = next(server for server in self.servers if server.child.is_running())
        slot = asked.ask("CLUSTER", "KEYSLOT", key)
        for first, last, master, *_replicas in _slots(asked):
            if first <= slot <= last:
                return next(server for server in self.servers if server.port == master[1])
        raise AssertionError(f"nobody has slot {slot}")

    def stop(self) -> None:
        stop_all([server.child for server in self.servers])
        shutil.rmtree(self.folder, ignore_errors=True)


class Watched:
    """A master, a replica, and three Sentinels."""

    SERVICE = "chat"

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="chatapi-sentinel-"))
        self.master = Server(self.folder / "master")
        self.replica = Server(self.folder / "replica", "--replicaof", "127.0.0.1", str(self.master.port))
        self.sentinels = [Sentinel(self.folder / f"sentinel-{n}", self.SERVICE, self.master) for n in range(3)]
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        self.url = f"redis+sentinel://{hosts}/{self.SERVICE}"

    def start(self) -> None:
        for server in (self.master, self.replica):
            server.start()
        for sentinel in self.sentinels:
            sentinel.child.start()
        wait_for(lambda: all(sentinel.sees_all() for sentinel in self.sentinels), seconds=40)

    def stop(self) -> None:
        stop_all([each.child for each in (*self.sentinels, self.master, self.replica)])
        shutil.rmtree(self.folder, ignore_errors=True)


def _slots(server: Server) -> list[Any]:
    found = server.ask("CLUSTER", "SLOTS")
    return list(found)


def _knows(server: Server, number: int) -> bool:
    return int(server.ask("CLUSTER INFO")["cluster_known_nodes"]) == number
