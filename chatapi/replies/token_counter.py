"""How many tokens a model will make of text: counted here, and put right by what the model's usage says."""

from __future__ import annotations

import math
import threading

from chatapi.replies.gemini.base import Answer, Prompt

BYTES_PER_TOKEN = 4
TOKENS_PER_TURN = 4
"""About what Gemini's tokenizer makes of text (its documentation says four characters); bytes, so that scripts of
many bytes a character are not underrated."""

LEAST_FACTOR = 0.25
MOST_FACTOR = 4.0

LEARNING_RATE = 0.2
FULL_WEIGHT_TOKENS = 500
"""Smaller prompts count for less: most of their tokens are what surrounds the text, and a context is mostly text."""


class TokenCounter:
    """Counts tokens per model, each with a factor of its own that follows the counts it was told.

    One serves all threads of a process. Nothing is kept beyond it: a few replies put a new one right.
    """

    def __init__(self) -> None:
        self._factors: dict[str, float] = {}
        self._lock = threading.Lock()

    def count(self, model: str, text: str) -> int:
        """Return about how many tokens `model` will make of one turn of `text`."""
        return math.ceil(estimate(text) * self._factor(model))

    def most_bytes(self, model: str, tokens: int) -> int:
        """Return how many bytes of text `tokens` can be at most, whatever turns they make up."""
        return math.ceil(tokens * BYTES_PER_TOKEN / self._factor(model))

    def learn(self, model: str, estimated: float, actual: int) -> None:
        """Take note that what was estimated as so many tokens, before any factor, were `actual` ones."""
        if estimated <= 0 or actual <= 0:
            return
        share = LEARNING_RATE * min(1.0, estimated / FULL_WEIGHT_TOKENS)
        ratio = _clamped(actual / estimated)
        with self._lock:
            factor = self._factors.get(model, 1.0)
            self._factors[model] = _clamped(factor + share * (ratio - factor))

    def learn_from(self, prompt: Prompt, answer: Answer) -> None:
        """Take note of what the model's usage says of `prompt`, if it says anything."""
        if answer.prompt_tokens:
            texts = [turn.text for turn in prompt.turns]
            if prompt.system_instruction:
                texts.append(prompt.system_instruction)
            self.learn(prompt.model, sum(map(estimate, texts)), answer.prompt_tokens)

    def _factor(self, model: str) -> float:
        with self._lock:
            return self._factors.get(model, 1.0)


def estimate(text: str) -> float:
    """Return about how many tokens any model will make of one turn of `text`."""
    return len(text.encode()) / BYTES_PER_TOKEN + TOKENS_PER_TURN


def _clamped(factor: float) -> float:
    return min(MOST_FACTOR, max(LEAST_FACTOR, factor))


token_counter = TokenCounter()
"""The process's own."""
