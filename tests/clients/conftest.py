"""One running system, and the clients' tools, which `.ci/check-clients` installs."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

import pytest
import requests

from chatapi.dev.embedded import free_port
from chatapi.dev.processes import wait_until
from config import SettingsSchema
from tests.dev.run_support import Run


class Tools:
    """The tools of one folder: what npm has put there, and a virtual environment `py`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(
        self, name: str, *arguments: str | Path, cwd: Path, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a tool to its end; what it says is in the result, and whether it failed."""
        npm, python = self._folder / "node_modules/.bin", self._folder / "py/bin"
        # To a file: httpyac ends before a pipe has taken more than 128 KiB of what it says.
        with TemporaryFile("w+") as output:
            done = subprocess.run(
                [name, *map(str, arguments)],
                cwd=cwd,
                env={"PATH": f"{npm}:{python}:{os.environ['PATH']}", "HOME": str(cwd), **environ},
                stdout=output,
                stderr=subprocess.PIPE,
                text=True,
                timeout=100,
                check=False,
            )
            output.seek(0)
            done.stdout = output.read()
        return done

    @property
    def python(self) -> Path:
        return self._folder / "py/bin/python"


@pytest.fixture(scope="session")
def tools() -> Tools:
    folder = os.environ.get("CLIENT_TOOLS")
    if not folder:
        pytest.skip("CLIENT_TOOLS names no folder: run .ci/check-clients")
    return Tools(Path(folder).resolve())


@pytest.fixture(scope="session")
def url(tools: Tools) -> Iterator[str]:
    """Return where a system listens that was started as `make run` does, with nothing set but its port."""
    # `.env` is read too, so what may be set there is emptied.
    unset = dict.fromkeys(SettingsSchema().fields, "")
    # Outside pytest's own folder, which is closed to the user that root's PostgreSQL runs as.
    with TemporaryDirectory(prefix="chatapi-tests-", ignore_cleanup_errors=True) as folder:
        data_dir = Path(folder, "data").resolve()
        environ = {
            "PATH": os.environ["PATH"],
            "HOME": os.environ.get("HOME", "/"),
            **unset,
            "APP_ENV": "development",
            "PORT": str(free_port()),
            "TEST_OUTPUT": folder,
            "TEST_RUN": str(data_dir),
        }
        run = Run(data_dir, environ, ("-m", "chatapi.dev"))
        try:
            run.wait_ready()
            yield f"http://127.0.0.1:{run.port}"
        finally:
            run.process.send_signal(signal.SIGTERM)
            status = run.process.wait(60)
        assert status == 0
        assert wait_until(lambda: not run.processes(), 5), run.processes()


@pytest.fixture(scope="session")
def document(url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with the OpenAPI document as the system serves it."""
    path = tmp_path_factory.mktemp("document") / "openapi.json"
    answer: Any = requests.get(f"{url}/openapi.json", timeout=10)
    path.write_text(answer.text)
    return path
