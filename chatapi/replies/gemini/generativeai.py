"""Gemini through google-generativeai, Google's first SDK; imported by the worker alone (1.5 s, 80 MB)."""

from __future__ import annotations

import re
import warnings
from typing import Any

import requests

from chatapi.replies.gemini.base import Answer, GeminiError, GeminiRejected, GeminiRetryable, Prompt
from chatapi.replies.gemini.transport import WholeAnswerAdapter

with warnings.catch_warnings():
    # The SDK is the one asked for, updates or not; the other says when its base will want a newer Python.
    warnings.filterwarnings("ignore", message=r"\s*All support for the `google\.generativeai`", category=FutureWarning)
    warnings.filterwarnings("ignore", message=r"You are using a Python version", category=FutureWarning)
    from google.auth.exceptions import GoogleAuthError
    from google.generativeai import protos
    from google.generativeai.client import configure, get_default_generative_client
    from google.generativeai.generative_models import GenerativeModel
    from google.generativeai.types import RequestOptions
    from google.protobuf.json_format import ParseError

MAX_OUTPUT_TOKENS = 8192

BLOCKED_FINISHES = frozenset({3, 4, 7, 8, 9})
"""FinishReason SAFETY, RECITATION, BLOCKLIST, PROHIBITED_CONTENT and SPII: the model was not let finish.

Numbers, since the SDK asks for enums as numbers and knows no name for those invented after it.
"""

RETRYABLE_STATUSES = frozenset({408, 409, 425, 429, 499})
"""Beside every 5xx. 409 is Google's ABORTED, 499 its CANCELLED."""

TOO_LONG = re.compile(r"token count .*(exceeds|only supports)|payload size exceeds", re.IGNORECASE | re.DOTALL)
"""How Google says that a prompt does not fit: a plain 400 INVALID_ARGUMENT, told apart by its sentence alone."""

DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)s")
"""google.protobuf.Duration in JSON, such as 37.5s."""


class GenerativeAIClient:
    """Answers prompts by one unary call each, with no retry of its own.

    The SDK's settings belong to the process: make one of these per process, and after any fork, since connections
    shared over a fork swap answers between processes.
    """

    def __init__(self, api_key: str | None, endpoint: str | None, timeout_seconds: float, pool_size: int = 32) -> None:
        """Call Gemini at `endpoint`, Google's own when None, with `timeout_seconds` for each whole call.

        `pool_size` is how many connections are kept: as many as threads will call.
        """
        if not api_key and not endpoint:
            raise ValueError("Gemini needs a key or an endpoint")
        # A timeout alone would leave a retry of up to 600 s in place.
        self._request_options = RequestOptions(timeout=timeout_seconds, retry=None)
        configure(
            # Without one the SDK would look for a key, then for a Google account, in the environment.
            api_key=api_key or "no-key",
            transport="rest",
            client_options={"api_endpoint": endpoint.rstrip("/")} if endpoint else None,
        )
        # Made here and not at the first call, where several threads would make several. The SDK has no public way to
        # its session, whose own pool of 10 drops the connections of all further threads.
        transport: Any = get_default_generative_client().transport
        session = transport._session  # noqa: SLF001
        self._adapter = WholeAnswerAdapter(pool_maxsize=pool_size)
        session.mount("https://", self._adapter)
        session.mount("http://", self._adapter)

    def generate(self, prompt: Prompt) -> Answer:
        """Answer `prompt`, or raise `GeminiRetryable` or `GeminiRejected`."""
        # Outside the try: what is wrong with our own input must not pass for trouble upstream.
        contents = [_content_of(turn.role, turn.text) for turn in prompt.turns]
        model = GenerativeModel(
            prompt.model,
            generation_config={"max_output_tokens": MAX_OUTPUT_TOKENS},
            system_instruction=prompt.system_instruction or None,
        )
        try:
            response = model.generate_content(contents, request_options=self._request_options)
        except requests.exceptions.HTTPError as error:
            raise _refusal_of(error.response) from None
        except requests.exceptions.Timeout as error:
            raise GeminiRetryable("Gemini did not answer in time", timed_out=True) from error
        except (requests.exceptions.RequestException, GoogleAuthError) as error:
            raise GeminiRetryable("Gemini could not be reached or broke off") from error
        except (ParseError, ValueError):
            # Both quote what they could not read, so they are not chained.
            raise GeminiRetryable("Gemini's answer could not be read", status=200) from None
        # Not `.text`, which raises ValueError for whatever is no plain reply.
        return _answer_of(response.to_dict(), prompt.model)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Close the connections kept open."""
        self._adapter.close()


def _content_of(role: str, text: str) -> Any:
    return protos.Content(role=role, parts=[protos.Part(text=text)])


def _answer_of(body: dict[str, Any], model: str) -> Answer:
    """Read an answer of status 200, which need not hold a reply."""
    candidates = body.get("candidates")
    if not candidates:
        if body.get("prompt_feedback", {}).get("block_reason"):
            raise GeminiRejected("Gemini blocked the prompt", reason="safety_blocked", status=200)
        raise GeminiRetryable("Gemini answered without a candidate", status=200)
    finish = candidates[0].get("finish_reason", 0)
    if finish in BLOCKED_FINISHES:
        raise GeminiRejected("Gemini blocked its reply", reason="safety_blocked", status=200)
    if not finish:
        raise GeminiRetryable("Gemini's reply has no end", status=200)
    parts = candidates[0].get("content", {}).get("parts", [])
    # PostgreSQL's text holds no NUL.
    text = "".join(part.get("text", "") for part in parts).replace("\x00", "")
    if not text.strip():
        # Also where MAX_TOKENS cut it: a model that thought until none were left may think less the next time, and if
        # it never does, a reply that failed serves its reader better than an empty one that counts.
        raise GeminiRetryable("Gemini's reply is empty", status=200)
    usage = body.get("usage_metadata", {})
    return Answer(
        text=text,
        model=body.get("model_version") or model,
        prompt_tokens=usage.get("prompt_token_count") or None,
        output_tokens=usage.get("candidates_token_count") or None,
    )


def _refusal_of(response: requests.Response) -> GeminiError:
    """Turn an answer of another status than 2xx into what to do about it."""
    status = response.status_code
    error = _error_in(response)
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


def _error_in(response: requests.Response) -> dict[str, Any]:
    """Find Google's error object in a body that may come from any proxy on the way; {} when there is none."""
    try:
        body = response.json()
    except (ValueError, RecursionError):
        return {}
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
