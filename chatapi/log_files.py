"""Log files that many processes write to, and that may be moved away, emptied or lost meanwhile."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from config import ConfigError

FILE_MODE = 0o640


class SharedFileHandler(logging.Handler):
    """Adds each record to a file in one write, which on a local file system nobody else's write gets into.

    The file is opened again when it is not the one at `path` any more, as logrotate leaves it. What cannot be
    written is dropped, and `on_failure` told why, once until it can be again: no request fails for a full disk.
    """

    def __init__(self, path: Path, on_failure: Callable[[Path, str], None]) -> None:
        """Open the file, or make it. Raises `OSError`."""
        super().__init__()
        self.path = path
        self._on_failure = on_failure
        self._has_failed = False
        self._is_torn = False
        self._descriptor: int | None = None
        self._identity = (0, 0)
        self._open()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        try:
            self._write(f"{self.format(record)}\n".encode())
        except OSError as error:
            if not self._has_failed:
                self._has_failed = True
                self._on_failure(self.path, type(error).__name__ if error.strerror is None else error.strerror)
        else:
            self._has_failed = False

    def close(self) -> None:
        """Let go of the file."""
        self._close()
        super().close()

    def _write(self, line: bytes) -> None:
        if self._descriptor is None or not self._is_in_place():
            self._open()
        if self._is_torn:
            line = b"\n" + line
        written = os.write(self._descriptor or 0, line)
        # A disk that becomes full takes a part. What follows must not be added to that.
        self._is_torn = written < len(line)
        if self._is_torn:
            raise OSError(None, "only a part of a line could be written")

    def _is_in_place(self) -> bool:
        try:
            found = os.stat(self.path)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self._identity

    def _open(self) -> None:
        self._close()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        found = os.fstat(descriptor)
        self._descriptor, self._identity, self._is_torn = descriptor, (found.st_dev, found.st_ino), False

    def _close(self) -> None:
        if self._descriptor is not None:
            with suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = None


def open_log_files(folder: str, on_failure: Callable[[Path, str], None]) -> list[SharedFileHandler]:
    """Return handlers for `combined.log` with everything and `error.log` with errors; the folder is made if need be.

    Raises `ConfigError` if that cannot be.
    """
    handlers: list[SharedFileHandler] = []
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, level in (("combined.log", logging.NOTSET), ("error.log", logging.ERROR)):
            handler = SharedFileHandler(Path(folder) / name, on_failure)
            handler.setLevel(level)
            handlers.append(handler)
    except (OSError, ValueError) as error:
        for handler in handlers:
            handler.close()
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ConfigError([f"LOG_DIR is {folder!r}, where log files cannot be written ({reason})."]) from None
    return handlers
