"""The JSON bodies of Gemini's REST API as Google writes them, for the stand-in."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import Any

FINISH_REASONS = {"STOP": 1, "MAX_TOKENS": 2, "SAFETY": 3}
BLOCK_REASONS = {"SAFETY": 1}
HARM_PROBABILITIES = {"NEGLIGIBLE": 1, "HIGH": 4}
HARM_CATEGORIES = {
    "HARM_CATEGORY_HARASSMENT": 7,
    "HARM_CATEGORY_HATE_SPEECH": 8,
    "HARM_CATEGORY_SEXUALLY_EXPLICIT": 9,
    "HARM_CATEGORY_DANGEROUS_CONTENT": 10,
}
NUMBERS = FINISH_REASONS | HARM_CATEGORIES | HARM_PROBABILITIES
"""SAFETY as a finish; as a block reason it is another number."""

STATUS_NAMES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
STATUS_MESSAGES = {
    400: "API key not valid. Please pass a valid API key.",
    401: "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other valid "
    "authentication credential.",
    403: "Permission denied: Consumer has been suspended.",
    429: "You exceeded your current quota, please check your plan and billing details.",
    500: "An internal error has occurred. Please retry or report in https://developers.generativeai.google/",
    503: "The model is overloaded. Please try again later.",
    504: "The request timed out. Please try again.",
}
ERROR_REASONS = {400: "API_KEY_INVALID", 401: "CREDENTIALS_MISSING", 403: "CONSUMER_SUSPENDED"}

MAX_INPUT_TOKENS = 1_048_576
MAX_QUOTE = 80
MAX_LAST_QUOTE = 500
MAX_QUOTED_TURNS = 6
CHUNK_CHARACTERS = 40
TITLE_INSTRUCTION = "Write a title"
TITLE_WORDS = 6


class InvalidRequestError(Exception):
    """A request that the real API answers with 400 INVALID_ARGUMENT; the message is for the caller."""


@dataclass(frozen=True)
class Conversation:
    """What arrived: (role, text) of each turn, the system instruction, and how many tokens the reply may have."""

    turns: tuple[tuple[str, str], ...]
    system_instruction: str | None
    max_output_tokens: int | None = None

    @property
    def last_user_text(self) -> str:
        return next((text for role, text in reversed(self.turns) if role == "user"), "")

    @property
    def token_count(self) -> int:
        return token_count("".join(text for _, text in self.turns) + (self.system_instruction or ""))


def token_count(text: str) -> int:
    """Count tokens as the stand-in has them: made up, but the same for the same text."""
    return len(text) // 4 + 1


def read_conversation(body: Any) -> Conversation:
    """Read a request's body, or raise `InvalidRequestError` where Google would refuse it."""
    if not isinstance(body, dict):
        raise InvalidRequestError("Invalid JSON payload received.")
    contents = body.get("contents")
    if not isinstance(contents, list) or not contents:
        raise InvalidRequestError("* GenerateContentRequest.contents: contents is not specified\n")
    turns = []
    for index, content in enumerate(contents):
        role = content.get("role", "user") if isinstance(content, dict) else None
        if role not in ("user", "model"):
            raise InvalidRequestError("Please use a valid role: user, model.")
        text = _text_in(content)
        if text is None:
            raise InvalidRequestError(f"* GenerateContentRequest.contents[{index}].parts: contents.parts is not set.\n")
        turns.append((role, text))
    if turns[0][0] != "user":
        raise InvalidRequestError("Please ensure that multiturn requests begin with a user turn.")
    system = body.get("systemInstruction", body.get("system_instruction"))
    return Conversation(tuple(turns), _text_in(system) if system is not None else None, _max_output_tokens(body))


def _max_output_tokens(body: dict[str, Any]) -> int | None:
    settings = body.get("generationConfig", body.get("generation_config", {}))
    if not isinstance(settings, dict):
        raise InvalidRequestError("Invalid value at 'generation_config'.")
    most = settings.get("maxOutputTokens", settings.get("max_output_tokens"))
    if most is not None and (not isinstance(most, int) or most < 1):
        raise InvalidRequestError("* GenerateContentRequest.generation_config.max_output_tokens: must be positive.\n")
    return most


def _text_in(content: Any) -> str | None:
    """Join a Content's text parts; None when it has none or they are no such thing."""
    parts = content.get("parts") if isinstance(content, dict) else None
    if isinstance(parts, dict):
        parts = [parts]
    if not isinstance(parts, list) or not parts or not all(isinstance(part, dict) for part in parts):
        return None
    return "".join(text for part in parts if isinstance(text := part.get("text", ""), str))


def reply_text(model: str, conversation: Conversation, words: int = 0) -> tuple[str, str]:
    """Compose a reply of so many words, and its finish: MAX_TOKENS where it had to be cut.

    A title where one is asked for, else a text that says where it comes from and what arrived.
    """
    if (conversation.system_instruction or "").startswith(TITLE_INSTRUCTION):
        text = " ".join(conversation.last_user_text.partition("\n")[0].split()[:TITLE_WORDS])
    else:
        text = _report(model, conversation)
    if words:
        given = text.split()
        text = " ".join((given + [f"word-{number}" for number in range(len(given) + 1, words + 1)])[:words])
    most = conversation.max_output_tokens
    if most is not None and token_count(text) > most:
        # As many characters as count for that many tokens.
        return text[: most * 4 - 1], "MAX_TOKENS"
    return text, "STOP"


def _report(model: str, conversation: Conversation) -> str:
    turns = list(conversation.turns)
    last = max((index for index, (role, _) in enumerate(turns) if role == "user"), default=0)
    earlier = turns[:last]
    told = "none"
    if earlier:
        quotes = [f"{role}: {_quote(text)}" for role, text in earlier[-MAX_QUOTED_TURNS:]]
        told = "; ".join((["…"] if len(earlier) > MAX_QUOTED_TURNS else []) + quotes)
    count = f" ({len(earlier)})" if earlier else ""
    system = _quote(conversation.system_instruction) if conversation.system_instruction else "none"
    return (
        f"[Gemini stand-in, model {model}] You said: {_quote(conversation.last_user_text, MAX_LAST_QUOTE)}. "
        f"Earlier turns I was given{count}: {told}. System instruction: {system}."
    )


def _quote(text: str, most: int = MAX_QUOTE) -> str:
    return f'"{text}"' if len(text) <= most else f'"{text[: most - 1]}…"'


def split_text(text: str) -> list[str]:
    """Cut a reply into the pieces of a stream."""
    return [text[start : start + CHUNK_CHARACTERS] for start in range(0, len(text), CHUNK_CHARACTERS)]


class AnswerWriter:
    """Composes the answers to one request, enums as numbers if the client asked for that."""

    def __init__(self, model: str, conversation: Conversation, *, enums_as_numbers: bool) -> None:
        self.model = model
        self.conversation = conversation
        self._enums_as_numbers = enums_as_numbers
        self._response_id = uuid.uuid4().hex[:22]
        self._output_tokens = 0

    def piece(self, text: str | None, finish: str | None = None, *, has_parts: bool = True) -> dict[str, Any]:
        """Compose one answer, or one element of a stream."""
        candidate: dict[str, Any] = {"index": 0}
        if text is not None:
            self._output_tokens += token_count(text)
            candidate["content"] = {"parts": [{"text": text}], "role": "model"}
        elif not has_parts:
            candidate["content"] = {"role": "model"}
        if finish is not None:
            candidate["finishReason"] = self._enum(finish)
            candidate["safetyRatings"] = self._ratings(is_harmful=finish == "SAFETY")
        return {"candidates": [candidate], **self._tail()}

    def without_candidates(self, *, is_blocked: bool) -> dict[str, Any]:
        """Compose an answer that holds no reply, with the reason or without."""
        feedback: dict[str, Any] = {}
        if is_blocked:
            reason = BLOCK_REASONS["SAFETY"] if self._enums_as_numbers else "SAFETY"
            feedback = {"promptFeedback": {"blockReason": reason, "safetyRatings": self._ratings(is_harmful=True)}}
        return {**feedback, **self._tail()}

    def _ratings(self, *, is_harmful: bool) -> list[dict[str, Any]]:
        return [
            {
                "category": self._enum(category),
                "probability": self._enum("HIGH" if is_harmful and number == 10 else "NEGLIGIBLE"),
                **({"blocked": True} if is_harmful and number == 10 else {}),
            }
            for category, number in HARM_CATEGORIES.items()
        ]

    def _tail(self) -> dict[str, Any]:
        prompt_tokens = self.conversation.token_count
        usage = {"promptTokenCount": prompt_tokens, "totalTokenCount": prompt_tokens + self._output_tokens}
        if self._output_tokens:
            usage["candidatesTokenCount"] = self._output_tokens
        return {"usageMetadata": usage, "modelVersion": self.model, "responseId": self._response_id}

    def _enum(self, name: str) -> int | str:
        return NUMBERS[name] if self._enums_as_numbers else name


def error_body(
    status: int, message: str | None = None, *, retry_after_ms: int | None = None, reason: str | None = None
) -> dict[str, Any]:
    """Compose Google's error object; `reason` is ErrorInfo's, `retry_after_ms` becomes RetryInfo."""
    details: list[dict[str, Any]] = []
    if reason is not None:
        details.append(
            {
                "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                "reason": reason,
                "domain": "googleapis.com",
                "metadata": {"service": "generativelanguage.googleapis.com"},
            }
        )
    if status == 429:
        violation = {"quotaMetric": "generativelanguage.googleapis.com/generate_content_requests"}
        details.append({"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [violation]})
    if retry_after_ms is not None:
        delay = f"{retry_after_ms / 1000:g}s"
        details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay})
    error: dict[str, Any] = {
        "code": status,
        "message": STATUS_MESSAGES[status] if message is None else message,
        "status": STATUS_NAMES[status],
    }
    if details:
        error["details"] = details
    return {"error": error}


def fault_error_body(status: int, model: str, retry_after_ms: int | None) -> dict[str, Any]:
    """Compose the error that a fault named by its status asks for."""
    if status == 404:
        return error_body(404, missing_model_message(model))
    return error_body(status, retry_after_ms=retry_after_ms, reason=ERROR_REASONS.get(status))


def missing_model_message(model: str) -> str:
    """Say what Google says of a model that it does not have."""
    return (
        f"models/{model} is not found for API version v1beta, or is not supported for generateContent. "
        "Call ListModels to see the list of available models and their supported methods."
    )


def too_long_body() -> dict[str, Any]:
    """Compose the error for a prompt that does not fit the model's context."""
    return error_body(
        400,
        f"The input token count ({MAX_INPUT_TOKENS + 1}) exceeds the maximum number of tokens allowed "
        f"({MAX_INPUT_TOKENS}).",
    )


def model_body(model: str) -> dict[str, Any]:
    """Describe a model as ListModels does."""
    is_for_prompts = not model.startswith("embedding")
    return {
        "name": f"models/{model}",
        "version": "stand-in",
        "displayName": f"Stand-in for {model}",
        "inputTokenLimit": MAX_INPUT_TOKENS,
        "outputTokenLimit": 65_536,
        "supportedGenerationMethods": ["generateContent", "countTokens"] if is_for_prompts else ["embedContent"],
    }


def from_json(raw: bytes) -> Any:
    """Parse a request's body, or raise `InvalidRequestError`."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError("Invalid JSON payload received. Unexpected token.") from error
