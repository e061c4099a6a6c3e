"""What the measurements make of what they measure; that they run at all is seen by `.ci/check-bench`."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from bench import load
from bench.figures import Figure, Target, percentile, table
from bench.load import Asked, LoadError, check_wrk, wrk

PRINTED = """Running 1s test @ http://127.0.0.1:5000
  Latency Distribution
     50%    9.51ms
     75%   12.00ms
     90%   15.00ms
     99%    1.02s
  3000 requests in 1.00s, 1.00MB read
{faults}Requests/sec:   2998.50
"""


@pytest.mark.parametrize(
    ("target", "value", "verdict"),
    [
        (Target("at least", 0.35, 0.50), 0.349, "missed"),
        (Target("at least", 0.35, 0.50), 0.35, "met"),
        (Target("at least", 0.35, 0.50), 0.5, "stretch"),
        (Target("at most", 25, 10), 25.1, "missed"),
        (Target("at most", 25, 10), 10.1, "met"),
        (Target("at most", 25, 10), 10, "stretch"),
        (Target("at most", 90), 1, "met"),
    ],
)
def test_target_is_missed_met_or_more(target: Target, value: float, verdict: str) -> None:
    assert target.judge(value) == verdict


def test_table_shows_median_and_spread_and_what_was_wanted() -> None:
    shown = table(
        [
            Figure("a ratio", [0.3, 0.5, 0.412], target=Target("at least", 0.35, 0.5)),
            Figure("a rate", [1234.4], "1/s"),
        ]
    )

    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in shown.splitlines()[2:]] == [
        ["a ratio", "0.412", "", "0.3 - 0.5", "≥ 0.35 (0.5)", "met"],
        ["a rate", "1234", "1/s", "", "", ""],
    ]


@pytest.mark.parametrize(("share", "value"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.0, 1)])
def test_percentile_is_by_the_nearest_rank(share: float, value: float) -> None:
    assert percentile(range(100, 0, -1), share) == value


def have_wrk_print(monkeypatch: pytest.MonkeyPatch, printed: str, code: int = 0) -> None:
    def run(*_: Any, **__: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], code, printed, "")

    monkeypatch.setattr(load.subprocess, "run", run)


def test_load_is_read_from_what_wrk_prints(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    have_wrk_print(monkeypatch, PRINTED.format(faults=""))

    found = wrk(5000, [Asked("/")], 1, tmp_path)

    assert (found.rate, found.p50, found.p99) == (2998.5, 9.51, 1020)


@pytest.mark.parametrize(
    "faults", ["  Non-2xx or 3xx responses: 12\n", "  Socket errors: connect 0, read 3, write 0, timeout 0\n"]
)
def test_load_with_refused_requests_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, faults: str) -> None:
    have_wrk_print(monkeypatch, PRINTED.format(faults=faults))

    with pytest.raises(LoadError, match="/list: "):
        wrk(5000, [Asked("/list")], 1, tmp_path)


def test_load_is_none_when_wrk_failed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    have_wrk_print(monkeypatch, "unable to connect", 1)

    with pytest.raises(LoadError, match="unable to connect"):
        wrk(5000, [Asked("/")], 1, tmp_path)


def test_lack_of_wrk_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    with pytest.raises(LoadError, match="apt install wrk"):
        check_wrk()
