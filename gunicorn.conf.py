"""How gunicorn serves the application; it finds this file by itself in the folder it is started in."""

import json
import socket
import sys
import uuid
from http import HTTPStatus
from pathlib import Path

import gunicorn.util

# `gunicorn` as a command, unlike `python -m gunicorn`, reads this file before it adds the folder to the path.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from config import ConfigError, load_settings

try:
    _settings = load_settings()
except ConfigError as error:
    raise SystemExit(str(error)) from None

_host = _settings["HOST"]
bind = f"[{_host}]:{_settings['PORT']}" if ":" in _host else f"{_host}:{_settings['PORT']}"
workers = _settings["WEB_CONCURRENCY"]
worker_class = "gthread"
threads = _settings["WEB_THREADS"]

# Seconds without a sign of life from a worker; on gthread it ends no slow request.
timeout = 30
graceful_timeout = 10
# Longer than the 60 s for which nginx and load balancers keep an idle connection, so that they close it and never
# send a request into one that is just being closed here. An idle connection holds no thread.
keepalive = 75

# A heartbeat file on a disk can block for as long as the disk does.
if Path("/dev/shm").is_dir():  # noqa: S108 - gunicorn makes a private file there
    worker_tmp_dir = "/dev/shm"  # noqa: S108


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
