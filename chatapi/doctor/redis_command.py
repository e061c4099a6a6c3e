"""`flask redis-check`: each Redis on its own, for whoever works on it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import click
from flask.cli import with_appcontext

from chatapi.doctor.command import SettingsFreeCommand, current_settings
from chatapi.doctor.redis_checks import places
from chatapi.doctor.redis_probe import SETTINGS, Probed, probe
from chatapi.terminal import as_json, examples


@click.command("redis-check", cls=SettingsFreeCommand, epilog=examples("flask redis-check", "flask redis-check --json"))
@as_json
@with_appcontext
def redis_check(is_json: bool) -> None:
    """Time each Redis, and try it with a key of our own.

    Shows the eviction policy, memory, connections, and how many messages wait in each queue. Ends with 1 when one of
    them does not answer, does not keep what it is given, or evicts while the queue is in it.
    """
    found = places(current_settings())
    with ThreadPoolExecutor(len(found)) as pool:
        servers = list(pool.map(lambda place: _look_at(place[1], place[2]), found))
    is_good = all(server["fault"] is None for server in servers)
    if is_json:
        click.echo(json.dumps({"status": "ok" if is_good else "failed", "servers": servers}, indent=2))
    else:
        click.echo("\n\n".join("\n".join(_lines(server)) for server in servers))
    if not is_good:
        raise click.exceptions.Exit(1)


def _look_at(url: str | None, uses: tuple[str, ...]) -> dict[str, Any]:
    """Return what a Redis has shown, in values that JSON has."""
    if url is None:
        probed = Probed("-", fault=f"{SETTINGS[uses[0]]} is not set, or at fault")
    else:
        probed = probe(url, writes=True, counts_queues="queue" in uses)
    if probed.fault is None and "queue" in uses and probed.policy not in ("noeviction", None):
        probed.fault = f"maxmemory-policy {probed.policy} drops queued work: it must be noeviction"
    return {"uses": list(uses), **asdict(probed)}


def _lines(server: dict[str, Any]) -> Iterator[str]:
    shown = {
        "redis": f"{server['place']}, for {', '.join(server['uses'])}",
        "answers": f"in {server['latency_ms']} ms" if server["latency_ms"] is not None else "no",
        "set, get, delete": "done" if server["fault"] is None else None,
        "version": server["version"],
        "eviction": server["policy"],
        "memory": _memory(server),
        "connections": _connections(server),
        "kept on disk": {True: "yes", False: "no", None: None}[server["is_persistent"]],
    }
    for name, value in shown.items():
        if value is not None:
            yield f"{name:<18} {value}"
    for queue, counts in server["queues"].items():
        yield f"{'queue ' + queue:<18} {counts['ready']} ready, {counts['unacknowledged']} fetched and not done"
    if server["fault"] is not None:
        yield click.style(f"{'fault':<18} {server['fault']}", fg="red")


def _memory(server: dict[str, Any]) -> str | None:
    if server["used_bytes"] is None:
        return None
    most = f"of {server['max_bytes'] / 2**20:.1f} MB" if server["max_bytes"] else "and no bound (maxmemory 0)"
    return f"{server['used_bytes'] / 2**20:.1f} MB {most}"


def _connections(server: dict[str, Any]) -> str | None:
    if server["clients"] is None:
        return None
    most = f" of {server['max_clients']}" if server["max_clients"] else ""
    return f"{server['clients']}{most}, {server['blocked_clients'] or 0} of them waiting"
