"""Compares the web's own gunicorn worker with plain gthread, for requests and restarts (docs/decisions/0030).

    python bench/lobby.py [--rounds 4] [--seconds 4]

Rounds in turns, on servers of its own. Needs `wrk`. Other work on the machine shows in the rates, and hardly in the
processor time for a request.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path

from worker_class import Bench, wrk  # It also puts the application on the path.

from chatapi.dev.processes import Child, stop_all  # isort: skip
from chatapi.dev.system import health  # isort: skip

KINDS = {"gthread": ["-k", "gthread"], "lobby": []}


def start(bench: Bench, kind: str) -> Child:
    """Start the web with one of the workers, and make its first requests."""
    web = Child(f"web-{kind}", [*bench.web.argv, *KINDS[kind]], env=bench.web.env, log=bench.folder / f"{kind}.log")
    web.start()
    while health(bench.port) is None:
        pass
    wrk(bench, 1, "/health/live")
    return web


def processor_seconds(web: Child) -> float:
    """Return what the workers have used so far."""
    total = 0
    for pid in Path(f"/proc/{web.pid}/task/{web.pid}/children").read_text().split():
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def measure(bench: Bench, web: Child, seconds: int, token: str) -> dict[str, float]:
    """Return requests a second, and milliseconds of processor time for each, by what is asked for."""
    asked = {
        "live": ("/health/live",),
        "list": ("/chatroom", token),
        "room": ("/chatroom", token, json.dumps({"title": "bench"})),
    }
    found = {}
    for name, arguments in asked.items():
        before = processor_seconds(web)
        figures = wrk(bench, seconds, *arguments)
        found[f"{name}_rate"] = figures["rate"]
        found[f"{name}_p99_ms"] = figures["p99"]
        found[f"{name}_cpu_ms"] = (processor_seconds(web) - before) * 1000 / (figures["rate"] * seconds)
    return found


def main() -> None:
    """Run, and print medians and their ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=int, default=4)
    options = parser.parse_args()
    bench = Bench()
    results: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    try:
        web = start(bench, "lobby")
        token, _ = bench.sign_in(0)
        stop_all([web])
        for number in range(options.rounds):
            for kind in list(KINDS)[:: 1 if number % 2 else -1]:
                web = start(bench, kind)
                results[kind].append(measure(bench, web, options.seconds, token))
                stop_all([web])
                print(kind, {name: round(value, 2) for name, value in results[kind][-1].items()}, flush=True)
        for name in results["lobby"][0]:
            plain, ours = (statistics.median(found[name] for found in results[kind]) for kind in KINDS)
            print(f"{name:14} gthread {plain:9.2f} lobby {ours:9.2f} ratio {ours / plain:5.2f}")
    finally:
        bench.stop()


if __name__ == "__main__":
    main()
