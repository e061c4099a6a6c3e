"""Months as Stripe counts them, and a clock that can be moved forward."""

from __future__ import annotations

import calendar
import datetime as dt
import time
from collections.abc import Iterator
from contextlib import contextmanager

DAY_SECONDS = 86400
SECONDS_OF = {"day": DAY_SECONDS, "week": 7 * DAY_SECONDS}
MONTHS_OF = {"month": 1, "year": 12}


class Clock:
    """Real time and an offset that only grows; unix seconds."""

    def __init__(self) -> None:
        self.offset = 0
        self._stopped_at: int | None = None

    def now(self) -> int:
        if self._stopped_at is not None:
            return self._stopped_at
        return int(time.time()) + self.offset

    def move_to(self, moment: int) -> None:
        """Go on from `moment`, if that is later than now."""
        self.offset += max(0, moment - self.now())

    @contextmanager
    def stopped_at(self, moment: int) -> Iterator[None]:
        """Let it be `moment` for what happens within."""
        self._stopped_at = moment
        try:
            yield
        finally:
            self._stopped_at = None


def add_intervals(anchor: int, interval: str, count: int) -> int:
    """Return `anchor` plus `count` intervals; a day that a month does not have is its last one."""
    if interval in SECONDS_OF:
        return anchor + count * SECONDS_OF[interval]
    start = dt.datetime.fromtimestamp(anchor, dt.UTC)
    year, month = divmod(start.year * 12 + start.month - 1 + count * MONTHS_OF[interval], 12)
    day = min(start.day, calendar.monthrange(year, month + 1)[1])
    return int(start.replace(year=year, month=month + 1, day=day).timestamp())


def period_after(anchor: int, interval: str, interval_count: int, moment: int) -> int:
    """Return the first boundary after `moment` of the periods counted from `anchor`.

    Counted from the anchor and not from the last boundary: after 28 February comes 31 March, if it began on a 31st.
    """
    passed = 0
    while (end := add_intervals(anchor, interval, passed * interval_count)) <= moment:
        passed += 1
    return end
