"""Where the tests of this folder keep their files, and runners that end with the test."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from chatapi.dev.embedded import free_port
from tests.dev.run_support import LIGHT_SYSTEM, Run


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder outside pytest's own, which each new run of pytest closes to all but its user.

    To root's PostgreSQL, which is another user, that would shut the door on its data in the middle of a test.
    """
    with TemporaryDirectory(prefix="chatapi-tests-", ignore_cleanup_errors=True) as folder:
        yield Path(folder).resolve()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Start a runner. It uses embedded servers in a folder of this test unless `names` say otherwise."""
    started: list[Run] = []

    def start(data_dir: Path | None = None, program: Sequence[str] = ("-c", LIGHT_SYSTEM), **names: str) -> Run:
        data_dir = data_dir or tmp_path / "data"
        environ = {
            **os.environ,
            "APP_ENV": "development",
            "DATABASE_URL": "",
            "REDIS_URL": "",
            "GEMINI_API_ENDPOINT": "http://127.0.0.1:9",
            "STRIPE_API_BASE": "http://127.0.0.1:9",
            "STRIPE_SECRET_KEY": "",
            "FRONTEND_URL": "",
            "JWT_SECRET": "only these tests know it, 0123456789",
            "PORT": str(free_port()),
            "TEST_RUN": str(data_dir),
            "TEST_OUTPUT": str(tmp_path),
            **names,
        }
        run = Run(data_dir, environ, program)
        started.append(run)
        return run

    yield start
    for run in started:
        run.process.terminate()
        run.process.wait(60)
    for run in started if sys.platform == "linux" else []:
        for pid in run.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
