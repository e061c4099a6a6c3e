"""Compares the web's own gunicorn worker with plain gthread, and with gevent (docs/decisions/0015 and 0030).

    python -m bench.web_workers [--kinds lobby gthread gevent] [--rounds 4] [--seconds 4] [--streams 500]

The first kind is the yardstick. gevent is not among the requirements (`pip install gevent`); plain psycopg2 blocks its
hub, so it is given psycopg2's wait callback. Other work on the machine shows in the rates, and hardly in the processor
time for a request.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.figures import Figure, percentile, table
from bench.load import Asked, check_wrk, wrk
from bench.resources import processes_of
from bench.rig import Person, Rig
from bench.streams import Readers, open_streams, times_of
from chatapi.dev.processes import Child

ROOT = Path(__file__).resolve().parent.parent
GEVENT = """
exec(open({conf!r}).read())
worker_class = "gevent"

def post_fork(server, worker):
    import psycopg2.extensions as extensions
    from gevent.socket import wait_read, wait_write

    def wait(connection):
        while (state := connection.poll()) != extensions.POLL_OK:
            (wait_read if state == extensions.POLL_READ else wait_write)(connection.fileno())

    extensions.set_wait_callback(wait)
"""


def main() -> None:
    """Run each kind in each round, in turns, and print medians over those of the first kind."""
    parser = argparse.ArgumentParser(prog="python -m bench.web_workers")
    parser.add_argument("--kinds", nargs="+", choices=("lobby", "gthread", "gevent"), default=["gthread", "lobby"])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--streams", type=int, default=0)
    options = parser.parse_args()
    check_wrk()
    found: dict[str, dict[str, list[float]]] = {kind: {} for kind in options.kinds}
    with Rig() as rig:
        people = rig.people(25)
        conf = rig.folder / "gevent.conf.py"
        conf.write_text(GEVENT.format(conf=str(ROOT / "gunicorn.conf.py")))
        words = {"lobby": [], "gthread": ["-k", "gthread"], "gevent": ["-c", str(conf)]}
        for number in range(options.rounds):
            for kind in options.kinds[:: 1 if number % 2 else -1]:
                with rig.running("web", web=words[kind]) as children:
                    figures = _requests(rig, children["web"], people[0], options.seconds)
                if options.streams:
                    figures |= _with_streams(rig, people, words[kind], options.streams, options.seconds)
                for name, value in figures.items():
                    found[kind].setdefault(name, []).append(value)
                print(kind, {name: round(value, 2) for name, value in figures.items()}, file=sys.stderr, flush=True)
    first = found[options.kinds[0]]
    for kind in options.kinds:
        print(f"\n{kind}, and over {options.kinds[0]}:\n")
        ratios = [
            Figure(f"{name} ÷", [value / statistics.median(first[name]) for value in values])
            for name, values in found[kind].items()
            if statistics.median(first[name])
        ]
        print(table([*(Figure(name, values) for name, values in found[kind].items()), *ratios]))


def _requests(rig: Rig, web: Child, person: Person, seconds: float) -> dict[str, float]:
    """Return requests a second, and milliseconds of processor time for each, by what is asked for."""
    asked = {
        "live": Asked("/health/live"),
        "list": Asked("/chatroom", person.token),
        "new room": Asked("/chatroom", person.token, {"title": "bench"}),
    }
    found = {}
    wrk(rig.port, [asked["live"]], 1, rig.folder)
    for name, each in asked.items():
        before = _processor_seconds(web)
        load = wrk(rig.port, [each], seconds, rig.folder)
        used = _processor_seconds(web) - before
        found[f"{name}, 1/s"], found[f"{name}, p99 ms"] = load.rate, load.p99
        found[f"{name}, ms of processor"] = used * 1000 / (load.rate * max(1, round(seconds)))
    return found


def _processor_seconds(web: Child) -> float:
    """Return what the workers have used so far."""
    total = 0
    for pid in processes_of(web, "gunicorn"):
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def _with_streams(
    rig: Rig, people: Sequence[Person], words: Sequence[str], count: int, seconds: float
) -> dict[str, float]:
    """Look at other requests while `count` streams are open."""
    rig.forget_prompts()
    with rig.running("web", "worker", "sweeper", web=words, MAX_OPEN_STREAMS=str(count)) as children:
        with Readers(rig.port) as readers:
            open_streams(rig, people, readers, count)
            live = times_of(rig, "/health/live", None, round(seconds * 20))
            listed = times_of(rig, "/chatroom", people[0], round(seconds * 20))
            found = {"streams open": float(readers.are_open)}
        for child in children.values():
            child.kill()
    for name, times in (("live", live), ("list", listed)):
        found |= {f"{name} beside streams, p{share} ms": percentile(times, share / 100) for share in (50, 99)}
    return found


if __name__ == "__main__":
    main()
