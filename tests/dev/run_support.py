"""A runner as a process of its own, with light stand-ins for the system."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from dotenv import dotenv_values
from stripe import StripeClient

import config
from chatapi.dev.processes import wait_until

# A system of the same shape that starts at once: a web process that answers, and others that only exist.
LIGHT_SYSTEM = """
import os, signal, sys, time
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})  # As __main__ does.
from pathlib import Path
from chatapi.dev.processes import Child
from chatapi.dev.run import Runner, main
from chatapi.dev import run

WEB = '''
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
'''
WORKER = '''
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("worker is up", flush=True)
time.sleep(600)
'''

def child(name, program, environ, log_dir):
    return Child(name, [sys.executable, "-c", program], env=dict(environ), log=log_dir / f"{name}.log")

def children(environ, port, log_dir):
    worker = os.environ.get("TEST_WORKER", WORKER)
    return [child("web", WEB, environ, log_dir), child("worker", worker, environ, log_dir)]

def migration(environ, log_dir):
    return child("migrations", os.environ.get("TEST_MIGRATION", "pass"), environ, log_dir)

run.STEADY_SECONDS = 0.5
run.Runner.__init__.__kwdefaults__.update(children=children, migration=migration)
sys.exit(main())
"""


class Run:
    """A runner that was started, and what it has said."""

    def __init__(self, data_dir: Path, environ: dict[str, str], program: Sequence[str]) -> None:
        self.data_dir = data_dir
        self.port = int(environ["PORT"])
        self.output = Path(environ["TEST_OUTPUT"], f"{self.port}.out")
        self.errors = Path(environ["TEST_OUTPUT"], f"{self.port}.err")
        with self.output.open("w") as output, self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, *program, "--data-dir", str(data_dir)],
                env=environ,
                cwd=config.ROOT,
                stdout=output,
                stderr=errors,
                start_new_session=True,
            )

    def wait_ready(self) -> None:
        ready = wait_until(lambda: "Ready: " in self.output.read_text() or self.process.poll() is not None, 60)
        assert ready
        assert self.process.poll() is None, self.errors.read_text()

    def services(self) -> dict[str, str | None]:
        return dotenv_values(self.data_dir / "services.env")

    def processes(self) -> set[int]:
        """Return the pids of everything that runs with our environment, or on our data as the servers do."""
        return {int(path.name) for path in Path("/proc").glob("[0-9]*") if self._is_ours(path)}

    def _is_ours(self, process: Path) -> bool:
        try:
            is_child = f"TEST_RUN={self.data_dir}\0".encode() in (process / "environ").read_bytes()
            return is_child or (process / "cwd").readlink().is_relative_to(self.data_dir)
        except OSError:  # It has ended.
            return False


@contextmanager
def hang_up_is(action: signal.Handlers) -> Iterator[None]:
    """Have what is started within the block begin with SIGHUP's default or ignoring it, as a shell or nohup has it.

    What ignores the signal hands that down: without this, whoever runs the suite under nohup decides.
    """
    before = signal.signal(signal.SIGHUP, action)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def call(run: Run, path: str, body: Any = None, token: str | None = None) -> Any:
    """Call the system over HTTP: with a body by POST."""
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    data = None if body is None else json.dumps(body).encode()
    request = Request(f"http://127.0.0.1:{run.port}{path}", data, headers)
    with urlopen(request, timeout=10) as answer:  # noqa: S310
        return json.load(answer)


def leader(run: Run, command: bytes) -> int:
    """Return the pid of the one process of `run` that has `command` in its command line and leads its group."""
    (pid,) = (
        pid
        for pid in run.processes()
        if os.getpgid(pid) == pid and command in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    return pid


def stripe_of(run: Run) -> StripeClient:
    services = run.services()
    return StripeClient(services["STRIPE_SECRET_KEY"] or "", base_addresses={"api": services["STRIPE_API_BASE"] or ""})
