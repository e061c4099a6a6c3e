"""Queue, cache, limits and streams in a Redis Cluster of three masters and three replicas, one of which is killed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import pytest
import redis

from chatapi.broker import NAMESPACE
from chatapi.limits import KEY_PREFIX
from chatapi.redis_nodes import Nodes, connect
from tests.support import Account, wait_for
from tests.system.events import Reader
from tests.system.prompting import Prompting, assert_all_accepted_and_answered_once
from tests.system.support import System, finish
from tests.valkey_many import Server, ValkeyCluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def cluster(running_system: System) -> Iterator[ValkeyCluster]:
    cluster = ValkeyCluster()
    try:
        cluster.start()
        yield cluster
        running_system.use({})
    finally:
        cluster.stop()


@pytest.fixture
def system(running_system: System, cluster: ValkeyCluster) -> System:
    """The system, with everything that it has in Redis in the cluster."""
    wait_for(cluster.is_whole)
    running_system.use({"REDIS_URL": cluster.url})
    running_system.mend()
    return running_system


def keys_by_server(cluster: ValkeyCluster) -> list[set[str]]:
    """Return what each master has."""
    return [set(server.ask("KEYS", "*")) for server in cluster.masters()]


def test_every_use_has_its_keys_in_the_cluster(system: System, someone: Account, cluster: ValkeyCluster) -> None:
    # So many that each master has some of the streams: that one has none is a matter of one in 10,000,000.
    rooms = [someone.open_room(title=f"cluster {number}") for number in range(40)]
    assert someone.call("GET", "/chatroom").status_code == 200
    replies = [someone.prompt(room, "[[words=40 latency_ms=300]] hello") for room in rooms]
    with ThreadPoolExecutor(len(rooms)) as pool:
        readers = [Reader(someone, room, reply) for room, reply in zip(rooms, replies, strict=True)]
        for reading in [pool.submit(reader.read_to_end, 60) for reader in readers]:
            reading.result()

    for room, reply_id, reader in zip(rooms, replies, readers, strict=True):
        reply = someone.read(room, reply_id)
        assert (reply["status"], reply["content"]) == ("completed", reader.text)
    found = keys_by_server(cluster)
    everything = set().union(*found)
    for prefix in (f"{NAMESPACE}:", KEY_PREFIX, "chatapi:cache:rooms:", "chatapi:live:"):
        assert any(key.startswith(prefix) for key in everything), prefix
    live = [sum(key.startswith("chatapi:live:") for key in keys) for keys in found]
    assert min(live) > 0, live
    assert system.client.get("/health/ready").get_json()["checks"]["redis"] == "ok"


@pytest.mark.parametrize(
    ("has_queue", "is_killed"), [(True, True), (True, False), (False, True)], ids=["killed", "frozen", "another killed"]
)
def test_nothing_accepted_is_lost_when_a_master_fails_under_load(
    system: System, someone: Account, people: list[Account], cluster: ValkeyCluster, has_queue: bool, is_killed: bool
) -> None:
    queue = cluster.owner(NAMESPACE)
    failing = queue if has_queue else next(server for server in cluster.masters() if server is not queue)
    room_id = someone.open_room(title="during")

    with Prompting(people, pause_seconds=0.2) as load:
        time.sleep(2)
        with away(failing, is_killed=is_killed):
            time.sleep(5)
            # Its replica has taken over, and is rung on.
            assert finish(someone, room_id, someone.prompt(room_id, "during"), 20)["status"] == "completed"
        time.sleep(4)

    assert_all_accepted_and_answered_once(system, people, load)


def test_streams_go_on_at_other_masters_when_one_hangs(
    system: System, someone: Account, cluster: ValkeyCluster
) -> None:
    queue = cluster.owner(NAMESPACE)
    hanging = next(server for server in cluster.masters() if server is not queue)
    rooms = [someone.open_room(title=f"streams {number}") for number in range(12)]
    replies = [someone.prompt(room, "[[words=200 chunk_ms=100]] slowly") for room in rooms]
    wait_for(lambda: len(system.asked("slowly")) == len(rooms))
    with_others = [
        (room, reply)
        for room, reply in zip(rooms, replies, strict=True)
        if cluster.owner(f"chatapi:live:{{{reply}}}") is not hanging
    ]
    readers = [Reader(someone, *each) for each in with_others]

    with ThreadPoolExecutor(len(readers)) as pool:
        readings = [pool.submit(reader.read_to_end, 60) for reader in readers]
        with cluster.without_failover(), hanging.frozen():
            began_at = time.monotonic()
            time.sleep(6)
            ended_at = time.monotonic()
        for reading in readings:
            reading.result()

    for (room, reply_id), reader in zip(with_others, readers, strict=True):
        assert reader.text == someone.read(room, reply_id)["content"]
        # It came piece by piece meanwhile, of which there are some 60.
        meanwhile = [event for event in reader.events if event.name == "delta" and began_at + 1 < event.at < ended_at]
        assert len(meanwhile) > 10
    for room, reply_id in zip(rooms, replies, strict=True):
        assert finish(someone, room, reply_id)["status"] == "completed"


def test_workers_are_rung_for_again_after_a_failover(system: System, someone: Account, cluster: ValkeyCluster) -> None:
    room = someone.open_room(title="after")
    finish(someone, room, someone.prompt(room, "before"))
    nodes = connect(cluster.url, socket_timeout=1, socket_connect_timeout=1)
    with away(cluster.owner(NAMESPACE), is_killed=True), closing(nodes):
        wait_for(lambda: _answers(nodes), every=0.2)
        time.sleep(8)  # What rests after a failure, and looks for the new master, has done so.
        system["sweeper"].stop()
        try:
            for number in range(10):
                reply = finish(someone, room, someone.prompt(room, f"after {number}"))
                assert reply["status"] == "completed"
        finally:
            system["sweeper"].start()


@contextmanager
def away(server: Server, *, is_killed: bool) -> Iterator[None]:
    """Have a server dead or frozen within the block."""
    if not is_killed:
        with server.frozen():
            yield
        return
    server.kill()
    try:
        yield
    finally:
        server.start()


def _answers(nodes: Nodes) -> bool:
    try:
        return bool(nodes.run(NAMESPACE, lambda client: client.set(f"{NAMESPACE}:probe", 1, ex=1)))
    except (redis.RedisError, OSError):
        return False
