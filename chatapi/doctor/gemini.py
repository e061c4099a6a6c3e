"""Gemini: is the key taken, and is every model known, also those that are asked when another one is gone?

Asked by plain HTTP, as the SDKs are for the worker alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import requests

from chatapi.doctor.findings import Finding, failed, ok, warning
from chatapi.doctor.settings import Settings, not_set

NAME = "gemini"
GOOGLE = "https://generativelanguage.googleapis.com"
TIMEOUT_SECONDS = (3.0, 4.0)
MOST_MODELS = 12
KEY_PAGE = "https://aistudio.google.com/apikey"

ADVICE = {
    "API_KEY_INVALID": f"Put GEMINI_API_KEY right, or make another one at {KEY_PAGE}.",
    "SERVICE_DISABLED": "Enable the Generative Language API in the key's Google Cloud project.",
    "API_KEY_SERVICE_BLOCKED": "Let the key use the Generative Language API: its restrictions exclude it.",
    "API_KEY_IP_ADDRESS_BLOCKED": "Add this machine's address to those from which the key may be used.",
    "API_KEY_HTTP_REFERRER_BLOCKED": "The key is restricted to web pages: make one for servers.",
    "CONSUMER_SUSPENDED": f"Google has suspended the key's project: take another key at {KEY_PAGE}.",
    "CREDENTIALS_MISSING": f"That is no API key of Gemini's: make one at {KEY_PAGE}.",
}
"""By the reason in google.rpc.ErrorInfo."""


class NoAnswerError(Exception):
    """Gemini could not be asked. `found` and `advice` say why, of all models alike."""

    def __init__(self, found: str, advice: str) -> None:
        self.found, self.advice = found, advice
        super().__init__(found)


def check_gemini(settings: Settings) -> Iterator[Finding]:
    """Yield whether the key is taken, and what is to be said of each model."""
    models, is_stand_in = settings["GEMINI_MODELS"], "Gemini" in settings["STAND_INS"]
    if models is None:
        yield not_set(NAME, "GEMINI_MODELS")
        return
    if not settings["GEMINI_API_KEY"] and not settings["GEMINI_API_ENDPOINT"]:
        yield not_set(NAME, "GEMINI_API_KEY")
        return
    base = (settings["GEMINI_API_ENDPOINT"] or GOOGLE).rstrip("/")
    asked: dict[str, dict[str, Any] | None] = {}
    findings: list[Finding] = []
    try:
        with requests.Session() as session:
            session.headers["x-goog-api-key"] = settings["GEMINI_API_KEY"] or "none"
            for entry in models:
                for name in (entry["model"], *entry["fallback"]):
                    if name not in asked and len(asked) < MOST_MODELS:
                        asked[name] = _ask(session, base, name)
                findings.extend(_on_entry(entry, asked))
    except NoAnswerError as error:
        yield failed(NAME, f"{_host(base)}: {error.found}", error.advice)
        return
    yield ok(NAME, f"{_host(base)} takes the key" if not is_stand_in else f"{_host(base)}, a stand-in")
    yield from findings


def _ask(session: requests.Session, base: str, model: str) -> dict[str, Any] | None:
    """Return what Google says of a model, None if it has no such one. Raises `NoAnswerError`."""
    try:
        path = model if "/" in model else f"models/{model}"
        answer = session.get(f"{base}/v1beta/{path}", timeout=TIMEOUT_SECONDS, allow_redirects=False)
    except requests.RequestException as error:
        found = f"cannot be reached ({type(error).__name__})"
        raise NoAnswerError(
            found, "May this machine reach it, by HTTPS_PROXY perhaps? Is the endpoint right?"
        ) from None
    body = _json_of(answer)
    if answer.status_code == 404 and _error_in(body).get("status") == "NOT_FOUND":
        return None
    if answer.status_code != 200:
        raise _refusal(answer.status_code, body)
    if "name" not in body:
        raise _not_gemini()
    return body


def _refusal(status: int, body: dict[str, Any]) -> NoAnswerError:
    """Return what a refusal means. Its message is not passed on, as Google quotes the key in some."""
    error = _error_in(body)
    if not error:
        return _not_gemini(status)
    details = error.get("details")
    found = [each for each in details if isinstance(each, dict)] if isinstance(details, list) else []
    reason = next((str(each["reason"]) for each in found if "reason" in each), None)
    told = f"{status} {reason or error.get('status') or ''}".rstrip()
    if status == 429 or status >= 500:
        return NoAnswerError(f"answers {told}", "Try again in a minute; https://aistudio.google.com/status tells more.")
    advice = ADVICE.get(reason or "", f"Is GEMINI_API_KEY right, and may it be used from here? See {KEY_PAGE}.")
    return NoAnswerError(f"refuses the key ({told})", advice)


def _not_gemini(status: int = 200) -> NoAnswerError:
    found = f"what answers there ({status}) is not Gemini"
    return NoAnswerError(found, "Put GEMINI_API_ENDPOINT right, or leave it away; is there a proxy in between?")


def _error_in(body: dict[str, Any]) -> dict[str, Any]:
    error = body.get("error")
    return error if isinstance(error, dict) else {}


def _json_of(answer: requests.Response) -> dict[str, Any]:
    try:
        body = answer.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _on_entry(entry: dict[str, Any], asked: dict[str, dict[str, Any] | None]) -> Iterator[Finding]:
    """Yield what is to be said of an alias: of its model first, then of each fallback that will not do."""
    name, model = f"model {entry['alias']}", entry["model"]
    usable = [each for each in entry["fallback"] if asked.get(each)]
    if model in asked and asked[model] is None:
        advice = "Put the model's name right in GEMINI_MODELS or GEMINI_MODEL; " + _other(usable)
        yield (warning if usable else failed)(name, f"Gemini has no {model}", advice)
    else:
        yield _on_model(name, entry, asked.get(model))
    for each in entry["fallback"]:
        if each in asked and asked[each] is None:
            yield warning(name, f"Gemini has no {each}, its fallback", "Name one that it has in GEMINI_MODELS.")


def _other(usable: list[str]) -> str:
    return f"until then {usable[0]} answers." if usable else "until then its replies fail."


def _on_model(name: str, entry: dict[str, Any], body: dict[str, Any] | None) -> Finding:
    if body is None:
        return warning(name, f"{entry['model']} was not asked for", f"Only the first {MOST_MODELS} models are.")
    methods = body.get("supportedGenerationMethods")
    if isinstance(methods, list) and "generateContent" not in methods:
        return failed(name, f"{entry['model']} does not answer prompts", "Name another one in GEMINI_MODELS.")
    for limit, setting in (("inputTokenLimit", "context_tokens"), ("outputTokenLimit", "max_output_tokens")):
        most = body.get(limit)
        if isinstance(most, int) and entry[setting] > most:
            found = f"{entry['model']} takes {most}, and {setting} is {entry[setting]}"
            return warning(name, found, f"Set {setting} to {most} at the most in GEMINI_MODELS.")
    return ok(name, str(entry["model"]))


def _host(base: str) -> str:
    return urlsplit(base).netloc.rpartition("@")[2]
