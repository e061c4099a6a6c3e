"""Lines: whatever is logged comes out as one JSON object in one line, with nothing secret in it."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import traceback
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn
from uuid import UUID

import pytest
import requests
from psycopg2.errors import UniqueViolation
from sqlalchemy.exc import IntegrityError

from chatapi.errors import NotFoundError
from chatapi.log_lines import MOST_BYTES, MOST_FRAMES, ConsoleFormatter, JsonFormatter
from chatapi.redaction import MASK, Redactor, secrets_of
from config import ConfigError

UUID_TEXT = "01a204ab-fbfd-7256-96e6-1a950ac03bd1"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.s3cr3t-signature_of-the-token"
REFRESH = "Xk3-an-opaque_refresh-token-of-43-characters"


class HostileError(Exception):
    def __str__(self) -> NoReturn:
        raise RuntimeError("not even this")


class Hostile:
    def __str__(self) -> NoReturn:
        raise RuntimeError("no")

    __repr__ = __hash__ = __str__  # type: ignore[assignment]


class HostileDict(dict[str, Any]):
    def items(self) -> NoReturn:
        raise RuntimeError("no")


class Colour(StrEnum):
    RED = "red"


def record(event: Any, *arguments: Any, name: str = "chatapi.tests", exc_info: Any = None, **data: Any) -> Any:
    """Return what logging would hand to a formatter: from us if there is no text for a library's arguments."""
    message = {"event": event, "level": "info", **data} if not arguments and name.startswith("chatapi") else event
    made = logging.LogRecord(name, logging.INFO, __file__, 1, message, arguments, exc_info)
    made.created = datetime(2001, 1, 1, tzinfo=UTC).timestamp()  # of now, it may hold by chance what must not be there
    return made


def refuse_constant(name: str) -> NoReturn:
    raise AssertionError(f"{name} is no JSON")


def parsed(found: logging.LogRecord, *secrets: str) -> dict[str, Any]:
    line = JsonFormatter(Redactor(secrets)).format(found)
    assert line.isascii()
    assert len(line.splitlines()) == 1
    assert len(line) < MOST_BYTES
    value: dict[str, Any] = json.loads(line, parse_constant=refuse_constant)
    assert value["timestamp"].endswith("Z")
    assert value["level"] == "info"
    return value


def raised(error: BaseException) -> Any:
    """Return the exc_info of an exception that was raised here."""
    try:
        raise error  # noqa: TRY301
    except BaseException:  # noqa: BLE001
        return sys.exc_info()


CYCLE: list[Any] = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a\nb\r\n\x1b[2J\x00\x85\u2028c", "a\nb\r\n\x1b[2J\x00\x85\u2028c"),
        ("\ud800 and \udfff", "? and ?"),
        ('"}\\', '"}\\'),
        ("مرحبا 👋", "مرحبا 👋"),
        (b"\xff\n", "<2 bytes>"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (10**5000, "<whole number of 16610 bits>"),
        (2**64 - 1, 2**64 - 1),
        (True, True),
        (None, None),
        (UUID(UUID_TEXT), UUID_TEXT),
        (datetime(2026, 11, 23, tzinfo=UTC), "2026-11-23 00:00:00+00:00"),
        (Decimal("1.50"), "1.50"),
        (Path("/var/log"), "/var/log"),
        (HTTPStatus.OK, 200),
        (Colour.RED, "red"),
        (Hostile(), "<Hostile>"),
        (HostileError(), "<HostileError>"),
        (ValueError(JWT), "<ValueError>"),
        ({"\ud800": {1: ["x", {"y"}]}}, {"?": {"1": ["x", ["y"]]}}),
        (CYCLE, [[[["<list>"]]]]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_line_is_one_json_object_whatever_the_value(value: Any, expected: Any) -> None:
    assert parsed(record("event", value=value))["value"] == expected


@pytest.mark.parametrize(
    "found",
    [
        record("%d items", "no number", name="urllib3"),
        record("%s", Hostile(), name="urllib3"),
        record(Hostile(), name="urllib3"),
        record(Hostile()),
        record("event", **{"\n\ud800" * 200: 1}),
        record("event", value=HostileDict(a=1)),
        record("event", exc_info=raised(HostileError())),
        record("event", exc_info=(None, None, None)),
        record("event", name="\ud800\n"),
    ],
)
def test_line_is_one_json_object_whatever_fails_while_it_is_made(found: logging.LogRecord) -> None:
    parsed(found)


def test_library_s_text_is_kept_when_its_arguments_do_not_fit() -> None:
    assert parsed(record("%d items", "no number", name="urllib3"))["event"] == "%d items"


@pytest.mark.parametrize("length", [1001, 100_000, 5_000_000])
def test_long_value_is_cut(length: int) -> None:
    value = parsed(record("event", value="x" * length))["value"]

    assert value.startswith("x" * 1000 + "… (")
    assert len(value) < 1040


def test_long_line_is_cut_and_says_so() -> None:
    many = {f"field_{index}": "\u2028" * 900 for index in range(40)}
    line = parsed(record("event", request_id=UUID_TEXT, **many, exc_info=raised(ValueError())))

    assert line["is_cut"] is True
    assert (line["event"], line["request_id"]) == ("event", UUID_TEXT)


def test_fields_do_not_take_the_place_of_the_line_s_own() -> None:
    assert parsed(record("event", timestamp="never", logger="other", pid=-1))["logger"] == "chatapi.tests"


def deep(depth: int) -> NoReturn:
    if depth:
        deep(depth - 1)
    raise KeyError(JWT)


def test_exception_is_told_by_its_kind_and_place_without_what_it_says() -> None:
    try:
        try:
            deep(100)
        except KeyError as error:
            raise requests.ConnectionError(f"a prompt, to /pay?key={JWT}") from error
    except requests.ConnectionError:
        found = record("failed", exc_info=sys.exc_info())

    outer, inner = parsed(found)["exception"]
    assert outer["type"] == "requests.exceptions.ConnectionError"
    assert inner["type"] == "KeyError"
    assert "message" not in outer | inner
    assert outer["where"][-1].startswith("tests/test_logs.py:")
    assert len(inner["where"]) == MOST_FRAMES
    assert inner["where"][-1].endswith(" deep")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (NotFoundError("Chatroom not found"), "Chatroom not found"),
        (ConfigError(["LOG_DIR is wrong."]), "Cannot start:\n- LOG_DIR is wrong."),
        (TypeError("can only concatenate str"), "can only concatenate str"),
        (ValueError("invalid literal: 'a prompt'"), None),
        (IntegrityError("INSERT", None, UniqueViolation("DETAIL: Key (mobile_number)=(+15550001111)")), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_exception_says_only_what_comes_from_the_code(error: Exception, said: str | None) -> None:
    found = parsed(record("failed", exc_info=raised(error)))["exception"]

    assert found[0].get("message") == said
    assert "5550001111" not in json.dumps(found)


def test_interpreter_s_complaint_in_a_library_is_not_told() -> None:
    try:
        json.dumps({"prompt": object()})
    except TypeError:
        found = parsed(record("failed", exc_info=sys.exc_info()))["exception"]

    assert "message" not in found[0]


@pytest.mark.parametrize("is_named", [True, False])
def test_exception_is_found_whether_it_is_named_or_is_the_current_one(is_named: bool) -> None:
    try:
        deep(0)
    except KeyError as error:
        message = {"event": "failed", "exc_info": error if is_named else True}
        line = parsed(logging.LogRecord("chatapi.tests", logging.INFO, __file__, 1, message, (), None))

    assert line["exception"][0]["type"] == "KeyError"


SECRET_TEXTS = [
    (f"Authorization: Bearer {JWT}", "s3cr3t"),
    (f"bad token {JWT}.", "eyJ"),
    (f"half of one: {JWT[:30]}", "eyJ"),
    ("authorization': 'Basic dXNlcjpwYXNz'", "dXNl"),
    (f"refresh_token={REFRESH}", REFRESH[:16]),
    (f"Session {REFRESH} ended", REFRESH[:16]),
    ("sk_live_4eC39HqLyjWDarjtT1", "4eC39"),
    ("key rk_test_4eC39HqLyjWDarjtT1!", "4eC39"),
    ("whsec_abc+def/ghi=", "abc"),
    ("x-goog-api-key: AIzaSyA-0123456789_abc", "SyA"),
    ("postgresql+psycopg2://chat:p@ss/w0rd@db.example:5432/chat", "w0rd"),
    ("redis://:hunter22@cache:6379/0", "hunter22"),
    ("host=db password=hunter22 user=x", "hunter22"),
    ('{"password": "hunter seven", "a": 1}', "seven"),
    ("PASSWORD = 'hunter seven'", "seven"),
    ("DETAIL:  Key (mobile_number)=(+15551234567) already exists.", "555123"),
    ("to +1 (555) 123-4567 now", "4567"),
    ("POST /send?to=%2B15551234567&x=1", "555123"),
    ("Max retries exceeded with url: /v1?key=hunter22 (Caused by x)", "hunter22"),
    ("tel15551234567x", "555123"),
    ("'15551234567'", "555123"),
    ("your code is 042917.", "042917"),
    ("tel1555123456789", "555123"),
    ("155512345678900", "555123"),
    ("abc15551234567", "555123"),
    ("failed: \n042917", "042917"),
    ("code=042917", "042917"),
    ("ann@example.com wrote", "ann@"),
    ("x" * 3990 + " password=hunter22", "hunter"),
    ("x" * 980 + " +15551234567", "555"),
]


@pytest.mark.parametrize(("text", "secret"), SECRET_TEXTS, ids=[text[:40] for text, _ in SECRET_TEXTS])
@pytest.mark.parametrize("place", ["value", "event", "library", "list", "key"])
def test_secret_in_a_text_is_masked(monkeypatch: pytest.MonkeyPatch, text: str, secret: str, place: str) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1)
    found = {
        "value": lambda: record("event", value=text),
        "event": lambda: record(text),
        "library": lambda: record("Retrying: %s", text, name="urllib3"),
        "list": lambda: record("event", value=[{"a": text}]),
        "key": lambda: record("event", value={text[-99:]: 1}),
    }[place]()

    assert secret not in json.dumps(parsed(found), ensure_ascii=False)
    assert secret not in ConsoleFormatter(Redactor(), colors=False).format(found)


@pytest.mark.parametrize(
    "text",
    [
        UUID_TEXT,
        f"reply {UUID_TEXT} ended, 01a204ab-1234-7256-9612-123456789012 too",
        "4bf92f3577b34da6a3ce929d01234567",
        "00-12345678901234567890123456789abc-a123456789012345-01",
        "followed-138c9632b21d4d39bc12345678a9fd60 ended",
        "/chatroom/<chatroom_id>/message/<message_id>",
        "Booting worker with pid: 123456",
        "Listening at: http://127.0.0.1:31368 (4242)",
        "Worker exiting (pid: 1234567)",
        "evt_1NG8Du2eZvKYlo2CUI79vXWy",
        "chatapi/broker.py:156 run",
        "took 12.345678 s",
        "2026-11-23T06:04:18.123456Z",
        "upstream_unavailable",
        "gemini-2.5-flash",
        "DELETE FROM reply_jobs WHERE lease_token = %(lease_token)s",
        "ix_reply_jobs_user_id_and_something_quite_long_indeed",
        "chatapi:limits:LIMITER/user",
    ],
)
def test_what_is_no_secret_is_left(text: str) -> None:
    assert parsed(record("event", value=text))["value"] == text


def test_numbers_of_ours_are_left() -> None:
    line = parsed(
        record("reply_ended", prompt_tokens=123456, output_tokens=7, milliseconds=123456.7, number_hash="ab12")
    )

    assert (line["prompt_tokens"], line["output_tokens"], line["milliseconds"]) == (123456, 7, 123456.7)
    assert line["number_hash"] == "ab12"


@pytest.mark.parametrize("name", ["otp", "Authorization", "content", "prompt", "mobile_number", "api-key", "password"])
@pytest.mark.parametrize("value", ["x", 42917, ["x"], {"a": "x"}])
def test_field_with_a_secret_s_name_is_masked_whatever_it_holds(name: str, value: Any) -> None:
    assert parsed(record("event", **{name: value}))[name] == MASK
    assert parsed(record("event", details={name: value}))["details"][name] == MASK


def test_secrets_of_the_service_are_masked_wherever_they_stand() -> None:
    settings = {
        "JWT_SECRET": "correct horse",
        "STRIPE_WEBHOOK_SECRET": ("whatever-one", "whatever-two"),
        "METRICS_TOKEN": "scrapes",
        "GEMINI_API_KEY": "plain-word",
        "DATABASE_URL": "postgresql+psycopg2://chat:p%40ssword@db/chat?host=/tmp",
        "OTP_WEBHOOK_URL": "https://sms.example/send?auth=in-the-query",
        "PORT": 5000,
        "GEMINI_MODEL": "gemini",
        "LOG_DIR": None,
    }
    words = [
        "correct horse",
        "whatever-one",
        "whatever-two",
        "scrapes",
        "plain-word",
        "p%40ssword",
        "p@ssword",
        "in-the-query",
    ]
    secrets = secrets_of(settings)
    assert secrets == set(words)

    text = json.dumps(parsed(record(" ".join(words), value="(correct%20horse)"), *secrets))
    assert not any(word in text for word in (*words, "correct"))


def test_masks_hold_when_the_same_text_comes_again() -> None:
    formatter = JsonFormatter(Redactor())
    lines = {json.loads(formatter.format(record("event", value="code 042917")))["value"] for _ in range(3)}

    assert lines == {"code <digits>"}


REPEATED = (
    "a,9,9.,://,://@,?,?a,eyJ,eyJ-,bearer ,a@,@a.,+1,+1 (,%2B,password=,a-,A1-,password  ,token',://a:,pid,0000-,"
    "01a204ab-,sk_live_,a.,+,1 ,12345678,0000000a,0000000g, "
)


@pytest.mark.parametrize("part", REPEATED.split(","))
def test_hostile_text_takes_no_time_to_speak_of(part: str) -> None:
    redactor = Redactor(["hunter-22"])
    text = part * (1_000_000 // len(part))

    def seconds() -> float:
        began = time.process_time()
        redactor.text(text)
        return time.process_time() - began

    assert min(seconds() for _ in range(3)) < 0.02


def test_redactor_remembers_few_texts() -> None:
    redactor = Redactor()
    for index in range(10_000):
        redactor.text(f"word-{index}")

    assert len(redactor._clean) <= 4096


def test_console_shows_what_happened_and_plays_no_tricks_on_the_terminal() -> None:
    shown = ConsoleFormatter(Redactor(), colors=False).format(
        record("reply_accepted\x1b[2J\nfaked", request_id=UUID_TEXT, value="\x1b]0;x\x07")
    )

    assert f"request_id={UUID_TEXT}" in shown
    assert "reply_accepted\\x1b[2J\\nfaked" in shown
    assert len(shown.splitlines()) == 1
    assert "\x1b" not in shown


def test_console_shows_tracebacks_with_what_they_say_but_for_secrets() -> None:
    shown = ConsoleFormatter(Redactor(), colors=False).format(
        record("failed", exc_info=raised(KeyError(f"row of +15551234567, {JWT}")))
    )

    assert "Traceback (most recent call last)" in shown
    assert "KeyError: 'row of <number>, <token>'" in shown


def test_nothing_is_said_of_values_in_frames() -> None:
    prompt = "grandmother"

    def fail(_prompt: str) -> NoReturn:
        raise LookupError

    trace: TracebackType | None
    try:
        fail(prompt)
    except LookupError as error:
        found, trace = record("failed", exc_info=sys.exc_info()), error.__traceback__

    assert trace is not None
    assert traceback.extract_tb(trace)[-1].name == "fail"
    assert "grandmother" not in json.dumps(parsed(found))
