"""Limits by themselves: exact over any stretch of time, and given back one by one."""

from __future__ import annotations

from collections.abc import Iterator
from secrets import token_bytes

import pytest
from flask import Flask

from chatapi.auth.limits import Limit, clear, give_back, take, try_take
from chatapi.errors import RateLimitedError
from chatapi.extensions import db, in_transaction
from tests.auth.support import pass_time, rows
from tests.support import race

THREE_A_MINUTE = Limit("test", ((3, 60),))


@pytest.fixture(autouse=True)
def _in_app(app: Flask) -> Iterator[None]:
    with app.app_context():
        yield


@pytest.fixture
def subject() -> bytes:
    return token_bytes(8)


def hits_of(app: Flask, subject: bytes) -> list[object]:
    found = rows(app, "SELECT hits FROM auth_limits WHERE name = 'test' AND subject = :subject", subject=subject)
    return list(found[0].hits) if found else []


def test_give_back_uncounts_that_very_hit(app: Flask, subject: bytes) -> None:
    first, second, third = (in_transaction(lambda: take(THREE_A_MINUTE, subject)) for _ in range(3))

    in_transaction(lambda: give_back(second))

    assert hits_of(app, subject) == [first.at, third.at]
    assert in_transaction(lambda: try_take(THREE_A_MINUTE, subject)) is not None
    assert in_transaction(lambda: try_take(THREE_A_MINUTE, subject)) is None


def test_give_back_leaves_what_was_counted_by_others(app: Flask, subject: bytes) -> None:
    other = token_bytes(8)
    hit = in_transaction(lambda: take(THREE_A_MINUTE, subject))
    in_transaction(lambda: take(THREE_A_MINUTE, other))

    in_transaction(lambda: give_back(hit))
    in_transaction(lambda: give_back(hit))

    assert (len(hits_of(app, subject)), len(hits_of(app, other))) == (0, 1)


def test_what_is_rolled_back_was_not_counted(app: Flask, subject: bytes) -> None:
    take(THREE_A_MINUTE, subject)
    db.session.rollback()

    assert hits_of(app, subject) == []


def test_refusal_says_when_there_is_one_again_and_counts_nothing(app: Flask, subject: bytes) -> None:
    for _ in range(3):
        in_transaction(lambda: take(THREE_A_MINUTE, subject))
        pass_time(app, 10)

    with pytest.raises(RateLimitedError) as caught:
        in_transaction(lambda: take(THREE_A_MINUTE, subject))

    assert caught.value.retry_after == 30
    assert len(hits_of(app, subject)) == 3


def test_refusal_names_the_longest_of_the_waits(app: Flask, subject: bytes) -> None:
    limit = Limit("test", ((1, 10), (2, 100)))
    for _ in range(2):
        in_transaction(lambda: take(limit, subject))
        pass_time(app, 11)
    in_transaction(lambda: clear(Limit("other", ()), subject))

    with pytest.raises(RateLimitedError) as caught:
        in_transaction(lambda: take(limit, subject))

    assert caught.value.retry_after == 78


def test_no_stretch_of_time_sees_more_than_the_limit(app: Flask, subject: bytes) -> None:
    """A counter that starts anew each minute would let six through around the turn of it."""
    passed = []
    for second in range(0, 180, 7):
        if in_transaction(lambda: try_take(THREE_A_MINUTE, subject)):
            passed.append(second)
        pass_time(app, 7)

    assert max(sum(start <= second < start + 60 for second in passed) for start in range(180)) == 3


def test_clear_forgets_all(app: Flask, subject: bytes) -> None:
    for _ in range(3):
        in_transaction(lambda: take(THREE_A_MINUTE, subject))

    in_transaction(lambda: clear(THREE_A_MINUTE, subject))

    assert in_transaction(lambda: try_take(THREE_A_MINUTE, subject)) is not None


def test_exactly_the_limit_passes_when_twenty_try_at_once(app: Flask, subject: bytes) -> None:
    def one(_index: int) -> bool:
        with app.app_context():
            return in_transaction(lambda: try_take(THREE_A_MINUTE, subject)) is not None

    assert sum(race(20, one)) == 3
    assert len(hits_of(app, subject)) == 3
