"""Dramatiq's processes: all that they print is logged as the settings say, from their first line on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from config import ROOT

SETTINGS = {
    "APP_ENV": "production",
    "DATABASE_URL": "postgresql://chat:hunter-22@db.invalid/chat",
    "REDIS_URL": "redis://:hunter-33@redis.invalid:6379/0",
    "JWT_SECRET": "kT9-vE2_rQ7.xW4!pL8zNb6+Yc3~Hd5=",
    "GEMINI_API_KEY": "hunter-44",
    "OTP_DELIVERY": "webhook",
    "OTP_WEBHOOK_URL": "https://sms.invalid/send",
    "OTP_WEBHOOK_SECRET": "hunter-55",
}


def consume(tmp_path: Path, module: str, **changes: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "broken.py").write_text("raise LookupError('no route for +15551234567 at redis://:hunter-33@there')\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-m", "chatapi.consume", module, "--processes", "1", "--threads", "1"],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": path, **SETTINGS, **changes},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(("module", "kind"), [("broken", "LookupError"), ("absent", "ModuleNotFoundError")])
def test_worker_that_cannot_begin_says_so_in_the_log_and_ends(tmp_path: Path, module: str, kind: str) -> None:
    done = consume(tmp_path, module, LOG_DIR=str(tmp_path / "logs"))

    assert done.returncode != 0
    assert done.stderr == ""
    lines: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    failed = [each for each in lines if "exception" in each]
    assert [each["exception"][0]["type"] for each in failed] == [kind]
    assert any("booting up" in each["event"] for each in lines), "what the master says is logged too"
    kept = (tmp_path / "logs" / "combined.log").read_text()
    assert sorted(kept.splitlines()) == sorted(done.stdout.splitlines())
    assert "5551234" not in kept
    assert "hunter" not in kept


def test_master_refuses_to_start_and_names_every_fault(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    wrong = consume(tmp_path, "broken", JWT_SECRET="short", OTP_DELIVERY="echo")
    unwritable = consume(tmp_path, "broken", LOG_DIR=str(tmp_path / "file"))

    assert wrong.returncode == unwritable.returncode == 1
    assert "- JWT_SECRET " in wrong.stderr
    assert "- OTP_DELIVERY " in wrong.stderr
    assert "- LOG_DIR " in unwritable.stderr
