"""What workers know of each other's connections."""

from __future__ import annotations

import pytest

from chatapi.balance import MARGIN, Load, Loads


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
    ("counts", "outweighs"),
    [
        ([9], False),
        ([5, 5], False),
        ([5, 5 - MARGIN + 1], False),
        ([5, 5 - MARGIN], True),
        ([5, 9, 0], True),
        ([0, 0], False),
    ],
)
def test_worker_outweighs_when_another_has_clearly_less(counts: list[int], *, outweighs: bool) -> None:
    assert loads_of(*counts)[0].is_outweighing() == outweighs


def test_worker_that_has_ended_is_nobody_to_leave_anything_to() -> None:
    one, other = loads_of(50, 0)
    assert one.is_outweighing()

    other.free()

    assert not one.is_outweighing()


def test_worker_that_still_loads_is_nobody_to_leave_anything_to() -> None:
    loads = Loads(2)
    one, starting = loads.claim(), loads.claim()
    assert one
    assert starting
    one.tell(50)

    assert not one.is_outweighing()


def test_places_are_given_out_again_and_no_more_than_there_are() -> None:
    loads = Loads(2)
    first, second = loads.claim(), loads.claim()
    assert first
    assert second
    assert loads.claim() is None

    first.free()

    assert loads.claim() is not None
    assert loads.claim() is None
