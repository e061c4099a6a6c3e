"""Whoever has a key is asked, wherever it is now, and nobody waits for longer than the time-outs say."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import redis

from chatapi.redis_nodes import Bound, Nodes, Routed, connect
from tests.support import wait_for
from tests.valkey_many import ValkeyCluster, Watched

BUDGET_SECONDS = 0.3
WAITS = {"socket_timeout": BUDGET_SECONDS, "socket_connect_timeout": BUDGET_SECONDS}
KEYS = [f"chatapi:test:{number}" for number in range(40)]
COUNTERS = [f"chatapi:test:counter:{number}" for number in range(40)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[ValkeyCluster]:
    cluster = ValkeyCluster()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def nodes(cluster: ValkeyCluster) -> Iterator[Nodes]:
    nodes = connect(cluster.url, **WAITS)
    yield nodes
    nodes.close()


def increment(nodes: Nodes, key: str) -> int | None:
    """Return the new value, or None when that failed; hold that either takes no longer than it may."""
    began_at = time.monotonic()
    try:
        return int(nodes.run(key, lambda client: client.incr(key)))
    except (redis.RedisError, OSError):
        return None
    finally:
        assert time.monotonic() - began_at < 3 * BUDGET_SECONDS


def test_keys_of_all_masters_are_written_and_read(nodes: Nodes, cluster: ValkeyCluster) -> None:
    routed = Routed(nodes)

    for key in KEYS:
        routed.set(key, key)

    assert [routed.get(key) for key in KEYS] == [key.encode() for key in KEYS]
    groups = nodes.grouped(KEYS)
    assert len(groups) == len(list(nodes.everyone())) == 3
    assert sorted(position for group in groups for position in group) == list(range(len(KEYS)))
    for group in groups:
        assert len({cluster.owner(KEYS[position]).port for position in group}) == 1


def test_script_goes_where_its_key_is(nodes: Nodes) -> None:
    for key in KEYS[:10]:
        script = Bound(nodes, key).register_script(b"return redis.call('APPEND', KEYS[1], ARGV[1])")
        nodes.run(key, lambda client, key=key: client.delete(key))  # type: ignore[misc]

        assert [script([key], ["xy"]), script([key], ["z"])] == [2, 3]


def test_slot_that_moved_is_followed(nodes: Nodes, cluster: ValkeyCluster) -> None:
    key = "chatapi:test:{moving}"
    increment(nodes, key)
    old = cluster.owner(key)
    new = next(server for server in cluster.servers[:3] if server is not old)
    slot, old_id, new_id = new.ask("CLUSTER", "KEYSLOT", key), old.ask("CLUSTER", "MYID"), new.ask("CLUSTER", "MYID")
    old.ask("DEL", key)
    new.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", old_id)
    old.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", new_id)
    for server in (new, old):
        server.ask("CLUSTER", "SETSLOT", slot, "NODE", new_id)

    assert [increment(nodes, key) for _ in range(3)] == [1, 2, 3]
    assert cluster.owner(key) is new


def test_no_use_waits_longer_than_it_may_when_all_nodes_hang(nodes: Nodes, cluster: ValkeyCluster) -> None:
    increment(nodes, COUNTERS[0])
    unknown = connect(f"{cluster.url}?client_name=another", **WAITS)

    with ExitStack() as stack:
        for server in cluster.servers:
            stack.enter_context(server.frozen())
        assert {increment(each, key) for each in (nodes, unknown) for key in COUNTERS[:6]} == {None}

    wait_for(lambda: all(increment(each, key) for each in (nodes, unknown) for key in COUNTERS[:6]))
    unknown.close()


@pytest.mark.slow
@pytest.mark.parametrize("is_killed", [True, False])
def test_replica_is_found_when_a_master_is_away(nodes: Nodes, cluster: ValkeyCluster, is_killed: bool) -> None:
    key = "chatapi:test:{failing}"
    wait_for(cluster.is_whole)
    assert increment(nodes, key)
    old = cluster.owner(key)

    with ExitStack() as stack:
        if is_killed:
            old.kill()
            stack.callback(old.start)
        else:
            stack.enter_context(old.frozen())
        wait_for(lambda: increment(nodes, key), seconds=15, every=0.05)
        assert all(increment(nodes, each) for each in COUNTERS)

    wait_for(cluster.is_whole)
    assert all(increment(nodes, each) for each in (key, *COUNTERS))


@pytest.mark.slow
def test_new_master_is_found_when_sentinels_name_one() -> None:
    watched = Watched()
    try:
        watched.start()
        nodes = connect(watched.url, **WAITS)
        assert increment(nodes, "a") == 1
        watched.master.kill()

        wait_for(lambda: increment(nodes, "a"), seconds=20, every=0.05)

        with ExitStack() as stack:
            stack.enter_context(watched.replica.frozen())
            for sentinel in watched.sentinels:
                stack.enter_context(sentinel.frozen())
            assert [increment(nodes, "a") for _ in range(5)] == [None] * 5
        wait_for(lambda: increment(nodes, "a"), seconds=20)
        nodes.close()
    finally:
        watched.stop()
