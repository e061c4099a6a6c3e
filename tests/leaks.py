"""Searches what the suite's applications answer and log for the codes, tokens and mobile numbers that it used."""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from werkzeug.wsgi import ClosingIterator

from chatapi.log_lines import ConsoleFormatter, JsonFormatter
from chatapi.redaction import Redactor

CODE, TOKEN, NUMBER = "code", "token", "mobile number"

SECRET_MEMBERS = {
    "otp": CODE,
    "token": TOKEN,
    "refresh_token": TOKEN,
    "signup_token": TOKEN,
    "mobile_number": NUMBER,
}
CLAIMING_ROUTES = {"/auth/verify-otp", "/auth/reset-password"}
"""What these accept as a code is one, however it was delivered."""

CODE_ROUTES = {"/auth/send-otp", "/auth/forgot-password"}
NUMBER_ROUTES = CODE_ROUTES | {"/auth/signup", "/auth/verify-otp", "/auth/login", "/user/me", "/user/me/export"}

OUR_FILES = ("/static/", "/docs/assets/")
"""Answers from here are files, the same for everybody; Swagger UI's hold any number of six digits."""

EXAMPLES = {"123456", "15551234567"}
"""The code and the number that the OpenAPI document shows: no secrets, though tests use them."""

MOST_REPORTED = 20

_SHAPES = {CODE: r"[0-9]{6}", TOKEN: r"[A-Za-z0-9_.-]{16,}", NUMBER: r"\+?[0-9]{8,15}"}

# A part of an id can look like a number. And what an escape stands for is no letter and no digit: left as it is, its
# own last character would hide a code that begins behind it.
_ID_OR_ESCAPE = re.compile(
    r"\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b"
    r"|\x1b\[[0-9;]*m|\\u[0-9a-f]{4}|\\x[0-9a-f]{2}|\\[a-z]|%[0-9a-f]{2}",
    re.IGNORECASE,
)

# Where six digits stand by themselves by chance. The suite makes some 3,000 of the million codes, so each other number
# of six digits that stays in its logs and answers raises a false alarm in one run of 300. None may stay, and of a whole
# run's 22,000 lines and more than 10,000 answers none did: what stays, such as years, ports and line numbers,
# has fewer digits. What brings new ones belongs in here.
_INNOCENT = re.compile(
    r"\d+\.\d+"  # Fractions, such as the microseconds of a time.
    r"|^\d+:(?=[A-Z] |signal-handler )"  # Process ids: how Valkey begins a line,
    r"|(?<=UTC )\[\d+\]|(?<=\+0000\] )\[\d+\]"  # PostgreSQL and gunicorn behind the time,
    r"|\bListening at: \S+ \(\d+\)"
    r"|\b(?:pid|process)\"?[ :=]+\d+"  # all of them elsewhere.
    r"|\b\d+ (?:kB|bytes)\b",
    re.IGNORECASE,
)
_INNOCENT_HEADERS = ("content-length", "x-ratelimit-")

_PART_LENGTH = 16
"""So many characters from the beginning of a token count as the token: logs like to cut things off."""

_PATTERNS = {
    CODE: re.compile(r"(?<![0-9A-Za-z])[0-9]{6}(?![0-9A-Za-z])"),
    TOKEN: re.compile(rf"[A-Za-z0-9_-]{{{_PART_LENGTH},}}"),
    NUMBER: re.compile(r"(?<![0-9])[0-9]{8,15}(?![0-9])"),
}


class LeakSearch:
    """Learns secrets from requests and answers, and notes whatever looks like one where none may be.

    Only at the end is it known which of those are secrets: a code can be logged before the answer that tells it.
    """

    def __init__(self) -> None:
        self._secrets: dict[str, set[str]] = {kind: set() for kind in _PATTERNS}
        # By kind and text, the first place where it was seen.
        self._seen: dict[str, dict[str, str]] = {kind: {} for kind in _PATTERNS}

    def note_code(self, code: str) -> None:
        """Learn a code that no answer told."""
        self.note_secrets({"otp": code})

    def note_secrets(self, told: Any) -> None:
        """Learn the secrets that are the members of a JSON value."""
        self._learn(told, SECRET_MEMBERS)

    def note_answer(
        self, method: str, path: str, sent: Any, status: int, headers: Iterable[tuple[str, str]], body: bytes
    ) -> None:
        """Learn from a request with the JSON `sent` and from its answer, and note what that shows."""
        route = path.partition("?")[0]
        if route.startswith(OUR_FILES):
            return
        answered = _read_json(body)
        self._learn(sent, {"mobile_number"})
        self._learn(answered, SECRET_MEMBERS)
        if route in CLAIMING_ROUTES and status == 200:
            self._learn(sent, {"otp"})
        text = body.decode(errors="replace")
        if answered is not None:
            text = json.dumps(_without_sanctioned(route, status, answered), ensure_ascii=False)
        place = f"the answer {status} to {method} {route}"
        self._note(place, text)
        for name, value in headers:
            if not name.lower().startswith(_INNOCENT_HEADERS):
                self._note(f"a header of {place}", f"{name}: {value}")

    def note_log(self, name: str, lines: Iterable[str]) -> None:
        """Note what a log shows."""
        for index, line in enumerate(lines, 1):
            self._note(f"{name}, line {index}", line)

    def note_log_files(self, folder: Path) -> None:
        """Note what the logs show that processes have written into `folder` and its folder `logs`."""
        for path in sorted([*folder.glob("*.log"), *folder.glob("logs/*.log")]):
            with path.open(errors="replace") as lines:
                self.note_log(path.name, lines)

    def watch(self, app: Flask) -> None:
        """Note each answer of `app` as it leaves, with all its headers; the body of a stream once it was all read."""
        inner = app.wsgi_app

        def wsgi_app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            head: list[Any] = []

            def start(*arguments: Any) -> Any:
                head[:] = arguments
                return start_response(*arguments)

            def note(body: bytes) -> None:
                status, headers = int(head[0].split()[0]), head[1]
                self.note_answer(environ["REQUEST_METHOD"], environ["PATH_INFO"], sent, status, headers, body)

            def teed() -> Iterator[bytes]:
                body = b""
                for part in parts:
                    body += part
                    yield part
                note(body)

            stream = environ["wsgi.input"]
            sent = _read_json(stream.getvalue()) if isinstance(stream, BytesIO) else None
            parts = inner(environ, start)
            close = getattr(parts, "close", None)
            note(b"")
            if head[0].startswith("200") and "content-length" not in {name.lower() for name, _ in head[1]}:
                return ClosingIterator(teed(), close)
            # Read now, as nobody else may: many a test looks at the status alone.
            return ClosingIterator(list(teed()), close)

        app.wsgi_app = wsgi_app  # type: ignore[method-assign]

    @contextmanager
    def capture_logs(self) -> Iterator[None]:
        """Note all that this process logs meanwhile, in both forms in which the application writes it."""
        with ExitStack() as stack:
            files, handlers = [], []
            for formatter in _application_formatters():
                file = stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8", errors="backslashreplace"))
                handler = logging.StreamHandler(file)
                handler.setFormatter(formatter)
                files.append(file)
                handlers.append(handler)
            call_handlers = logging.Logger.callHandlers

            def call_ours_too(logger: logging.Logger, record: logging.LogRecord) -> None:
                for handler in handlers:
                    handler.handle(record)
                call_handlers(logger, record)

            # Handlers of the root logger would not do: each new application takes them off.
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(logging.Logger, "callHandlers", call_ours_too)
                yield
            for file in files:
                file.seek(0)
                self.note_log("the log of the applications in this process", file)

    def findings(self) -> list[str]:
        """Return a line for each secret that was seen where none may be; it says where, without the secret."""
        starts = {token.rpartition(".")[2][:_PART_LENGTH] for token in self._secrets[TOKEN]}
        return [
            f"a {kind} in {place}"
            for kind, seen in self._seen.items()
            for text, place in seen.items()
            if (_has_part(text, starts) if kind == TOKEN else text in self._secrets[kind])
        ]

    def fail_on_findings(self) -> None:
        """Fail if a secret was seen where none may be."""
        found = self.findings()
        if found:
            rest = [f"and {len(found) - MOST_REPORTED} more"] if len(found) > MOST_REPORTED else []
            pytest.fail("\n".join(["Leaked: " + found[0], *found[1:MOST_REPORTED], *rest]), pytrace=False)

    def _learn(self, told: Any, names: Collection[str]) -> None:
        for name, value in _members(told):
            if name in names and isinstance(value, str) and value.removeprefix("+") not in EXAMPLES:
                kind = SECRET_MEMBERS[name]
                if re.fullmatch(_SHAPES[kind], value):
                    self._secrets[kind].add(value.removeprefix("+"))

    def _note(self, place: str, text: str) -> None:
        plain = _ID_OR_ESCAPE.sub(" ", text)
        for kind, pattern in _PATTERNS.items():
            searched = _INNOCENT.sub(" ", plain) if kind == CODE else plain
            for match in pattern.finditer(searched):
                if match[0] not in self._seen[kind]:
                    before, after = searched[: match.start()][-100:], searched[match.end() :][:50]
                    self._seen[kind][match[0]] = f"{place}: {before}<{kind}>{after}".strip()


def _read_json(body: bytes) -> Any:
    """Return what the JSON text says, None if it is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _members(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the members of all objects in a JSON value. It may be as deep as the parser lets through."""
    waiting = [value]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield from node.items()
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)


def _without_sanctioned(route: str, status: int, body: Any) -> Any:
    """Return the body of an answer without the members in which a secret is handed to its owner."""
    if status >= 300 or not isinstance(body, dict):
        return body
    at_top = {name for name, kind in SECRET_MEMBERS.items() if kind == TOKEN and route.startswith("/auth/")}
    if route in CODE_ROUTES:
        at_top.add("otp")
    in_user = {"mobile_number"} if route in NUMBER_ROUTES else set()
    rest = {name: value for name, value in body.items() if name not in at_top | in_user}
    if isinstance(rest.get("user"), dict):
        rest["user"] = {name: value for name, value in rest["user"].items() if name not in in_user}
    return rest


def _has_part(text: str, parts: set[str]) -> bool:
    return any(text[index : index + _PART_LENGTH] in parts for index in range(len(text) - _PART_LENGTH + 1))


class _Unmasked(Redactor):
    """Masks nothing: what must not be logged is to be found though it would be masked in the end."""

    def field(self, name: str, value: Any) -> Any:  # noqa: ARG002
        return value

    def text(self, value: str) -> str:
        return value


def _application_formatters() -> list[logging.Formatter]:
    """Return what renders the application's logs, in both of its forms, but for the masks."""
    return [JsonFormatter(_Unmasked(), keeps_messages=True), ConsoleFormatter(_Unmasked(), colors=False)]


SUITE = LeakSearch()
"""What the whole suite is searched with; its findings fail the run."""
