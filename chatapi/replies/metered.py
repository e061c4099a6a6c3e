"""Counting and timing the calls of models, by their alias."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from chatapi import metrics
from chatapi.replies.gemini.base import GeminiCancelled, GeminiRejected, GeminiRetryable


@contextmanager
def metered_call(model: str) -> Iterator[None]:
    """Count the call within the block as one of the model with this alias, and how it ends."""
    began_at = time.perf_counter()
    outcome = "broken"
    try:
        yield
        outcome = "answered"
    except GeminiCancelled:
        outcome = "cancelled"
        raise
    except GeminiRetryable as error:
        outcome = "timed_out" if error.timed_out else "unavailable"
        raise
    except GeminiRejected as error:
        outcome = error.reason
        raise
    finally:
        metrics.model_called(model, outcome, time.perf_counter() - began_at)
