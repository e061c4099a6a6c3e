"""The running service, fuzzed by its own OpenAPI document with all checks of schemathesis.

As two users, whose rooms and messages must stay each one's own. `FUZZ_SECONDS` makes it longer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from config import ROOT
from tests.support import Account, wait_for
from tests.system.support import System

SETTINGS = {"MAX_IN_FLIGHT_PER_USER": "100000", "MAX_BACKLOG": "1000000", "BASIC_DAILY_PROMPTS": "1000000"}
SECONDS = int(os.environ.get("FUZZ_SECONDS", "60"))


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 240)
def test_document_and_service_agree_when_fuzzed_as_two_users(
    system: System, sign_in: Callable[..., Account], tmp_path: Path
) -> None:
    users = {"ada": sign_in(via=system.client), "grace": sign_in(via=system.client)}
    _subscribe(users["ada"])
    known = [
        {"name": name, "fixedHeaders": [{"name": key, "value": value} for key, value in user.headers.items()]}
        for name, user in users.items()
    ]
    (tmp_path / "users.json").write_text(json.dumps({"auth": known}))
    environ = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "CHATAPI_URL": f"http://127.0.0.1:{system.port}",
        "CHATAPI_USERS": str(tmp_path / "users.json"),
        "CHATAPI_TOKENS": ",".join(user.token for user in users.values()),
    }
    options = ["--checks", "all", "--max-time", str(SECONDS), "--no-color"]
    command = [str(Path(sys.executable).with_name("st")), "--config-file", str(ROOT / "tests/fuzz/schemathesis.toml")]

    done = subprocess.run(
        [*command, "run", f"{environ['CHATAPI_URL']}/openapi.json", *options],
        env=environ,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-30_000:] + done.stderr[-5_000:]
    assert "Stateful" in done.stdout
    system.end_replies()


def _subscribe(user: Account) -> None:
    """Pay for Pro, so that there is a subscription to cancel and a portal to see."""
    page = user.call("POST", "/subscribe/pro", {}).get_json()["checkout_url"]
    requests.post(page, data={"action": "pay"}, timeout=30, allow_redirects=False)
    wait_for(lambda: user.call("GET", "/user/me").get_json()["user"]["subscription_tier"] == "pro")
