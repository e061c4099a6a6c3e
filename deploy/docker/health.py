# ruff: noqa: INP001 - a program, in no package
"""Whether a container is well: `python deploy/docker/health.py` ends with 0 if so, else with 1.

The web is asked for `/health/live`. The other processes listen nowhere: a worker that breaks ends, and the container
with it, so that being there is what can be asked of them. Which one it is says the command line of process 1.
"""

from __future__ import annotations

import http.client
import os
import sys
from http import HTTPStatus
from pathlib import Path

TIMEOUT_SECONDS = 3


def is_web() -> bool:
    """Tell whether process 1 is gunicorn."""
    words = Path("/proc/1/cmdline").read_bytes().split(b"\0")
    return any(Path(os.fsdecode(word)).name == "gunicorn" for word in words)


def answers(port: int) -> bool:
    """Tell whether the web says that it is alive. 127.0.0.1 is among what it listens on, unless HOST says otherwise."""
    named = os.environ.get("HOST", "")
    host = "127.0.0.1" if named in ("", "0.0.0.0") else named  # noqa: S104 - it is asked for, and not bound to
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/health/live")
        return connection.getresponse().status == HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def main() -> int:
    """Return the exit status."""
    return 0 if not is_web() or answers(int(os.environ.get("PORT") or 5000)) else 1


if __name__ == "__main__":
    sys.exit(main())
