"""The processes of the system, as children to be started: by the runner, and by tests that kill single ones."""

from __future__ import annotations

import http.client
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import config
from chatapi.dev.processes import Child


def system_children(environ: Mapping[str, str], port: int | None = None, log_dir: Path | None = None) -> list[Child]:
    """Return web, worker, chores, billing and sweeper, not started, for the servers that `environ` names.

    Web listens on `port`, or on what `environ` says. What they print goes to a file each in `log_dir`, or to where
    this process's own output goes. Raises `config.ConfigError`.
    """
    environ = child_environment(environ)
    if port is not None:
        environ["PORT"] = str(port)
    settings = config.load_settings(environ)
    processes, threads = str(settings["WORKER_PROCESSES"]), str(settings["WORKER_THREADS"])

    def child(name: str, *words: str, stop_timeout: float = 10.0, **names: str) -> Child:
        log = log_dir / f"{name}.log" if log_dir else None
        command = [sys.executable, "-m", *words]
        return Child(name, command, env={**environ, **names}, stop_timeout=stop_timeout, log=log)

    def consumer(name: str, module: str, queues: list[str], processes: str, threads: str) -> Child:
        pool = ["--processes", processes, "--threads", threads, "--queues", *queues]
        return child(
            name,
            "chatapi.consume",
            module,
            *pool,
            # In milliseconds, and shorter than `stop_timeout`.
            "--worker-shutdown-timeout",
            "25000",
            stop_timeout=30.0,
            # The default of twice the threads would keep a job waiting behind a slow one while others are idle.
            dramatiq_queue_prefetch=threads,
        )

    return [
        # Twice gunicorn's own grace: it decides before we do. It reads WEB_CONCURRENCY by itself too, and takes an
        # empty one for a bad number.
        child("web", "gunicorn", "wsgi:app", stop_timeout=20.0, WEB_CONCURRENCY=str(settings["WEB_CONCURRENCY"])),
        consumer("worker", "chatapi.worker", ["replies", "titles"], processes, threads),
        consumer("chores", "chatapi.chores", ["chores"], "1", "4"),
        consumer("billing", "chatapi.billing", ["billing"], "1", "4"),
        child("sweeper", "flask", "sweeper"),
    ]


def migration(environ: Mapping[str, str], log_dir: Path | None = None) -> Child:
    """Return the process that brings the database's schema up to date, not started."""
    log = log_dir / "migrations.log" if log_dir else None
    command = [sys.executable, "-m", "flask", "db", "upgrade"]
    return Child("migrations", command, env=child_environment(environ), stop_timeout=30.0, log=log)


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    return {**environ, "FLASK_APP": "wsgi", "PYTHONUNBUFFERED": "1"}


def health(port: int, host: str = "127.0.0.1") -> dict[str, Any] | None:
    """Return the answer of `/health/ready` if it is 200, else None."""
    status, body = get(host, port, "/health/ready")
    try:
        answer = json.loads(body) if status == 200 else None
    except ValueError:
        return {}
    return answer if answer is None or isinstance(answer, dict) else {}


def get(host: str, port: int, path: str) -> tuple[int | None, bytes]:
    """Return status and body, past any proxy; no status if nobody answers."""
    connection = http.client.HTTPConnection(host, port, timeout=3)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException):
        return None, b""
    finally:
        connection.close()
