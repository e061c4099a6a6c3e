"""Whoever has a key is asked, wherever it is now, and nobody waits for longer than the time-outs say."""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
import redis
from dramatiq import Message
from dramatiq.errors import ConnectionClosed
from flask import Flask

from chatapi.bell import NAMESPACE
from chatapi.breaker import CircuitOpenError
from chatapi.broker import QueueBroker, check_eviction_policy
from chatapi.chatrooms.live import BEGINNING, MOST_WAIT_SECONDS, LiveReplies, Piece
from chatapi.doctor.redis_probe import probe
from chatapi.limits import KEY_PREFIX, RequestCounts
from chatapi.redis_nodes import Bound, Nodes, Routed, connect
from tests.support import Services, wait_for
from tests.valkey_many import Server, ValkeyCluster, Watched

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
    assert len(groups) == len(nodes.each(lambda client: client.ping())) == 3
    assert sorted(position for group in groups.values() for position in group) == list(range(len(KEYS)))
    for place, group in groups.items():
        assert {f"127.0.0.1:{cluster.owner(KEYS[position]).port}" for position in group} == {place}


def test_script_goes_where_its_key_is(nodes: Nodes) -> None:
    for key in KEYS[:10]:
        script = Bound(nodes, key).register_script(b"return redis.call('APPEND', KEYS[1], ARGV[1])")
        nodes.run(key, lambda client, key=key: client.delete(key))  # type: ignore[misc]

        assert [script([key], ["xy"]), script([key], ["z"])] == [2, 3]


def test_slot_that_moved_is_followed(nodes: Nodes, cluster: ValkeyCluster) -> None:
    key = "chatapi:test:{moving}"
    increment(nodes, key)
    old = cluster.owner(key)
    new = next(server for server in cluster.masters() if server is not old)
    cluster.move_slot(key, new)

    assert [increment(nodes, key) for _ in range(3)] == [2, 3, 4]
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


def test_reason_is_given_when_no_node_says_who_has_which_slots(cluster: ValkeyCluster, services: Services) -> None:
    for url, reason in {
        f"redis+cluster://127.0.0.1:{services.valkey.port}": "cluster support disabled",
        "redis+cluster://127.0.0.1:1": "refused",
        cluster.url.replace("//", "//somebody:wrong@"): "username-password pair",
    }.items():
        nodes = connect(url, **WAITS)

        def reason_of(nodes: Nodes = nodes) -> str:
            with pytest.raises(redis.RedisError) as caught:
                nodes.run("a", lambda client: client.get("a"))
            return str(caught.value)

        wait_for(lambda reason_of=reason_of, reason=reason: reason in reason_of())  # type: ignore[misc]
        nodes.close()


def test_cluster_is_learned_from_others_when_a_node_talks_nonsense(
    cluster: ValkeyCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatapi.redis_slots.random.sample", lambda nodes, _count: list(nodes))
    before = set(threading.enumerate())
    with socket.create_server(("127.0.0.1", 0)) as server:
        asked: list[bytes] = []
        threading.Thread(target=talk_nonsense, args=[server, asked], daemon=True).start()
        port = server.getsockname()[1]
        nodes = connect(cluster.url.replace("//", f"//127.0.0.1:{port},"), **WAITS)
        learners: set[threading.Thread] = set()

        def is_incremented() -> bool:
            found = increment(nodes, COUNTERS[0])
            learners.update(each for each in threading.enumerate() if each.name == "redis-slots" and each not in before)
            return found is not None

        wait_for(is_incremented)

        assert asked
        assert len(learners) == 1  # It went on, and was not begun anew.
        nodes.close()


def test_node_of_a_cluster_is_not_taken_for_a_whole_redis(cluster: ValkeyCluster) -> None:
    probed = probe(f"redis://127.0.0.1:{master_without_queue(cluster).port}", writes=True, counts_queues=True)

    assert probed.fault == "it is a node of a cluster, and others have some of the keys"


def test_probe_looks_at_every_master_and_writes_where_the_queue_is(cluster: ValkeyCluster) -> None:
    queue, other = cluster.owner(NAMESPACE), master_without_queue(cluster)
    other.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    queue.ask("CONFIG", "SET", "maxmemory", "1")

    try:
        probes = [probe(cluster.url, writes=True, counts_queues=False) for _ in range(4)]
    finally:
        queue.ask("CONFIG", "SET", "maxmemory", "0")
        other.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")

    assert {(each.masters, each.policy, each.max_bytes) for each in probes} == {(3, "allkeys-lru", 1)}
    assert all("memory" in (each.fault or "") for each in probes)


def test_streams_of_other_servers_go_on_when_one_hangs(cluster: ValkeyCluster) -> None:
    live, hanging = LiveReplies(cluster.url, most_readers=8), master_without_queue(cluster)
    pieces = [Piece(uuid4(), 1, 0, "text", is_first=True) for _ in range(30)]
    is_away = {piece: cluster.owner(f"chatapi:live:{{{piece.message_id}}}") is hanging for piece in pieces}
    pieces.sort(key=lambda piece: not is_away[piece])  # Whose the first one is must make no difference.
    assert set(is_away.values()) == {True, False}
    assert live.append(pieces) == [True] * len(pieces)

    with hanging.frozen():
        for number in range(1, 4):
            more = [replace(piece, text="more", offset=4 * number, is_first=False) for piece in pieces]
            assert live.append(more) == [None if is_away[piece] else True for piece in pieces]


def test_stream_whose_slot_moved_is_followed_among_others(cluster: ValkeyCluster) -> None:
    live, server = LiveReplies(cluster.url, most_readers=8), master_without_queue(cluster)
    there = (Piece(uuid4(), 1, 0, "text", is_first=True) for _ in range(200))
    pieces = [each for each in there if cluster.owner(f"chatapi:live:{{{each.message_id}}}") is server][:4]
    wait_for(lambda: live.append(pieces) == [True] * 4)  # It may rest from another test.
    elsewhere = next(other for other in cluster.masters() if other is not server)

    cluster.move_slot(f"chatapi:live:{{{pieces[0].message_id}}}", elsewhere)

    more = [replace(piece, text="more", offset=4, is_first=False) for piece in pieces]
    assert live.append(more) == [None, True, True, True]
    assert live.append(more) == [True] * 4


def test_users_of_other_servers_are_counted_on_when_one_hangs(cluster: ValkeyCluster) -> None:
    counts, hanging = RequestCounts(cluster.url), master_without_queue(cluster)
    names = [f"user {uuid4()}" for _ in range(12)]
    with_others = [name for name in names if cluster.owner(f"{KEY_PREFIX}{name}") is not hanging]
    for name in names:
        counts.add(name, 60, 1)

    with hanging.frozen():
        for name in names:
            counts.add(name, 60, 1)

    assert 0 < len(with_others) < len(names)
    assert [counts.add(name, 60, 0)[0] for name in with_others] == [2] * len(with_others)


def test_start_is_refused_for_a_node_that_evicts_though_another_hangs(
    cluster: ValkeyCluster, make_app: Callable[..., Flask]
) -> None:
    app = make_app(REDIS_URL=cluster.url)
    hanging = master_without_queue(cluster)
    evicting = next(server for server in cluster.masters() if server not in {hanging, cluster.owner(NAMESPACE)})
    evicting.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")

    try:
        with hanging.frozen():
            assert "allkeys-lru" in (check_eviction_policy(app) or "")
    finally:
        evicting.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
    assert check_eviction_policy(app) is None


def test_readiness_says_so_when_the_queue_is_being_moved(
    cluster: ValkeyCluster, make_app: Callable[..., Flask]
) -> None:
    client = make_app(REDIS_URL=cluster.url).test_client()

    def readiness() -> str:
        said: str = client.get("/health/ready").get_json()["checks"]["redis"]
        return said

    wait_for(lambda: readiness() == "ok")
    with queue_half_moved(cluster):
        assert readiness() == "unavailable (AskError)"
        fault = probe(cluster.url, writes=True, counts_queues=True).fault

    assert fault == "the queue's slot of the cluster is being moved to another node"
    assert readiness() == "ok"


def test_messages_are_acknowledged_after_a_move_of_the_queue(cluster: ValkeyCluster) -> None:
    broker = QueueBroker(connect(cluster.url, socket_timeout=5, socket_connect_timeout=5), middleware=[])
    broker.declare_queue("moved")
    broker.enqueue(Message(queue_name="moved", actor_name="any", args=(), kwargs={}, options={}))
    consumer = broker.consume("moved", prefetch=4, timeout=50)
    taken = wait_for(lambda: next(consumer))
    with queue_half_moved(cluster):
        with pytest.raises(ConnectionClosed):
            consumer.ack(taken)
        with pytest.raises(ConnectionClosed):
            next(consumer)

    cluster.move_slot(NAMESPACE, master_without_queue(cluster))
    consumer.ack(taken)

    assert cluster.owner(NAMESPACE).ask("HLEN", f"{NAMESPACE}:moved.msgs") == 0
    broker.nodes.close()


def test_master_that_became_a_replica_is_lost_to_consumers(tmp_path: Path) -> None:
    one, other = Server(tmp_path / "one"), Server(tmp_path / "other")
    for server in (one, other):
        server.start()
    broker = QueueBroker(connect(f"redis://127.0.0.1:{one.port}", socket_timeout=5), middleware=[])
    broker.declare_queue("left")
    broker.enqueue(Message(queue_name="left", actor_name="any", args=(), kwargs={}, options={}))
    consumer = broker.consume("left", prefetch=4, timeout=20_000)
    try:
        taken = wait_for(lambda: next(consumer))
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(deque, consumer, 0)  # It waits for a bell again and again.
            wait_for(lambda: one.ask("INFO", "clients")["blocked_clients"] == 1)
            one.ask("REPLICAOF", "127.0.0.1", other.port)
            assert type(waiting.exception(5)) is ConnectionClosed
        for lost in (lambda: consumer.ack(taken), lambda: consumer.requeue([taken]), lambda: next(consumer)):
            with pytest.raises(ConnectionClosed):
                lost()
    finally:
        broker.nodes.close()
        for server in (one, other):
            server.child.stop()


def master_without_queue(cluster: ValkeyCluster) -> Server:
    """Return a master that has not got the queue."""
    queue = cluster.owner(NAMESPACE)
    return next(server for server in cluster.masters() if server is not queue)


@contextmanager
def queue_half_moved(cluster: ValkeyCluster) -> Iterator[None]:
    """Have the queue's slot on its way to another master within the block."""
    old, new = cluster.owner(NAMESPACE), master_without_queue(cluster)
    slot = old.ask("CLUSTER", "KEYSLOT", NAMESPACE)
    old.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", new.ask("CLUSTER", "MYID"))
    try:
        yield
    finally:
        old.ask("CLUSTER", "SETSLOT", slot, "STABLE")


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
def test_those_who_wait_at_a_master_that_hangs_are_told_when_its_replica_has_taken_over(cluster: ValkeyCluster) -> None:
    wait_for(cluster.is_whole)
    live, hanging = LiveReplies(cluster.url, most_readers=8), master_without_queue(cluster)
    there = (Piece(uuid4(), 1, 0, "text", is_first=True) for _ in range(100))
    piece = next(each for each in there if cluster.owner(f"chatapi:live:{{{each.message_id}}}") is hanging)

    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(live.read, piece.message_id, BEGINNING, MOST_WAIT_SECONDS) for _ in range(4)]
        with hanging.frozen():
            wait_for(lambda: live.append([piece]) == [True], seconds=15)
            # The client of the new master is made, and that of the old one let go.
            assert [written.text for written in live.read(piece.message_id, BEGINNING, MOST_WAIT_SECONDS)] == ["text"]
            assert [type(each.exception()) for each in waiting] == [CircuitOpenError] * len(waiting)
    wait_for(cluster.is_whole)


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


def talk_nonsense(server: socket.socket, asked: list[bytes]) -> None:
    """Say OK to whatever is asked, and note it."""
    with suppress(OSError):
        while True:
            connection, _ = server.accept()
            with connection, suppress(OSError):
                while words := connection.recv(4096):
                    asked.append(words)
                    connection.sendall(b"+OK\r\n" * 4)
