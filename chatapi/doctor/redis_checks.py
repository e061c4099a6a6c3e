"""Redis: each one that is used, once, whatever it is used for."""

from __future__ import annotations

from collections.abc import Iterator

from chatapi.doctor.findings import Check, Finding, failed, ok, warning
from chatapi.doctor.redis_probe import SETTINGS, Probed, place_of, probe
from chatapi.doctor.settings import Settings, is_remote, not_set
from config_redis import redis_address

SLOW_MS = 20.0
"""What a request uses Redis for has 300 ms in all."""

FULL = 0.8
OLDEST_VERSION = (6, 2)
CONNECTIONS_BESIDE_STREAMS = 200


def redis_checks(settings: Settings) -> list[Check]:
    """Return a check for each Redis, named after what it is used for."""
    return [
        Check(name, lambda name=name, url=url, uses=uses: _check(name, url, uses, settings))  # type: ignore[misc]
        for name, url, uses in places(settings)
    ]


def places(settings: Settings) -> list[tuple[str, str | None, tuple[str, ...]]]:
    """Return the name, the URL and the uses of each Redis that is set."""
    uses_of: dict[str | None, list[str]] = {}
    for use, setting in SETTINGS.items():
        uses_of.setdefault(settings[setting], []).append(use)
    if len(uses_of) == 1:
        return [("redis", url, tuple(uses)) for url, uses in uses_of.items()]
    return [(f"redis {'+'.join(uses)}", url, tuple(uses)) for url, uses in uses_of.items()]


def _check(name: str, url: str | None, uses: tuple[str, ...], settings: Settings) -> Iterator[Finding]:
    if url is None:
        yield not_set(name, SETTINGS[uses[0]])
        return
    probed = probe(url, writes=True, counts_queues=False)
    if probed.fault is not None:
        yield failed(name, f"{probed.place}: {probed.fault}", _advice(probed, SETTINGS[uses[0]]))
    if probed.latency_ms is None:
        return
    if probed.fault is None:
        yield _on_answer(name, probed)
    if "queue" in uses:
        yield from _check_queue(name, probed, settings)
    yield from _check_memory(name, probed)
    address = redis_address(url)
    if settings.is_production and not address.has_tls and any(is_remote(host) for host, _ in address.nodes):
        found = f"not in use on the way to {place_of(url)}"
        yield warning(f"{name} tls", found, "Use rediss:// if the server takes it: prompts and replies go this way.")


def _on_answer(name: str, probed: Probed) -> Finding:
    kept = {True: ", kept on disk", False: ", in memory only, which will do", None: ""}[probed.is_persistent]
    masters = f", {probed.masters} masters" if probed.masters > 1 else ""
    found = f"{probed.place}{masters}, {probed.version or 'version unknown'}, answers in {probed.latency_ms} ms{kept}"
    if probed.version and _is_older(probed.version):
        return failed(name, found, "Use Redis 6.2 or newer, or Valkey.")
    if probed.latency_ms is not None and probed.latency_ms > SLOW_MS:
        return warning(name, found, "That is far away, or busy: put it near the service.")
    return ok(name, found)


def _is_older(version: str) -> bool:
    numbers = [int(word) for word in version.split(".")[:2] if word.isdigit()]
    return tuple(numbers) < OLDEST_VERSION


def _check_queue(name: str, probed: Probed, settings: Settings) -> Iterator[Finding]:
    if probed.policy is None:
        yield warning(f"{name} eviction", "the policy is not shown to us", "Make sure that it is noeviction.")
    elif probed.policy == "noeviction":
        yield ok(f"{name} eviction", "noeviction")
    else:
        found = f"maxmemory-policy {probed.policy} drops queued work in silence"
        yield failed(f"{name} eviction", found, "`CONFIG SET maxmemory-policy noeviction`, and in its configuration.")
    streams = (settings["MAX_OPEN_STREAMS"] or 0) * (settings["WEB_CONCURRENCY"] or 1)
    if probed.max_clients and streams + CONNECTIONS_BESIDE_STREAMS > probed.max_clients:
        found = f"it takes {probed.max_clients} connections, and {streams} streams may be open on one host"
        yield warning(f"{name} room", found, "Raise its maxclients, or lower MAX_OPEN_STREAMS.")


def _check_memory(name: str, probed: Probed) -> Iterator[Finding]:
    if not probed.max_bytes or probed.used_bytes is None:
        return
    share = probed.used_bytes / probed.max_bytes
    found = f"{share:.0%} of {probed.max_bytes / 2**20:.0f} MB in use"
    if share > FULL:
        yield warning(f"{name} memory", found, "Give it more (maxmemory), or its own Redis to each use.")
    else:
        yield ok(f"{name} memory", found)


def _advice(probed: Probed, setting: str) -> str:
    if probed.is_replica:
        return f"That is a replica: point {setting} at the primary."
    if "node of a cluster" in (probed.fault or ""):
        return f"Write {setting} as redis+cluster://host:port,host:port,… (docs/scaling.md)."
    if "being moved" in (probed.fault or ""):
        return (
            "Until that is over nothing is rung for or fetched. One left half done ends by `redis-cli --cluster fix`."
        )
    if probed.is_away:
        return f"Is {setting} right, and is it up? The service works without it, but slowly."
    return "Let the user of that URL run all commands on keys of ours: {dramatiq}* and chatapi:*."
