"""One exchange with Gemini, whichever SDK makes it: pieces become a reply, troubles become what to do about them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator

import requests
from urllib3.exceptions import HTTPError
from urllib3.exceptions import TimeoutError as ReadTimeout

from chatapi.replies.gemini.base import Answer, GeminiCancelled, GeminiError, GeminiRetryable, Prompt
from chatapi.replies.gemini.outcomes import Piece, Reply
from chatapi.upstream.calls import UpstreamCall

BROKEN_OFF: tuple[type[Exception], ...] = (OSError, HTTPError)
"""What a connection ends in; requests' own exceptions are OSErrors."""

UNREADABLE: tuple[type[Exception], ...] = (ValueError, TypeError, AttributeError, LookupError, RecursionError)
"""What SDKs raise over an answer of a shape that they do not expect."""


def exchange(
    prompt: Prompt,
    call: UpstreamCall,
    pieces: Callable[[], Iterator[Piece]],
    on_text: Callable[[str], None],
    unreadable: tuple[type[Exception], ...] = (),
) -> Answer:
    """Ask by `pieces` and return the reply, with each text handed to `on_text` as it comes.

    `unreadable` are further exceptions of the SDK over an answer that it cannot read.
    """
    # Outside: what is wrong with our own input must not pass for trouble upstream.
    _check(prompt)
    reply = Reply(prompt.model)
    with call, contextlib.closing(_texts(call, pieces, reply, unreadable)) as texts:
        for text in texts:
            on_text(text)
    return reply.answer()


def _check(prompt: Prompt) -> None:
    if not prompt.turns:
        raise ValueError("A prompt has at least one turn")
    for text in (prompt.system_instruction or "", *(turn.text for turn in prompt.turns)):
        # Half a surrogate pair cannot be sent.
        text.encode()


def _texts(
    call: UpstreamCall, pieces: Callable[[], Iterator[Piece]], reply: Reply, unreadable: tuple[type[Exception], ...]
) -> Generator[str]:
    """Yield the texts; a generator, so that nothing which `on_text` raises is taken for trouble upstream."""
    expected: tuple[type[Exception], ...] = (GeminiError, *BROKEN_OFF, *UNREADABLE, *unreadable)
    _check_time(call)
    try:
        for piece in pieces():
            text = reply.add(piece)
            _check_time(call)
            if text:
                yield text
    except expected as error:
        # Not chained: what was caught quotes a URL, or what it could not read.
        raise _meaning_of(error, call) from None
    # A body whose length nobody announced looks complete when its connection was shut.
    _check_time(call)


def _check_time(call: UpstreamCall) -> None:
    if call.is_cancelled:
        raise GeminiCancelled("The call to Gemini was cancelled")
    if call.is_expired:
        raise GeminiRetryable("Gemini did not answer in time", timed_out=True)


def _meaning_of(error: Exception, call: UpstreamCall) -> GeminiError:
    try:
        _check_time(call)
    except GeminiError as over:
        return over
    if isinstance(error, GeminiError):
        return error
    if _is_timeout(error):
        return GeminiRetryable("Gemini did not answer in time", timed_out=True)
    name = type(error).__name__
    if isinstance(error, BROKEN_OFF):
        return GeminiRetryable(f"Gemini could not be reached or broke off: {name}")
    return GeminiRetryable(f"Gemini's answer could not be read: {name}", status=200)


def _is_timeout(error: Exception) -> bool:
    """Say if `error` is a read that took too long: within a body, requests calls it a ConnectionError."""
    kinds = (TimeoutError, requests.exceptions.Timeout, ReadTimeout)
    return isinstance(error, kinds) or (bool(error.args) and isinstance(error.args[0], kinds))
