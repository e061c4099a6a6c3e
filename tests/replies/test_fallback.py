"""Which model is asked when one is gone."""

from __future__ import annotations

import logging
from threading import Barrier

import pytest

from chatapi.catalogue import ModelEntry
from chatapi.replies.fallback import GONE_SECONDS, GoneModels, answer_with_fallback
from chatapi.replies.gemini.base import Answer, GeminiCancelled, GeminiError, GeminiRejected, GeminiRetryable
from tests.support import race

ENTRY = ModelEntry("flash", "a", ("b", "c"), frozenset({"basic", "pro"}), "", 1000, 100)
NOT_FOUND = GeminiRejected("Gemini answered 404", reason="upstream_rejected", status=404)


class Clock:
    """A time that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Upstream:
    """Models, some of which raise; `asked` says which were asked, in order."""

    def __init__(self, **errors: GeminiError) -> None:
        self.errors = errors
        self.asked: list[str] = []

    def ask(self, model: str) -> Answer:
        self.asked.append(model)
        if model in self.errors:
            raise self.errors[model]
        return Answer("text", model, 1, 1)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def gone(clock: Clock) -> GoneModels:
    return GoneModels(clock)


def test_model_itself_answers_when_it_is_there(gone: GoneModels) -> None:
    upstream = Upstream()

    assert answer_with_fallback(ENTRY, upstream.ask, gone).model == "a"
    assert upstream.asked == ["a"]


def test_next_model_answers_when_one_is_gone_and_is_asked_first_from_then_on(gone: GoneModels, clock: Clock) -> None:
    upstream = Upstream(a=NOT_FOUND)
    assert answer_with_fallback(ENTRY, upstream.ask, gone).model == "b"
    clock.now += GONE_SECONDS - 1
    assert answer_with_fallback(ENTRY, upstream.ask, gone).model == "b"

    assert upstream.asked == ["a", "b", "b"]


def test_model_is_asked_again_when_its_time_is_over(gone: GoneModels, clock: Clock) -> None:
    upstream = Upstream(a=NOT_FOUND)
    answer_with_fallback(ENTRY, upstream.ask, gone)
    clock.now += GONE_SECONDS
    answer_with_fallback(ENTRY, upstream.ask, gone)
    upstream.errors.clear()
    clock.now += GONE_SECONDS

    assert answer_with_fallback(ENTRY, upstream.ask, gone).model == "a"
    assert upstream.asked == ["a", "b", "a", "b", "a"]


def test_last_404_is_raised_when_all_models_are_gone(gone: GoneModels) -> None:
    errors = {name: GeminiRejected(name, reason="upstream_rejected", status=404) for name in "abc"}
    upstream = Upstream(**errors)

    for _ in range(2):
        with pytest.raises(GeminiRejected) as caught:
            answer_with_fallback(ENTRY, upstream.ask, gone)
        assert caught.value is errors["c"]
    assert upstream.asked == ["a", "b", "c"] * 2


def test_model_found_gone_answers_when_it_is_back_and_all_others_are_gone(gone: GoneModels) -> None:
    upstream = Upstream(a=NOT_FOUND)
    answer_with_fallback(ENTRY, upstream.ask, gone)
    upstream.errors = {"b": NOT_FOUND, "c": NOT_FOUND}

    assert answer_with_fallback(ENTRY, upstream.ask, gone).model == "a"
    upstream.asked.clear()
    assert answer_with_fallback(ENTRY, upstream.ask, gone).model == "a"
    assert upstream.asked == ["a"]


@pytest.mark.parametrize(
    "error",
    [
        GeminiRejected("Gemini answered 400", reason="upstream_rejected", status=400),
        GeminiRejected("Gemini answered 403", reason="upstream_rejected", status=403),
        GeminiRejected("Gemini blocked the prompt", reason="safety_blocked", status=200),
        GeminiRejected("Gemini answered 400: too long", reason="context_too_long", status=400),
        GeminiRetryable("Gemini answered 503", status=503),
        GeminiRetryable("Gemini answered 404", status=404),
        GeminiCancelled("cancelled"),
    ],
    ids=str,
)
def test_no_other_model_is_asked_when_the_model_is_there(gone: GoneModels, error: GeminiError) -> None:
    upstream = Upstream(a=error)

    with pytest.raises(GeminiError) as caught:
        answer_with_fallback(ENTRY, upstream.ask, gone)

    assert caught.value is error
    assert upstream.asked == ["a"]
    assert "a" not in gone


def test_model_without_fallback_is_asked_each_time(gone: GoneModels) -> None:
    alone = ModelEntry("a", "a", (), frozenset({"basic", "pro"}), "", 1000, 100)
    upstream = Upstream(a=NOT_FOUND)

    for _ in range(2):
        with pytest.raises(GeminiRejected):
            answer_with_fallback(alone, upstream.ask, gone)
    upstream.errors.clear()

    assert answer_with_fallback(alone, upstream.ask, gone).model == "a"


def test_gone_model_is_logged_once_when_many_threads_find_it(
    in_app: None, gone: GoneModels, caplog: pytest.LogCaptureFixture
) -> None:
    upstream, gate = Upstream(a=NOT_FOUND), Barrier(16)

    def ask(model: str) -> Answer:
        if model == "a":
            gate.wait(30)
        return upstream.ask(model)

    with caplog.at_level(logging.WARNING):
        answers = race(16, lambda _index: answer_with_fallback(ENTRY, ask, gone).model)

    assert answers == ["b"] * 16
    said = [record.msg for record in caplog.records if record.levelno == logging.WARNING]
    assert [(line["event"], line["model"]) for line in said] == [("model_gone", "a")]
