"""Which SDK is used, and which process imports it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import config
from chatapi.dev.gemini_standin import GeminiStandin
from chatapi.replies.gemini.factory import make_client
from tests.replies.gemini.support import CLASSES, Way, prompt

ROOT = Path(__file__).resolve().parents[3]


def settings(sdk: str, url: str) -> dict[str, object]:
    return {
        "GEMINI_SDK": sdk,
        "GEMINI_API_KEY": None,
        "GEMINI_API_ENDPOINT": url,
        "GEMINI_TIMEOUT_SECONDS": 5,
        "WORKER_THREADS": 4,
    }


def test_client_is_that_of_the_sdk_which_the_settings_name(sdk: str, standin: GeminiStandin) -> None:
    client = make_client(settings(sdk, standin.url))

    assert Way(sdk, "generate").ask(client, prompt("hi")).text
    assert type(client).__name__ == CLASSES[sdk][1]
    client.close()


def test_client_is_refused_when_its_sdk_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    # As if it were not there: None in the table of modules stops an import.
    monkeypatch.setitem(sys.modules, "google.genai", None)

    with pytest.raises(config.ConfigError, match=r"pip install -r requirements-genai\.txt"):
        make_client(settings("google-genai", "http://127.0.0.1:1"))


@pytest.mark.parametrize("module", ["base", "factory", "outcomes"])
def test_sdks_stay_out_when_the_web_process_imports(module: str) -> None:
    code = (
        f"import sys, chatapi.replies.gemini.{module}; "
        "sys.exit(any(name in sys.modules for name in ('google.generativeai', 'google.genai')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0


@pytest.mark.parametrize("module", ["generativeai", "genai"])
def test_adapter_is_silent_when_imported_with_warnings_as_errors(module: str) -> None:
    command = [sys.executable, "-W", "error", "-c", f"import chatapi.replies.gemini.{module}"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
