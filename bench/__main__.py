"""Measures the system on servers of its own, and prints one table: `make bench`, or

    python -m bench [--quick] [--only PART …] [--rounds N] [--seconds N] [--processes N]

Parts: routes, replies, latency, resources, streams, growth. Everything runs on this machine, with what it is asked by.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator

from bench import growth, latency, replies, resources, routes, streams
from bench.figures import Figure, Target, table
from bench.load import LoadError, check_wrk
from bench.rig import Rig


def main() -> int:
    """Measure what is wanted; return 1 if a target was missed."""
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement of a rate")
    parser.add_argument("--processes", type=int, default=1, help="of the worker, and of the SDK alone")
    parser.add_argument("--quick", action="store_true", help="see that it runs: the figures mean little")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds = 1, 1.0
    try:
        check_wrk()
        figures = []
        for name in options.only:
            with Rig() as rig:
                for figure in PARTS[name](rig, options):
                    figures.append(figure)
                    print(f"{name}: {' | '.join(figure.row())}", file=sys.stderr, flush=True)
    except LoadError as error:
        print(error, file=sys.stderr)
        return 2
    print(table(figures))
    missed = [figure for figure in figures if figure.target and figure.target.judge(figure.median) == "missed"]
    print(f"\n{len(missed)} of {sum(figure.target is not None for figure in figures)} targets missed.")
    return 1 if missed and not options.quick else 0


def _streams(rig: Rig, options: argparse.Namespace) -> Iterator[Figure]:
    for count, target in ((20, None),) if options.quick else ((500, Target("at most", 250)), (2000, None)):
        yield from streams.measure(rig, options.rounds, options.seconds, count, target)


Part = Callable[[Rig, argparse.Namespace], Iterator[Figure]]

PARTS: dict[str, Part] = {
    "routes": lambda rig, options: routes.measure(rig, options.rounds, options.seconds),
    "replies": lambda rig, options: replies.measure(rig, options.rounds, options.seconds, options.processes),
    "latency": lambda rig, options: latency.measure(rig, options.rounds, 10 if options.quick else 100, half_load=25),
    "resources": lambda rig, options: resources.measure(rig, options.rounds, options.seconds),
    "streams": _streams,
    "growth": lambda rig, options: growth.measure(rig, 3 if options.quick else 60, 0.01 if options.quick else 1.0),
}


if __name__ == "__main__":
    sys.exit(main())
