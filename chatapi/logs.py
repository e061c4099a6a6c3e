"""Structured logs: constant event text with its data beside it, one JSON object a line in production."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import structlog

from chatapi.log_files import SharedFileHandler, open_log_files
from chatapi.log_lines import ConsoleFormatter, JsonFormatter
from chatapi.redaction import Redactor, secrets_of

QUIET = {
    **dict.fromkeys(("urllib3", "stripe", "google", "google_genai", "httpx2", "httpcore2"), logging.WARNING),
    **dict.fromkeys(("alembic", "flask-limiter", "asyncio", "redis"), logging.WARNING),
    "dramatiq": logging.INFO,
}
"""Libraries that log bodies, addresses or each of their steps, and from which level on they are of use."""

_log = logging.getLogger(__name__)


class OutputHandler(logging.Handler):
    """Writes each record to a stream in one piece, past buffers and past what has been put in the stream's place.

    Dramatiq puts a pipe to its master in the place of a worker's standard output, which would have every worker wait
    for one thread there.
    """

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__()
        self.stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record. Nothing can be said of an output that is closed."""
        stream, text = self.stream, f"{self.format(record)}\n"
        if stream is None:
            return
        with suppress(OSError, ValueError):
            try:
                descriptor = stream.fileno()
            except OSError:  # No file, such as what a test gives.
                stream.write(text)
                stream.flush()
            else:
                _write_all(descriptor, text.encode(errors="backslashreplace"))


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def configure_from(settings: Mapping[str, Any]) -> None:
    """Log as the settings say; see `configure_logging`."""
    configure_logging(
        settings["LOG_LEVEL"],
        as_json=settings["APP_ENV"] == "production",
        log_dir=settings["LOG_DIR"],
        secrets=secrets_of(settings),
    )


def configure_logging(level: str, *, as_json: bool, log_dir: str | None = None, secrets: Iterable[str] = ()) -> None:
    """Send everything that is logged, by us or by a library, to standard output and to the files in `log_dir`.

    It is one JSON object a line, on standard output only if `as_json`; `secrets` are masked wherever they stand.
    It needs no application, and may be called again. Raises `ConfigError` if the files cannot be written.
    """
    redactor = Redactor(secrets)
    json_form = JsonFormatter(redactor)
    output = OutputHandler(sys.__stdout__)
    output.setFormatter(json_form if as_json else ConsoleFormatter(redactor, colors=_is_terminal(sys.__stdout__)))

    def say(path: Path, reason: str) -> None:
        output.handle(
            _log.makeRecord(
                _log.name,
                logging.ERROR,
                "",
                0,
                {"event": "log_file_failed", "file": path.name, "reason": reason},
                (),
                None,
            )
        )

    files = open_log_files(log_dir, say) if log_dir else []
    for handler in files:
        handler.setFormatter(json_form)
    root = logging.getLogger()
    before, root.handlers = root.handlers, [output, *files]
    for old in before:
        if isinstance(old, SharedFileHandler):
            old.close()
    root.setLevel(level.upper())
    for name, least in QUIET.items():
        logging.getLogger(name).setLevel(max(least, root.level))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.add_log_level,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    _take_over_what_is_printed()


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # It is closed.
        return False


def _take_over_what_is_printed() -> None:
    """Log what Python would print: warnings, and exceptions that nobody catches, with nothing secret in them.

    Hooks that are somebody else's already, such as a test runner's, stay.
    """
    logging.captureWarnings(capture=True)
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _log_uncaught
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _log_uncaught_in_thread
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _log_unraisable


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        structlog.get_logger(__name__).critical("uncaught_exception", exc_info=(kind, error, trace))


def _log_uncaught_in_thread(found: threading.ExceptHookArgs) -> None:
    if found.exc_type is not SystemExit:
        name = found.thread.name if found.thread else None
        structlog.get_logger(__name__).error("uncaught_exception", exc_info=found.exc_value, thread=name)


def _log_unraisable(found: Any) -> None:
    structlog.get_logger(__name__).error("unraisable_exception", exc_info=found.exc_value)


@contextmanager
def logs_to_stderr() -> Iterator[None]:
    """Leave standard output to what a command prints."""
    handlers = [handler for handler in logging.getLogger().handlers if isinstance(handler, OutputHandler)]
    streams = [handler.stream for handler in handlers]
    for handler in handlers:
        handler.stream = sys.stderr
    try:
        yield
    finally:
        for handler, stream in zip(handlers, streams, strict=True):
            handler.stream = stream
