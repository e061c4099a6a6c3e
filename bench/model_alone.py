"""The yardstick of replies: an SDK that asks the same model for the same, with nothing around it.

    python -m bench.model_alone --sdk google-genai --endpoint http://127.0.0.1:8000 --threads 128 --seconds 10

Prints JSON: how many answers came to their end within `seconds` after `warm` ones, and for each of them the
milliseconds to the first text and to the end.
"""

from __future__ import annotations

import argparse
import importlib
import json
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

MODEL = "gemini-3.5-flash"
PROMPT = "What is the capital of France?"

Ask = Callable[[], Iterator[str]]


def first_sdk(endpoint: str) -> Ask:
    """Return how google-generativeai, as its own documentation has it, is asked for a streamed answer."""
    warnings.simplefilter("ignore")
    genai: Any = importlib.import_module("google.generativeai")

    genai.configure(api_key="a key", transport="rest", client_options={"api_endpoint": endpoint})
    model = genai.GenerativeModel(MODEL)

    def ask() -> Iterator[str]:
        answer = model.generate_content(PROMPT, stream=True, request_options={"timeout": 60, "retry": None})
        for piece in answer:
            yield piece.text

    return ask


def second_sdk(endpoint: str) -> Ask:
    """Return how google-genai is."""
    from google import genai  # noqa: PLC0415
    from google.genai import types  # noqa: PLC0415

    client = genai.Client(api_key="a key", http_options=types.HttpOptions(base_url=endpoint, api_version="v1beta"))

    def ask() -> Iterator[str]:
        for piece in client.models.generate_content_stream(model=MODEL, contents=PROMPT):
            yield piece.text or ""

    return ask


SDKS = {"google-generativeai": first_sdk, "google-genai": second_sdk}


def main() -> None:
    """Ask in many threads, each again as soon as it has its answer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sdk", choices=SDKS, required=True)
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--warm", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args()
    ask = SDKS[options.sdk](options.endpoint)
    "".join(ask())
    began_at = time.monotonic() + options.warm
    ends_at = began_at + options.seconds
    firsts: list[float] = []
    wholes: list[float] = []

    def ask_on_and_on() -> None:
        while (asked_at := time.monotonic()) < ends_at:
            pieces = ask()
            next(pieces)
            first_at = time.monotonic()
            for _ in pieces:
                pass
            if began_at <= time.monotonic() < ends_at:
                firsts.append((first_at - asked_at) * 1000)
                wholes.append((time.monotonic() - asked_at) * 1000)

    threads = [threading.Thread(target=ask_on_and_on) for _ in range(options.threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"rate": len(wholes) / options.seconds, "firsts": firsts, "wholes": wholes}))


if __name__ == "__main__":
    main()
