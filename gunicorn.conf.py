"""How gunicorn serves the application; it finds this file by itself in the folder it is started in."""

import json
import os
import signal
import socket
import sys
import tempfile
import uuid
from http import HTTPStatus
from pathlib import Path

import gunicorn.util

# `gunicorn` as a command, unlike `python -m gunicorn`, reads this file before it adds the folder to the path.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from config import ConfigError, load_environment, load_settings

try:
    _settings = load_settings()
except ConfigError as error:
    raise SystemExit(str(error)) from None

_host = _settings["HOST"]
bind = f"[{_host}]:{_settings['PORT']}" if ":" in _host else f"{_host}:{_settings['PORT']}"
workers = _settings["WEB_CONCURRENCY"]
worker_class = "gthread"
# Ordinary requests share WEB_THREADS among them (chatapi/admission.py); the others are there for open streams and
# waits, and are only started when there are some.
threads = _settings["WEB_THREADS"] + _settings["MAX_OPEN_STREAMS"]
worker_connections = max(1000, 2 * threads)

# Seconds without a sign of life from a worker; on gthread it ends no slow request.
timeout = 30
graceful_timeout = 10
# Longer than the 60 s for which nginx and load balancers keep an idle connection, so that they close it and never
# send a request into one that is just being closed here. An idle connection holds no thread.
keepalive = 75

# A heartbeat file on a disk can block for as long as the disk does.
if Path("/dev/shm").is_dir():  # noqa: S108 - gunicorn makes a private file there
    worker_tmp_dir = "/dev/shm"  # noqa: S108


# Its workers keep their figures in one folder, so that whichever is asked for /metrics knows them all. To have those of
# the other processes too, an operator names one folder for all of them.
if not load_environment().get("PROMETHEUS_MULTIPROC_DIR"):
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="chatapi-metrics-")


def post_worker_init(worker):
    """Let streams and waits end as soon as the worker is asked to stop, and not only when its grace is over."""
    room = worker.wsgi.extensions["waiting_room"]
    stop = signal.getsignal(signal.SIGTERM)

    def close_and_stop(number, frame):
        room.is_closing = True
        stop(number, frame)

    signal.signal(signal.SIGTERM, close_and_stop)


def _write_error(client: socket.socket, status: int, _reason: str, _message: str) -> None:
    """Answer what gunicorn refuses before the application sees it in the application's own form.

    Its 501 for an unknown transfer coding becomes a 400: bad input is never the server's fault.
    """
    found = HTTPStatus(HTTPStatus.BAD_REQUEST if status == HTTPStatus.NOT_IMPLEMENTED else status)
    body = {
        "code": found.value,
        "status": found.phrase,
        "error": found.phrase.lower().replace(" ", "_").replace("-", "_"),
        "message": "The request could not be understood",
    }
    payload = json.dumps(body)
    head = (
        f"HTTP/1.1 {found.value} {found.phrase}\r\nConnection: close\r\nContent-Type: application/json\r\n"
        f"X-Request-ID: {uuid.uuid4()}\r\nContent-Length: {len(payload)}\r\n\r\n"
    )
    gunicorn.util.write_nonblock(client, (head + payload).encode("ascii"))


# gunicorn has no setting for it, and looks the function up here at each use.
gunicorn.util.write_error = _write_error

# The application logs its requests itself.
accesslog = None
errorlog = "-"
loglevel = _settings["LOG_LEVEL"]

# One socket in the home folder would be shared by all that run there.
control_socket_disable = True
