"""What the doctor says of Redis, with the real thing wrong."""

from __future__ import annotations

import redis

from chatapi.dev.embedded import free_port
from tests.doctor.support import Read, named, redis_findings


def test_doctor_says_that_the_queues_redis_evicts(read: Read, valkey: redis.Redis) -> None:
    assert named(redis_findings(read()), "redis eviction").state == "ok"

    valkey.config_set("maxmemory-policy", "allkeys-lru")

    found = named(redis_findings(read()), "redis eviction")
    assert found.state == "failed"
    assert "allkeys-lru" in found.found
    cache_alone = redis_findings(read(REDIS_URL=f"redis://127.0.0.1:{free_port()}", CACHE_REDIS_URL=url_of(valkey)))
    assert [each.state for each in cache_alone if each.name == "redis cache"] == ["ok"]


def url_of(valkey: redis.Redis) -> str:
    return f"redis://127.0.0.1:{valkey.connection_pool.connection_kwargs['port']}/0"


def test_doctor_says_that_redis_is_full(read: Read, valkey: redis.Redis) -> None:
    used = valkey.info("memory")["used_memory"]
    valkey.config_set("maxmemory", int(used * 1.1))
    assert named(redis_findings(read()), "redis memory").state == "warning"

    valkey.config_set("maxmemory", 1)

    found = named(redis_findings(read()), "redis")
    assert found.state == "failed"
    assert "maxmemory" in found.found


def test_doctor_warns_when_redis_has_no_room_for_the_streams(read: Read, valkey: redis.Redis) -> None:
    valkey.config_set("maxclients", 500)

    assert named(redis_findings(read()), "redis room").state == "warning"


def test_doctor_names_each_redis_by_its_use(read: Read) -> None:
    found = redis_findings(read(CACHE_REDIS_URL=f"redis://127.0.0.1:{free_port()}/1"))

    assert {each.name: each.state for each in found} == {
        "redis queue+limits": "ok",
        "redis queue+limits eviction": "ok",
        "redis cache": "failed",
    }
