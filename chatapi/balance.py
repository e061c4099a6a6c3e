"""How many connections each of a server's worker processes holds, so that none takes what others have more room for.

All of them wait on one listener, and the first to wake up takes whatever is there: perhaps all connections that a proxy
keeps, and keeps for hours.
"""

from __future__ import annotations

import ctypes
from multiprocessing.sharedctypes import RawArray

FREE, ABSENT = -1, -2
"""A place that no worker has, and one whose worker does not accept connections: not yet, or no more."""
MARGIN = 2
"""Connections that a worker may have more than another, before it leaves the next to it."""


class Loads:
    """Counts in memory that a master shares with its workers: made before it forks, given out and taken back by it."""

    def __init__(self, most: int) -> None:
        self._counts = RawArray(ctypes.c_int, [FREE] * most)

    def claim(self) -> Load | None:
        """Return a new worker's, None if there are more workers than were reckoned with."""
        for index, count in enumerate(self._counts):
            if count == FREE:
                self._counts[index] = ABSENT
                return Load(self._counts, index)
        return None


class Load:
    """One worker's."""

    def __init__(self, counts: ctypes.Array[ctypes.c_int], index: int) -> None:
        self._counts = counts
        self._index = index

    def tell(self, count: int) -> None:
        """Say how many connections the worker has."""
        self._counts[self._index] = count

    def least_of_others(self, mine: int) -> int:
        """Return how many connections the worker has that has the fewest, `mine` if none has fewer."""
        return min([mine, *(count for count in self._counts if count >= 0)])

    def retire(self) -> None:
        """Say that the worker takes no more connections."""
        self._counts[self._index] = ABSENT

    def free(self) -> None:
        """Forget a worker that has ended."""
        self._counts[self._index] = FREE
