"""Counting tokens here, and learning from what the model counted."""

from __future__ import annotations

import random

import pytest

from chatapi.replies.gemini.base import Answer, Prompt, Turn
from chatapi.replies.token_counter import LEAST_FACTOR, MOST_FACTOR, TokenCounter, estimate
from tests.support import race


@pytest.mark.parametrize("real", [0.3, 0.8, 1.0, 1.7, 3.9])
@pytest.mark.parametrize("seed", range(5))
def test_count_comes_near_the_models_own_whatever_its_tokenizer(real: float, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - no secret
    counter = TokenCounter()

    for _ in range(60):
        estimated = chance.uniform(20, 20_000)
        counter.learn("a", estimated, round(estimated * real * chance.uniform(0.95, 1.05)))

    text = "word " * 2000
    assert counter.count("a", text) == pytest.approx(estimate(text) * real, rel=0.08)
    assert counter.count("b", text) == pytest.approx(estimate(text), rel=0.01)


@pytest.mark.parametrize(("actual", "factor"), [(10**9, MOST_FACTOR), (1, LEAST_FACTOR)])
def test_count_stays_within_bounds_whatever_the_model_says(actual: int, factor: float) -> None:
    counter = TokenCounter()

    for _ in range(200):
        counter.learn("a", 1000, actual)

    assert counter.count("a", "x" * 4000) == pytest.approx(estimate("x" * 4000) * factor, rel=0.01)


def test_one_wild_count_changes_little() -> None:
    counter = TokenCounter()

    counter.learn("a", 1000, 10**9)

    assert counter.count("a", "x" * 4000) < estimate("x" * 4000) * 1.7


def test_small_prompt_says_less_than_a_large_one() -> None:
    counter = TokenCounter()

    counter.learn("small", 10, 40)
    counter.learn("large", 1000, 4000)

    text = "x" * 4000
    assert estimate(text) < counter.count("small", text) < estimate(text) * 1.03
    assert counter.count("large", text) > estimate(text) * 1.5


@pytest.mark.parametrize(("estimated", "actual"), [(0, 5), (5, 0), (-1, 5), (5, -1)])
def test_nothing_is_learnt_from_a_count_that_says_nothing(estimated: float, actual: int) -> None:
    counter = TokenCounter()

    counter.learn("a", estimated, actual)

    assert counter.count("a", "x" * 4000) == estimate("x" * 4000)


def test_characters_of_many_bytes_are_not_underrated() -> None:
    assert TokenCounter().count("a", "字" * 1000) > 2.5 * TokenCounter().count("a", "x" * 1000)


@pytest.mark.parametrize("factor", [0.25, 0.9, 1.0, 4.0])
def test_bytes_for_tokens_are_enough_for_whatever_fits_them(factor: float) -> None:
    counter = TokenCounter()
    for _ in range(200):
        counter.learn("a", 10_000, round(10_000 * factor))

    for size in (0, 1, 3, 17, 1000, 123_457):
        text = "x" * size
        assert counter.most_bytes("a", counter.count("a", text)) >= size


def test_whole_prompt_is_compared_with_its_usage() -> None:
    turns = [Turn("user", "x" * 4000), Turn("model", "y" * 4000), Turn("user", "z" * 4000)]
    prompt = Prompt("a", turns, "i" * 4000)
    counter, silent = TokenCounter(), TokenCounter()

    for _ in range(100):
        counter.learn_from(prompt, Answer("text", "a-001", round(2 * 4 * estimate("x" * 4000)), 10))
        silent.learn_from(prompt, Answer("text", "a-001", None, 10))

    assert counter.count("a", "x" * 4000) == pytest.approx(2 * estimate("x" * 4000), rel=0.01)
    assert silent.count("a", "x" * 4000) == estimate("x" * 4000)


def test_counter_is_right_when_many_threads_learn_at_once() -> None:
    counter = TokenCounter()

    def work(index: int) -> None:
        for _ in range(300):
            counter.learn(f"model-{index % 4}", 1000, 1000 * (index % 4 + 1))
            counter.count(f"model-{index % 4}", "x")

    race(12, work)

    counts = [counter.count(f"model-{number}", "x" * 4000) for number in range(4)]
    assert counts == [pytest.approx(estimate("x" * 4000) * (number + 1), rel=0.01) for number in range(4)]
