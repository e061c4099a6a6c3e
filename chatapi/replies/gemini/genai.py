"""Gemini through google-genai, the successor of the first SDK; imported by the worker alone, and only when chosen."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import httpx2
import requests
from google import genai
from google.genai import types
from google.genai.errors import APIError

from chatapi.replies.gemini.base import Answer, Prompt
from chatapi.replies.gemini.exchange import exchange
from chatapi.replies.gemini.outcomes import Piece, refusal_within
from chatapi.replies.gemini.transport import GeminiAdapter, PiecewiseResponse
from chatapi.upstream.adapter import session_by
from chatapi.upstream.calls import UpstreamCall

for _name in ("httpx2", "google_genai"):
    # They log each request's URL at INFO, and what they cannot read at DEBUG.
    logging.getLogger(_name).setLevel(logging.WARNING)


class GenAIClient:
    """Answers prompts by one call each, with no retry of its own; make it after any fork."""

    def __init__(self, api_key: str | None, endpoint: str | None, timeout_seconds: float, pool_size: int = 32) -> None:
        """Call Gemini at `endpoint`, Google's own when None, with `timeout_seconds` for each wait within a call.

        `pool_size` is how many connections are kept: as many as threads will call.
        """
        if not api_key and not endpoint:
            raise ValueError("Gemini needs a key or an endpoint")
        self._http = httpx2.Client(transport=_RequestsTransport(timeout_seconds, pool_size))
        self._client = genai.Client(
            # The environment must not turn this into a client of Vertex AI, nor lend it a key.
            enterprise=False,
            api_key=api_key or "no-key",
            http_options=types.HttpOptions(
                base_url=endpoint.rstrip("/") if endpoint else None,
                api_version="v1beta",
                timeout=int(timeout_seconds * 1000),
                httpx_client=self._http,
            ),
        )

    def generate(self, prompt: Prompt, call: UpstreamCall) -> Answer:
        """Answer `prompt` in one piece."""
        return exchange(prompt, call, lambda: self._whole(prompt), lambda _: None)

    def stream(self, prompt: Prompt, call: UpstreamCall, on_text: Callable[[str], None]) -> Answer:
        """Answer `prompt`, handing each piece of text to `on_text` as it comes."""
        return exchange(prompt, call, lambda: self._pieces(prompt), on_text)

    def close(self) -> None:
        """Close the connections kept open."""
        self._client.close()
        self._http.close()

    def _whole(self, prompt: Prompt) -> Iterator[Piece]:
        try:
            response = self._client.models.generate_content(
                model=prompt.model, contents=_contents_of(prompt), config=_config_of(prompt)
            )
        except APIError as error:
            raise refusal_within(error.details) from None
        yield _piece_of(response)

    def _pieces(self, prompt: Prompt) -> Iterator[Piece]:
        elements = self._client.models.generate_content_stream(
            model=prompt.model, contents=_contents_of(prompt), config=_config_of(prompt)
        )
        try:
            for element in elements:
                yield _piece_of(element)
        except APIError as error:
            raise refusal_within(error.details) from None


class _RequestsTransport(httpx2.BaseTransport):
    """Sends what the SDK sends by requests, so that deadline, cancel, proxies and refusals are as in the other one."""

    def __init__(self, timeout_seconds: float, pool_size: int) -> None:
        self._timeout_seconds = timeout_seconds
        self._session = session_by(GeminiAdapter(pool_maxsize=pool_size))

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        response = self._session.request(
            request.method,
            str(request.url),
            data=request.read(),
            # What requests can decode is for requests to say.
            headers={name: value for name, value in request.headers.items() if name != "accept-encoding"},
            timeout=self._timeout_seconds,
            stream=True,
        )
        # The body comes decoded, so its headers would only mislead.
        return httpx2.Response(response.status_code, stream=_Body(response))

    def close(self) -> None:
        self._session.close()


class _Body(httpx2.SyncByteStream):
    def __init__(self, response: requests.Response) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        if isinstance(self._response, PiecewiseResponse):
            yield from self._response.pieces()

    def close(self) -> None:
        self._response.close()


def _contents_of(prompt: Prompt) -> types.ContentListUnion:
    return [types.Content(role=turn.role, parts=[types.Part(text=turn.text)]) for turn in prompt.turns]


def _config_of(prompt: Prompt) -> types.GenerateContentConfig:
    return types.GenerateContentConfig(
        system_instruction=prompt.system_instruction or None,
        max_output_tokens=prompt.max_output_tokens,
        # What makes further calls of its own must not be here.
        automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
        automatic_continuation=False,
    )


def _piece_of(response: types.GenerateContentResponse) -> Piece:
    candidate = response.candidates[0] if response.candidates else None
    parts = (candidate.content.parts or []) if candidate and candidate.content else []
    feedback, usage = response.prompt_feedback, response.usage_metadata
    finish = candidate.finish_reason if candidate else None
    return Piece(
        text="".join(part.text for part in parts if part.text and not part.thought),
        finish=finish.value if finish and finish.value != "FINISH_REASON_UNSPECIFIED" else None,
        has_candidate=candidate is not None,
        is_prompt_blocked=bool(feedback and feedback.block_reason),
        model=response.model_version,
        prompt_tokens=usage.prompt_token_count if usage else None,
        output_tokens=usage.candidates_token_count if usage else None,
    )
