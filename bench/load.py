"""Load by wrk: many connections that ask again as soon as they are answered."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CONNECTIONS = 32


@dataclass(frozen=True)
class Asked:
    """One request: `body` is sent as JSON, and its being there makes it a POST."""

    path: str
    token: str | None = None
    body: object = None


@dataclass(frozen=True)
class Load:
    """What came of it: requests a second, and milliseconds."""

    rate: float
    p50: float
    p99: float


class LoadError(Exception):
    """wrk is not there, or requests were refused: then its figures mean nothing."""


def check_wrk() -> None:
    """Raise `LoadError` if there is no wrk."""
    if shutil.which("wrk") is None:
        raise LoadError("There is no wrk here; install it (on Debian and Ubuntu: apt install wrk)")


def wrk(port: int, asked: Sequence[Asked], seconds: float, folder: Path) -> Load:
    """Ask for `asked` in turns on 32 connections; every answer must be a success. Raises `LoadError`."""
    script = folder / "wrk.lua"
    script.write_text(_script(asked))
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{max(1, round(seconds))}s", "--timeout", "20s", "--latency"]
    done = subprocess.run(
        [*command, "-s", str(script), f"http://127.0.0.1:{port}"], capture_output=True, text=True, check=False
    )
    rate = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    if done.returncode or rate is None:
        raise LoadError(f"wrk failed: {done.stdout}{done.stderr}")
    if faults := re.findall(r"Non-2xx or 3xx responses: \d+|Socket errors: .*", done.stdout):
        raise LoadError(f"{asked[0].path}: {'; '.join(faults)}")
    return Load(float(rate[1]), _milliseconds(done.stdout, "50%"), _milliseconds(done.stdout, "99%"))


def _script(asked: Sequence[Asked]) -> str:
    requests = []
    for each in asked:
        headers = {"Host": "127.0.0.1"}
        if each.token is not None:
            headers["Authorization"] = f"Bearer {each.token}"
        body = "nil"
        if each.body is not None:
            headers["Content-Type"] = "application/json"
            body = f"[[{json.dumps(each.body)}]]"
        written = ", ".join(f'["{name}"] = "{value}"' for name, value in headers.items())
        method = "GET" if each.body is None else "POST"
        requests.append(f'{{"{method}", "{each.path}", {{{written}}}, {body}}}')
    return f"""
local asked = {{{", ".join(requests)}}}
local ready, turn = {{}}, 0
init = function()
  for _, each in ipairs(asked) do ready[#ready + 1] = wrk.format(each[1], each[2], each[3], each[4]) end
end
request = function()
  turn = turn % #ready + 1
  return ready[turn]
end
"""


def _milliseconds(printed: str, share: str) -> float:
    found = re.search(rf"{share}\s+([\d.]+)(us|ms|s|m)\b", printed)
    if found is None:
        raise LoadError(printed)
    return float(found[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}[found[2]]
