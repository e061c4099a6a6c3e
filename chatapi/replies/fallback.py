"""Asking the next model when one is gone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from http import HTTPStatus

import structlog

from chatapi.catalogue import ModelEntry
from chatapi.replies.gemini.base import Answer, GeminiRejected

GONE_SECONDS = 600
"""How long a model that was not found is asked last: a name mistyped upstream comes back, a retired model does not."""

log = structlog.get_logger(__name__)


class GoneModels:
    """The models that a process has found gone; `clock` is in seconds. One serves all threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: dict[str, float] = {}
        self._lock = threading.Lock()

    def __contains__(self, model: str) -> bool:
        with self._lock:
            return self._until.get(model, 0.0) > self._clock()

    def add(self, model: str) -> bool:
        """Remember that `model` is gone; return whether that is news."""
        with self._lock:
            now = self._clock()
            is_news = self._until.get(model, 0.0) <= now
            if is_news:
                self._until[model] = now + GONE_SECONDS
            return is_news


_gone = GoneModels()


def answer_with_fallback(entry: ModelEntry, ask: Callable[[str], Answer], gone: GoneModels = _gone) -> Answer:
    """Return what `ask` answers for the entry's model, or for the first of its fallbacks that is not gone.

    Models that were gone a while ago are asked last. `ask` may so be called several times, each time but the last
    ending in a 404 that came before any text. Raises what `ask` raises; the last 404 when all models are gone.
    """
    models = dict.fromkeys((entry.model, *entry.fallback))
    *others, last = sorted(models, key=gone.__contains__)
    for model in others:
        try:
            return _ask(model, ask, gone)
        except GeminiRejected as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
    return _ask(last, ask, gone)


def _ask(model: str, ask: Callable[[str], Answer], gone: GoneModels) -> Answer:
    try:
        return ask(model)
    except GeminiRejected as error:
        if error.status == HTTPStatus.NOT_FOUND and gone.add(model):
            log.warning("model_gone", model=model)
        raise
