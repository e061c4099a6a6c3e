"""Which SDK answers, by the settings."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

import config
from chatapi.replies.gemini.base import GeminiClient


def make_client(settings: Mapping[str, Any]) -> GeminiClient:
    """Make the client that `GEMINI_SDK` names; only the worker may, and after it has forked."""
    arguments = {
        "api_key": settings["GEMINI_API_KEY"],
        "endpoint": settings["GEMINI_API_ENDPOINT"],
        "timeout_seconds": settings["GEMINI_TIMEOUT_SECONDS"],
        "pool_size": settings["WORKER_THREADS"],
    }
    # Either SDK costs more than a second and 50 MB: the one that is not used stays out.
    if settings["GEMINI_SDK"] == "google-genai":
        if importlib.util.find_spec("google.genai") is None:
            raise config.ConfigError(
                ["GEMINI_SDK is google-genai, which is not installed: pip install -r requirements-genai.txt"]
            )
        from chatapi.replies.gemini.genai import GenAIClient  # noqa: PLC0415

        return GenAIClient(**arguments)
    from chatapi.replies.gemini.generativeai import GenerativeAIClient  # noqa: PLC0415

    return GenerativeAIClient(**arguments)
