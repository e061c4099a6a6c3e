"""Gemini through google-generativeai, Google's first SDK; imported by the worker alone (1.5 s, 80 MB)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

from chatapi.replies.gemini.base import Answer, Prompt
from chatapi.replies.gemini.exchange import exchange
from chatapi.replies.gemini.outcomes import Piece, refusal_within
from chatapi.replies.gemini.transport import GeminiAdapter
from chatapi.upstream.calls import UpstreamCall

with warnings.catch_warnings():
    # The SDK is the one asked for, updates or not; the other says when its base will want a newer Python.
    warnings.filterwarnings("ignore", message=r"\s*All support for the `google\.generativeai`", category=FutureWarning)
    warnings.filterwarnings("ignore", message=r"You are using a Python version", category=FutureWarning)
    from google.auth.exceptions import GoogleAuthError
    from google.generativeai import protos
    from google.generativeai.client import configure, get_default_generative_client
    from google.protobuf.json_format import ParseError

UNREADABLE = (ParseError, GoogleAuthError)

FINISH_NAMES = {
    1: "STOP",
    2: "MAX_TOKENS",
    3: "SAFETY",
    4: "RECITATION",
    7: "BLOCKLIST",
    8: "PROHIBITED_CONTENT",
    9: "SPII",
}
"""By number, since the SDK asks for enums as numbers and knows no name for those invented after it."""


class GenerativeAIClient:
    """Answers prompts by one call each, with no retry of its own.

    The SDK's settings belong to the process: make one of these per process, and after any fork, since connections
    shared over a fork swap answers between processes.
    """

    def __init__(self, api_key: str | None, endpoint: str | None, timeout_seconds: float, pool_size: int = 32) -> None:
        """Call Gemini at `endpoint`, Google's own when None, with `timeout_seconds` for each wait within a call.

        `pool_size` is how many connections are kept: as many as threads will call.
        """
        if not api_key and not endpoint:
            raise ValueError("Gemini needs a key or an endpoint")
        # A timeout alone would leave a retry of up to 600 s in place.
        self._options: dict[str, Any] = {"timeout": timeout_seconds, "retry": None}
        configure(
            # Without one the SDK would look for a key, then for a Google account, in the environment.
            api_key=api_key or "no-key",
            transport="rest",
            client_options={"api_endpoint": endpoint.rstrip("/")} if endpoint else None,
        )
        # Made here and not at the first call, where several threads would make several. The SDK has no public way to
        # its session, whose own pool of 10 drops the connections of all further threads.
        self._client: Any = get_default_generative_client()
        transport: Any = self._client.transport
        session = transport._session  # noqa: SLF001
        self._adapter = GeminiAdapter(pool_maxsize=pool_size)
        session.mount("https://", self._adapter)
        session.mount("http://", self._adapter)

    def generate(self, prompt: Prompt, call: UpstreamCall) -> Answer:
        """Answer `prompt` in one piece."""
        return exchange(prompt, call, lambda: self._whole(prompt), lambda _: None, UNREADABLE)

    def stream(self, prompt: Prompt, call: UpstreamCall, on_text: Callable[[str], None]) -> Answer:
        """Answer `prompt`, handing each piece of text to `on_text` as it comes."""
        return exchange(prompt, call, lambda: self._pieces(prompt), on_text, UNREADABLE)

    def close(self) -> None:
        """Close the connections kept open."""
        self._adapter.close()

    def _whole(self, prompt: Prompt) -> Iterator[Piece]:
        yield _piece_of(self._client.generate_content(request=_request_of(prompt), **self._options))

    def _pieces(self, prompt: Prompt) -> Iterator[Piece]:
        # Not GenerativeModel's stream, which holds each element back until the next has come.
        elements = self._client.stream_generate_content(request=_request_of(prompt), **self._options)
        has_end = False
        for element in elements:
            piece = _piece_of(element)
            has_end = has_end or piece.finish is not None or piece.is_prompt_blocked
            yield piece
        # The SDK reads an error among the elements as an empty one.
        if not has_end and (error := elements._response.error_element()) is not None:  # noqa: SLF001
            raise refusal_within(error)


def _request_of(prompt: Prompt) -> Any:
    return protos.GenerateContentRequest(
        model=prompt.model if "/" in prompt.model else f"models/{prompt.model}",
        contents=[protos.Content(role=turn.role, parts=[protos.Part(text=turn.text)]) for turn in prompt.turns],
        system_instruction=(
            protos.Content(parts=[protos.Part(text=prompt.system_instruction)]) if prompt.system_instruction else None
        ),
        generation_config=protos.GenerationConfig(max_output_tokens=prompt.max_output_tokens),
    )


def _piece_of(response: Any) -> Piece:
    # The bare message: the SDK's wrapping of it costs more than all the rest of reading it.
    body = type(response).pb(response)
    candidate = body.candidates[0] if body.candidates else None
    finish = candidate.finish_reason if candidate else 0
    return Piece(
        text="".join(part.text for part in candidate.content.parts) if candidate else "",
        finish=FINISH_NAMES.get(finish, "OTHER") if finish else None,
        has_candidate=candidate is not None,
        is_prompt_blocked=bool(body.prompt_feedback.block_reason),
        model=body.model_version,
        prompt_tokens=body.usage_metadata.prompt_token_count,
        output_tokens=body.usage_metadata.candidates_token_count,
    )
