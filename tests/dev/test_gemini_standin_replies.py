"""What the Gemini stand-in replies when a test wants a certain reply, and what it tells of clients that leave."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from chatapi.dev.gemini_faults import Fault
from chatapi.dev.gemini_standin import GeminiStandin


@pytest.fixture
def standin() -> Iterator[GeminiStandin]:
    with GeminiStandin() as running:
        yield running


def ask(standin: GeminiStandin, text: str, method: str = "generateContent", timeout: float = 5, **fields: Any) -> Any:
    body = {"contents": [{"parts": [{"text": text}]}], **fields}
    url = f"{standin.url}/v1beta/models/some-model:{method}"
    with urllib.request.urlopen(url, json.dumps(body).encode(), timeout) as response:  # noqa: S310 - the stand-in's.
        return json.load(response)


def reply_in(answer: dict[str, Any]) -> tuple[str, str | None]:
    [candidate] = answer["candidates"]
    return candidate["content"]["parts"][0]["text"], candidate.get("finishReason")


@pytest.mark.parametrize("words", [1, 200])
def test_reply_is_as_long_as_told_when_words_are_asked_for(standin: GeminiStandin, words: int) -> None:
    text, finish = reply_in(ask(standin, f"hi [[words={words}]]"))

    assert (len(text.split()), finish) == (words, "STOP")


def test_stream_has_many_pieces_when_words_are_asked_for(standin: GeminiStandin) -> None:
    pieces = ask(standin, "hi [[words=200 chunk_ms=1]]", "streamGenerateContent")

    assert len(pieces) > 30
    assert len("".join(reply_in(piece)[0] for piece in pieces).split()) == 200


@pytest.mark.parametrize("method", ["generateContent", "streamGenerateContent"])
def test_reply_is_cut_when_the_request_bounds_its_tokens(standin: GeminiStandin, method: str) -> None:
    answer = ask(standin, "hi", method, generationConfig={"maxOutputTokens": 5})
    text, finish = reply_in(answer[-1] if isinstance(answer, list) else answer)

    assert (text, finish) == ("[Gemini stand-in, m", "MAX_TOKENS")


@pytest.mark.parametrize("settings", [5, {"maxOutputTokens": "x"}, {"maxOutputTokens": 0}])
def test_request_is_refused_when_its_bound_is_none(standin: GeminiStandin, settings: Any) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(standin, "hi", generationConfig=settings)

    assert caught.value.code == 400
    caught.value.close()


def test_reply_is_a_title_when_one_is_asked_for(standin: GeminiStandin) -> None:
    instruction = {"parts": [{"text": "Write a title for this conversation."}]}

    answer = ask(standin, "How do I bake bread without any yeast?", systemInstruction=instruction)

    assert reply_in(answer)[0] == "How do I bake bread without"


@pytest.mark.parametrize("method", ["generateContent", "streamGenerateContent"])
@pytest.mark.parametrize("fault", [Fault("hang"), Fault("hang_in_stream", chunks=1), Fault("drip")])
def test_request_was_left_when_its_client_goes_before_the_end(
    standin: GeminiStandin, fault: Fault, method: str
) -> None:
    standin.add_fault(Fault(times=1))
    standin.add_fault(fault)
    ask(standin, "hi", method)

    with pytest.raises(TimeoutError):
        ask(standin, "hi", method, timeout=0.1)

    ends_at = time.monotonic() + 2
    while not standin.requests[-1].was_left and time.monotonic() < ends_at:
        time.sleep(0.01)
    assert [request.was_left for request in standin.requests] == [False, True]


def test_stream_ends_after_so_many_pieces_when_cut_says_how_many(standin: GeminiStandin) -> None:
    standin.add_fault(Fault("cut", chunks=2, words=100))

    with pytest.raises(http.client.IncompleteRead):
        ask(standin, "hi", "streamGenerateContent")
