"""What workers know of each other's connections."""

from __future__ import annotations

import pytest

from chatapi.balance import Load, Loads


def loads_of(*counts: int) -> list[Load]:
    loads = Loads(len(counts) + 2)
    found = []
    for count in counts:
        load = loads.claim()
        assert load
        load.tell(count)
        found.append(load)
    return found


@pytest.mark.parametrize(
    ("counts", "least"),
    [([9], 9), ([5, 5], 5), ([5, 4], 4), ([5, 9, 0], 0), ([0, 3], 0)],
)
def test_least_is_that_of_the_worker_with_the_fewest(counts: list[int], least: int) -> None:
    assert loads_of(*counts)[0].least_of_others(counts[0]) == least


def test_worker_that_has_ended_is_nobody_to_leave_anything_to() -> None:
    one, other = loads_of(50, 0)
    assert one.least_of_others(50) == 0

    other.free()

    assert one.least_of_others(50) == 50


def test_worker_that_ends_is_nobody_to_leave_anything_to() -> None:
    one, other = loads_of(50, 0)

    other.retire()

    assert one.least_of_others(50) == 50


def test_worker_that_still_loads_is_nobody_to_leave_anything_to() -> None:
    loads = Loads(2)
    one, starting = loads.claim(), loads.claim()
    assert one
    assert starting
    one.tell(50)

    assert one.least_of_others(50) == 50


def test_places_are_given_out_again_and_no_more_than_there_are() -> None:
    loads = Loads(2)
    first, second = loads.claim(), loads.claim()
    assert first
    assert second
    assert loads.claim() is None

    first.free()

    assert loads.claim() is not None
    assert loads.claim() is None
