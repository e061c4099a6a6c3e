"""Standing still: what a frozen machine or a disk that hangs looks like to those who wait for it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support import Services


def children_of(parent: int) -> list[int]:
    """Return the processes that `parent` has started and that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            if entry.name.isdigit() and int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1]) == parent:
                found.append(int(entry.name))
    return found


@contextmanager
def postgres_frozen(services: Services) -> Iterator[None]:
    """Have PostgreSQL stand still within the block, with every process that serves somebody.

    Its connections stay open, and the kernel goes on taking what is sent.
    """
    postmaster = services.postgres_process.pid or 0
    os.kill(postmaster, signal.SIGSTOP)  # First of all: it would start more.
    backends = children_of(postmaster)
    for backend in backends:
        with suppress(ProcessLookupError):
            os.kill(backend, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in (*backends, postmaster):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)


def threads_of(process: int) -> int:
    """Return how many threads a process has."""
    return len(list(Path(f"/proc/{process}/task").iterdir()))
