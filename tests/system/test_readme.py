"""The README's promises to a newcomer: `make run` comes up, and what is to be pasted works, from sign-in to Pro."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from chatapi.dev.embedded import free_port
from config import ROOT
from tests import leaks
from tests.support import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


TELL_SECRETS = """printf '{"otp": "%s", "token": "%s", "mobile_number": "%s"}' "$OTP" "$TOKEN" "$NUMBER" >&2\n"""


def pasted() -> list[str]:
    """Return the commands that the README tells a newcomer to paste, block by block; the first is the walk."""
    blocks: list[str] = re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert [block for block in blocks if block.startswith("API=")] == blocks[:1]
    return blocks


def changed_setting() -> tuple[str, str]:
    """Return name and value of the setting that the README changes by starting the system anew."""
    ((name, value),) = re.findall(r"^([A-Z_]+)=(\S+) make run$", (ROOT / "README.md").read_text(), re.MULTILINE)
    return name, value


class Checkout:
    """A copy of what is under version control, with the virtual environment that is already there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        for name in listed.splitlines():
            if (ROOT / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        (folder / ".venv").symlink_to(ROOT / ".venv")
        self.process: subprocess.Popen[str] | None = None

    def make_run(self, **settings: str) -> str:
        """Start `make run`; return its first line."""
        environ = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "PORT": str(self.port), **settings}
        self.process = subprocess.Popen(
            ["make", "run"], cwd=self.folder, env=environ, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def paste(self, *blocks: str) -> subprocess.CompletedProcess[str]:
        """Run blocks of commands in one terminal, and then say on standard error what must be in no log."""
        script = "".join(blocks).replace("localhost:5000", f"localhost:{self.port}") + TELL_SECRETS
        return subprocess.run(["bash", "-euc", script], capture_output=True, text=True, check=True, timeout=60)

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.communicate(timeout=60)
            self.process = None

    def processes(self) -> list[str]:
        """Return the command lines of all processes that have to do with this checkout."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if entry.name.isdigit() and (
                    str(self.folder) in command or os.readlink(entry / "cwd") == str(self.folder)
                ):
                    found.append(command)
            except OSError:
                continue
        return found


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Checkout]:
    checkout = Checkout(tmp_path / "checkout")
    yield checkout
    checkout.stop()
    leaks.SUITE.note_log_files(checkout.folder / ".data")


def test_walk_ends_with_a_reply_that_knew_history_and_instruction(checkout: Checkout) -> None:
    assert checkout.make_run().startswith(f"Ready: http://localhost:{checkout.port}")
    assert len(checkout.processes()) >= 8

    result = checkout.paste(pasted()[0], 'echo "$TOKEN"\n')

    answer, token = result.stdout.rsplit("\n", 2)[:2]
    leaks.SUITE.note_secrets(json.loads(result.stderr))
    message = json.loads(answer)["message"]
    assert message["status"] == "completed"
    assert message["content"].startswith("[Gemini stand-in")
    assert 'user: "My name is Ada"' in message["content"]
    assert "Answer like a pirate" in message["content"]

    checkout.stop()
    assert wait_for(lambda: not checkout.processes(), seconds=5)

    checkout.make_run()
    headers = {"Authorization": f"Bearer {token}"}
    me = requests.get(f"http://localhost:{checkout.port}/user/me", headers=headers, timeout=5).json()["user"]
    assert (me["daily_usage_count"], me["stats"]) == (2, {"chatroom_count": 1, "message_count": 4})
    ready = requests.get(f"http://localhost:{checkout.port}/health/ready", timeout=5).json()
    notes = ["Gemini is a stand-in", "Stripe is a stand-in"]
    assert ready == {"status": "ok", "checks": {"postgresql": "ok", "redis": "ok"}, "notes": notes}


def test_everything_pasted_ends_on_pro_with_the_sixth_prompt_accepted(checkout: Checkout) -> None:
    name, value = changed_setting()
    checkout.make_run()
    walk, following, limit, pro = pasted()

    mark = "echo ======\n"
    result = checkout.paste(walk, mark, following, mark, limit, mark, pro, 'echo "$TOKEN"\n')

    leaks.SUITE.note_secrets(json.loads(result.stderr))
    _, followed, limited, paid = result.stdout.split("======\n")
    events = re.findall(r"^event: (\w+)$", followed, re.MULTILINE)
    assert (events.count("delta") > 1, events[-1]) == (True, "done")
    assert followed.splitlines()[-1].startswith("[Gemini stand-in")
    assert limited.splitlines() == ["Prompt accepted", "daily_limit_reached"]
    page, accepted, token = paid.splitlines()
    assert page.startswith("http://127.0.0.1:")
    assert accepted == "Prompt accepted"

    checkout.stop()
    checkout.make_run(**{name: value})
    headers = {"Authorization": f"Bearer {token}"}
    status = requests.get(f"http://localhost:{checkout.port}/subscription/status", headers=headers, timeout=5).json()
    assert status["usage"]["tier"] == "pro"
    assert status["features"]["basic"]["daily_prompts"] == int(value)
