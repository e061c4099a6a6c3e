"""What was measured, whether that is enough, and the table of it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Target:
    """A bound that the median shall keep, and one that it might."""

    sense: Literal["at least", "at most"]
    bound: float
    stretch: float | None = None

    def judge(self, value: float) -> str:
        """Return `missed`, `met`, or `stretch` when that is kept too."""
        if not self._is_kept(value, self.bound):
            return "missed"
        return "stretch" if self.stretch is not None and self._is_kept(value, self.stretch) else "met"

    def _is_kept(self, value: float, bound: float) -> bool:
        return value >= bound if self.sense == "at least" else value <= bound


@dataclass(frozen=True)
class Figure:
    """One thing that was measured in each round; `unit` is empty for a ratio."""

    name: str
    values: Sequence[float]
    unit: str = ""
    target: Target | None = None

    @property
    def median(self) -> float:
        """The one in the middle."""
        return statistics.median(self.values)

    def row(self) -> list[str]:
        """Return what the table says of it."""
        spread = f"{_short(min(self.values))} - {_short(max(self.values))}" if len(self.values) > 1 else ""
        wanted, verdict = "", ""
        if self.target is not None:
            stretch = "" if self.target.stretch is None else f" ({_short(self.target.stretch)})"
            wanted = f"{'≥' if self.target.sense == 'at least' else '≤'} {_short(self.target.bound)}{stretch}"
            verdict = self.target.judge(self.median)
        return [self.name, _short(self.median), self.unit, spread, wanted, verdict]


def table(figures: Iterable[Figure]) -> str:
    """Return the figures as a Markdown table."""
    head = ["", "median", "unit", "spread", "target (stretch)", ""]
    rows = [head, *(figure.row() for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that `share` of all do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered)) - 1))]


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
