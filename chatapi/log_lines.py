"""One line for whatever is logged, by us or by a library: plain values, nothing secret, never too long, never torn."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import traceback
from collections import deque
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path, PurePath
from types import TracebackType
from typing import Any
from uuid import UUID

import structlog

from chatapi.redaction import MOST_READ, Redactor

MOST_BYTES = 4096
"""Of a JSON line with its end. So much Linux writes to a pipe in one piece, whoever else writes to it (PIPE_BUF)."""

MOST_ITEMS = 50
MOST_DEPTH = 4
MOST_FRAMES = 15
MOST_CAUSES = 4

ROOT = f"{Path(__file__).resolve().parent.parent}{os.sep}"
PACKAGES = f"{os.sep}site-packages{os.sep}"

# The interpreter's own words for a mistake in the code; others, such as KeyError, quote what they were given.
_TELLING = (
    AttributeError, NameError, UnboundLocalError, TypeError, ImportError, ModuleNotFoundError, IndexError,
    NotImplementedError, ZeroDivisionError, AssertionError, RecursionError,
)  # fmt: skip

_encode = json.JSONEncoder(check_circular=False).encode


class JsonFormatter(logging.Formatter):
    """Renders records as JSON objects in one line of ASCII, each once, however many handlers ask for it."""

    def __init__(self, redactor: Redactor, *, keeps_messages: bool = False) -> None:
        """Mask by `redactor`; `keeps_messages` leaves exceptions what they say, which can be anything."""
        super().__init__()
        self._redactor = redactor
        self._keeps_messages = keeps_messages

    def format(self, record: logging.LogRecord) -> str:
        """Return the line. Nothing that is logged makes this fail."""
        made: tuple[object, str] = record.__dict__.get("_json_line", (None, ""))
        if made[0] is not self:
            made = self, self._line(record)
            record.__dict__["_json_line"] = made
        return made[1]

    def _line(self, record: logging.LogRecord) -> str:
        try:
            fields = self.fields(record)
            line = _encode(fields)
            return line if len(line) < MOST_BYTES else _shortened(fields)
        except Exception as error:  # noqa: BLE001 - a log line fails nobody's work
            return _encode({**_head(record), "event": "log_line_lost", "reason": type(error).__name__})

    def fields(self, record: logging.LogRecord) -> dict[str, Any]:
        """Return what the line says."""
        event, data, error = _parts(record)
        fields = {**_head(record), "event": self._redactor.text(event), "pid": os.getpid()}
        for name, value in data.items():
            if name not in fields:
                fields[_name(name)] = self._redactor.field(_name(name), _plain(value))
        if error is not None:
            fields["exception"] = [self._described(each) for each in _chain(error)]
        return fields

    def _described(self, error: BaseException) -> dict[str, Any]:
        kind = type(error)
        shown: dict[str, Any] = {"type": f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")}
        if self._keeps_messages or _is_telling(error):
            shown["message"] = self._redactor.text(_text(error))
        shown["where"] = _frames(error.__traceback__)
        return shown


class ConsoleFormatter(JsonFormatter):
    """Renders records for people, with tracebacks as Python shows them and what exceptions say, secrets masked."""

    def __init__(self, redactor: Redactor, *, colors: bool) -> None:
        super().__init__(redactor)
        self._console = structlog.dev.ConsoleRenderer(
            colors=colors, exception_formatter=structlog.dev.plain_traceback, sort_keys=False
        )

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, or the lines, if there is a traceback."""
        try:
            return self._rendered(record)
        except Exception:  # noqa: BLE001 - the one line of JSON will do
            return super().format(record)

    def _rendered(self, record: logging.LogRecord) -> str:
        event, data, error = _parts(record)
        shown: dict[str, Any] = {**_head(record), "event": _printable(self._redactor.text(event))}
        for name, value in data.items():
            if name not in shown:
                plain = self._redactor.field(_name(name), _plain(value))
                shown[_name(name)] = _printable(plain) if isinstance(plain, str) else plain
        if error is not None:
            lines = "".join(traceback.format_exception(error)).splitlines()
            shown["exception"] = "\n".join(_printable(self._redactor.text(line)) for line in lines)
        return str(self._console(None, record.levelname.lower(), shown))


def _head(record: logging.LogRecord) -> dict[str, Any]:
    moment = datetime.fromtimestamp(record.created, UTC)
    return {
        "timestamp": f"{moment.replace(tzinfo=None).isoformat(timespec='microseconds')}Z",
        "level": record.levelname.lower(),
        "logger": _ascii(record.name),
    }


def _parts(record: logging.LogRecord) -> tuple[str, dict[str, Any], BaseException | None]:
    """Return event, data and exception of a record: ours carry a mapping, a library's a text."""
    if type(record.msg) is dict:
        data = dict(record.msg)
        for name in ("level", "stack_info"):
            data.pop(name, None)
        return _text(data.pop("event", "")), data, _exception(data.pop("exc_info", None) or record.exc_info)
    try:
        event = record.getMessage()
    except Exception:  # noqa: BLE001 - such as a format that its arguments do not fit
        event = _text(record.msg)
    return event.rstrip("\n"), structlog.contextvars.get_contextvars(), _exception(record.exc_info)


def _exception(given: Any) -> BaseException | None:
    found = given[1] if isinstance(given, tuple) else sys.exc_info()[1] if given is True else given
    return found if isinstance(found, BaseException) else None


def _text(value: Any) -> str:
    try:
        return _whole(str(value))
    except Exception:  # noqa: BLE001 - a __str__ can raise anything
        return f"<{type(value).__name__}>"


def _whole(text: str) -> str:
    """Return a text without halves of surrogate pairs, which are no characters: strict readers refuse them."""
    return text if text.isascii() else text.encode(errors="replace").decode()


def _ascii(text: str) -> str:
    return text if text.isascii() else text.encode("ascii", "replace").decode()


def _name(name: Any) -> str:
    return name[:100] if type(name) is str and name.isascii() else _ascii(_text(name))[:100]


def _printable(text: str) -> str:
    """Return a text that does nothing to a terminal but show."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _plain(value: Any, depth: int = 0) -> Any:
    """Return what JSON can say of a value. Of kinds that it does not know it says the name alone."""
    kind = type(value)
    if kind is str:
        return _whole(value[: MOST_READ + 1])
    if value is None or kind is bool:
        return value
    if kind is int:
        return value if -(2**63) <= value < 2**64 else f"<whole number of {value.bit_length()} bits>"
    if kind is float:
        return value if math.isfinite(value) else repr(value)
    if kind in (UUID, datetime, date, Decimal) or isinstance(value, PurePath):
        return _text(value)
    if depth < MOST_DEPTH and isinstance(value, dict | list | tuple | set | frozenset):
        return _plain_items(value, depth)
    if isinstance(value, bytes | bytearray):
        return f"<{len(value)} bytes>"
    if isinstance(value, str):  # Its subclasses may say anything else of themselves.
        return _whole(str.__str__(value)[: MOST_READ + 1])
    if isinstance(value, int):
        return _plain(int.__int__(value), depth)
    return f"<{kind.__name__}>"


def _plain_items(value: Any, depth: int) -> Any:
    if isinstance(value, dict):
        some = list(value.items())[:MOST_ITEMS]
        return {_name(key): _plain(item, depth + 1) for key, item in some}
    return [_plain(item, depth + 1) for item in list(value)[:MOST_ITEMS]]


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and what it came from."""
    found: BaseException | None = error
    for _ in range(MOST_CAUSES):
        if found is None:
            return
        yield found
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)


def _is_telling(error: BaseException) -> bool:
    """Return whether what an exception says comes from the code and not from data.

    So it is with our own exceptions, and with the interpreter's complaints about our own code. A foreign one may
    quote what it was given: a prompt, a number, a statement with its values.
    """
    kind = type(error)
    if kind.__module__.partition(".")[0] in ("chatapi", "config") and not _is_database_error(kind):
        return True
    return kind in _TELLING and _is_raised_by_us(error.__traceback__)


def _is_database_error(kind: type[BaseException]) -> bool:
    return any(each.__module__.startswith(("psycopg2", "sqlalchemy")) for each in kind.__mro__)


def _is_raised_by_us(found: TracebackType | None) -> bool:
    if found is None:
        return False
    while found.tb_next is not None:
        found = found.tb_next
    filename = found.tb_frame.f_code.co_filename
    return filename.startswith(ROOT) and PACKAGES not in filename


def _frames(found: TracebackType | None) -> list[str]:
    """Return the innermost places of a traceback, the innermost last, without any values."""
    frames: deque[str] = deque(maxlen=MOST_FRAMES)
    while found is not None:
        code = found.tb_frame.f_code
        filename = code.co_filename.rpartition(PACKAGES)[2].removeprefix(ROOT)
        frames.append(_ascii(f"{filename}:{found.tb_lineno} {code.co_name}")[-160:])
        found = found.tb_next
    return list(frames)


def _shortened(fields: dict[str, Any]) -> str:
    """Return a line that is short enough: the texts cut, at last the head alone."""
    for most, items in ((300, 20), (100, 8), (40, 3)):
        cut = {name: value if name == "timestamp" else _cut(value, most, items) for name, value in fields.items()}
        line = _encode({**cut, "is_cut": True})
        if len(line) < MOST_BYTES:
            return line
    head = ("timestamp", "level", "logger", "event", "pid", "request_id")
    return _encode({name: _cut(fields.get(name), 300, 0) for name in head} | {"is_cut": True})


def _cut(value: Any, most: int, items: int) -> Any:
    if isinstance(value, str):
        return value[:most]
    if isinstance(value, list):
        return [_cut(item, most, items) for item in value[-items:]]
    if isinstance(value, dict):
        return {name: _cut(item, most, items) for name, item in list(value.items())[:items]}
    return value
