"""What the runner shows and keeps of what its children print."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TextIO

LOG_BYTES = 10_000_000
"""A log that has been shown and is longer is emptied."""


class Logs:
    """Files that take what children print, and from which what is of interest is shown on the terminal.

    Files, not pipes: a child whose runner was killed can still say what it must.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._positions: dict[Path, int] = {}

    def clear(self) -> None:
        for path in self.folder.glob("*.log"):
            path.unlink()

    def quiet(self, name: str) -> Path:
        """Return the path of a log that is only kept."""
        return self.folder / f"{name}.log"

    def shown(self, name: str) -> Path:
        """Return the path of a log that `forward` will show."""
        path = self.quiet(name)
        self._positions.setdefault(path, 0)
        return path

    def forward(self) -> None:
        """Write on standard output what the shown logs have gained, in whole lines."""
        for path, position in self._positions.items():
            try:
                size = path.stat().st_size
                if size == position:
                    continue
                with path.open("rb") as file:
                    file.seek(position)
                    text = file.read(size - position)
            except FileNotFoundError:
                continue
            text = text[: text.rfind(b"\n") + 1]
            write(sys.stdout, text.decode(errors="replace"))
            self._positions[path] = position + len(text)
            if self._positions[path] == size > LOG_BYTES:
                os.truncate(path, 0)
                self._positions[path] = 0


def last_line(log: Path) -> str:
    """Return the last line of a log that tells something, or nothing."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    told = (
        line.strip() for line in reversed(lines) if line.strip() and not line.startswith("(Background on this error")
    )
    return next(told, "")


def write(stream: TextIO, text: str) -> None:
    """Write at once, and go on without a word when nobody reads any more: the system must still be ended in order."""
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
