"""What a reply needs of a model, whoever serves it: a prompt, an answer, and errors that say what to do next.

The web process may import this module; an adapter, with its SDK, only the worker.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from chatapi.upstream.calls import UpstreamCall

RejectionReason = Literal["upstream_rejected", "safety_blocked", "context_too_long"]


@dataclass(frozen=True)
class Turn:
    """One earlier or the present message of a conversation."""

    role: Literal["user", "model"]
    text: str


@dataclass(frozen=True)
class Prompt:
    """One question to a model: `turns` in order, the last one the user's. The reply may have `max_output_tokens`."""

    model: str
    turns: Sequence[Turn]
    system_instruction: str | None
    max_output_tokens: int = 8192


@dataclass(frozen=True)
class Answer:
    """A finished reply. `model` is the one that really answered; counts are None where the provider gave none."""

    text: str
    model: str
    prompt_tokens: int | None
    output_tokens: int | None


class GeminiError(Exception):
    """A prompt was not answered.

    The message goes to logs: it is a constant text and a status, never a prompt, a reply, a key or a URL.
    `status` is the provider's HTTP status, or None when there was no such answer.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class GeminiRetryable(GeminiError):  # noqa: N818 - named for what to do next, not for what went wrong.
    """The same prompt may succeed later.

    `retry_after` is the provider's own wish in seconds, `timed_out` says that time ran out rather than something broke.
    """

    def __init__(
        self, message: str, *, status: int | None = None, retry_after: float | None = None, timed_out: bool = False
    ) -> None:
        super().__init__(message, status=status)
        self.retry_after = retry_after
        self.timed_out = timed_out


class GeminiRejected(GeminiError):  # noqa: N818 - as above.
    """The same prompt to the same model will not succeed; `reason` is what the reply's error says."""

    def __init__(self, message: str, *, reason: RejectionReason, status: int | None = None) -> None:
        super().__init__(message, status=status)
        self.reason: RejectionReason = reason


class GeminiCancelled(GeminiError):  # noqa: N818 - as above.
    """The call was cancelled, by `UpstreamCall.cancel`, before the reply was whole."""


class GeminiClient(Protocol):
    """Something that answers prompts; safe to call from many threads at once.

    Both ways raise `GeminiRetryable`, `GeminiRejected`, or `GeminiCancelled` once `call` was cancelled.
    """

    def generate(self, prompt: Prompt, call: UpstreamCall) -> Answer:
        """Answer `prompt` in one piece."""
        ...

    def stream(self, prompt: Prompt, call: UpstreamCall, on_text: Callable[[str], None]) -> Answer:
        """Answer `prompt`, handing each piece of text to `on_text` as it comes; joined they are the answer's text."""
        ...

    def close(self) -> None:
        """Close the connections kept open."""
        ...
