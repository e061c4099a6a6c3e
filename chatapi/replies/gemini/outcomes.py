"""What an answer of Gemini means, by whichever SDK it came: a reply, or what to do about there being none."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from chatapi.replies.gemini.base import Answer, GeminiError, GeminiRejected, GeminiRetryable

BLOCKED_FINISHES = frozenset({"SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII"})
"""Finish reasons that say that the model was not let finish."""

RETRYABLE_STATUSES = frozenset({408, 409, 425, 429, 499})
"""Beside every 5xx. 409 is Google's ABORTED, 499 its CANCELLED."""

TOO_LONG = re.compile(r"token count .*(exceeds|only supports)|payload size exceeds", re.IGNORECASE | re.DOTALL)
"""How Google says that a prompt does not fit: a plain 400 INVALID_ARGUMENT, told apart by its sentence alone."""

DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)s")
"""google.protobuf.Duration in JSON, such as 37.5s."""


@dataclass(frozen=True)
class Piece:
    """What of a reply one element of a stream holds, or the whole answer; `finish` is a FinishReason's name."""

    text: str = ""
    finish: str | None = None
    has_candidate: bool = False
    is_prompt_blocked: bool = False
    model: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None


class Reply:
    """A reply as it grows, piece by piece."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._texts: list[str] = []
        self._finish: str | None = None
        self._has_candidate = False
        self._is_prompt_blocked = False
        self._prompt_tokens: int | None = None
        self._output_tokens: int | None = None

    def add(self, piece: Piece) -> str:
        """Take `piece`, and return its text as it counts; ValueError where it is no text at all."""
        # PostgreSQL's text holds no NUL. Half a surrogate pair is no text: encoding it is what finds it.
        text = piece.text.replace("\x00", "")
        text.encode()
        self._texts.append(text)
        self._finish = piece.finish or self._finish
        self._has_candidate |= piece.has_candidate
        self._is_prompt_blocked |= piece.is_prompt_blocked
        self._model = piece.model or self._model
        self._prompt_tokens = piece.prompt_tokens or self._prompt_tokens
        self._output_tokens = piece.output_tokens or self._output_tokens
        return text

    def answer(self) -> Answer:
        """Return the whole reply, or raise `GeminiRejected` or `GeminiRetryable` where it is none."""
        if not self._has_candidate:
            if self._is_prompt_blocked:
                raise GeminiRejected("Gemini blocked the prompt", reason="safety_blocked", status=200)
            raise GeminiRetryable("Gemini answered without a candidate", status=200)
        if self._finish in BLOCKED_FINISHES:
            raise GeminiRejected("Gemini blocked its reply", reason="safety_blocked", status=200)
        if self._finish is None:
            raise GeminiRetryable("Gemini's reply has no end", status=200)
        text = "".join(self._texts)
        if not text.strip():
            # Also where MAX_TOKENS cut it: a model that thought until none were left may think less the next time, and
            # if it never does, a reply that failed serves its reader better than an empty one that counts.
            raise GeminiRetryable("Gemini's reply is empty", status=200)
        return Answer(text, self._model, self._prompt_tokens, self._output_tokens)


def refusal_of(status: int, body: bytes) -> GeminiError:
    """Turn an answer of another status than 2xx into what to do about it."""
    return _refusal(status, _error_in(body))


def refusal_within(body: object) -> GeminiError:
    """Turn an error that came within an answer of status 200: its code decides as a status would."""
    error = _error_object(body)
    status = error.get("code")
    if isinstance(status, int) and 400 <= status < 600:
        return _refusal(status, error)
    return GeminiRetryable("Gemini answered with an error", status=200)


def _refusal(status: int, error: dict[str, Any]) -> GeminiError:
    if status >= 500 or status in RETRYABLE_STATUSES:
        return GeminiRetryable(
            f"Gemini answered {status}",
            status=status,
            retry_after=_retry_delay_in(error),
            timed_out=status in {408, 504},
        )
    if status == 413 or (status == 400 and TOO_LONG.search(str(error.get("message")))):
        return GeminiRejected(f"Gemini answered {status}: too long", reason="context_too_long", status=status)
    return GeminiRejected(f"Gemini answered {status}", reason="upstream_rejected", status=status)


def _error_in(body: bytes) -> dict[str, Any]:
    """Find Google's error object in a body that may come from any proxy on the way; {} when there is none."""
    try:
        return _error_object(json.loads(body))
    except (ValueError, RecursionError):
        return {}


def _error_object(body: object) -> dict[str, Any]:
    if isinstance(body, list) and body:
        # Google wraps the errors of its streaming methods so.
        body = body[0]
    error = body.get("error") if isinstance(body, dict) else None
    return error if isinstance(error, dict) else {}


def _retry_delay_in(error: dict[str, Any]) -> float | None:
    """Read google.rpc.RetryInfo, in seconds; https://cloud.google.com/apis/design/errors."""
    details = error.get("details")
    for detail in details if isinstance(details, list) else []:
        if isinstance(detail, dict) and str(detail.get("@type")).endswith("google.rpc.RetryInfo"):
            match = DURATION.fullmatch(str(detail.get("retryDelay")))
            return float(match[1]) if match else None
    return None
