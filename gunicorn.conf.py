"""How gunicorn serves the application; it finds this file by itself in the folder it is started in."""

import gc
import json
import os
import resource
import shutil
import socket
import sys
import tempfile
import uuid
from http import HTTPStatus
from pathlib import Path

import gunicorn.http.wsgi
import gunicorn.util
from gunicorn.glogging import Logger

# `gunicorn` as a command, unlike `python -m gunicorn`, reads this file before it adds the folder to the path.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from chatapi.balance import Loads
from chatapi.headers import SECURITY_HEADERS
from chatapi.logs import configure_from
from config import ConfigError, load_environment, load_settings

try:
    _settings = load_settings()
    configure_from(_settings)
except ConfigError as error:
    raise SystemExit(str(error)) from None

_host = _settings["HOST"]
bind = f"[{_host}]:{_settings['PORT']}" if ":" in _host else f"{_host}:{_settings['PORT']}"
workers = _settings["WEB_CONCURRENCY"]
# gunicorn's gthread with a lobby, in which clients that take their time hold no thread.
worker_class = "chatapi.web_worker.LobbyWorker"
# Ordinary requests share WEB_THREADS among them (chatapi/admission.py); the others are there for open streams and
# waits, and are only started when there are some.
threads = _settings["WEB_THREADS"] + _settings["MAX_OPEN_STREAMS"]

# A connection without a request costs no more than its descriptor. A thread may use one beside its client's, for Redis.
_connections, _others = threads + 2000, threads + 256
_soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
if _hard == resource.RLIM_INFINITY or _hard > _connections + _others:
    _hard = max(_soft, _connections + _others)
resource.setrlimit(resource.RLIMIT_NOFILE, (_hard, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
worker_connections = max(64, min(_connections, _hard - _others))

# Seconds in which a worker's main loop does not come round, as it does every second; no request is ended by it.
timeout = 30
# Streams and waits look every 5 s if they shall end, and a statement is ended after 10 s.
graceful_timeout = 10
# Longer than the 60 s for which nginx and load balancers keep an idle connection, so that they close it and never
# send a request into one that is just being closed here. An idle connection holds no thread.
keepalive = 75

# A request that is longer is an attack or a mistake; the longest of ours has a token, and an id of 255 characters.
limit_request_line = 4094
limit_request_fields = 64
limit_request_field_size = 8190

# What proxies say is read by the application (TRUSTED_PROXIES), and by nobody else: gunicorn would believe whoever
# calls from this machine, also that the application has another address (SCRIPT_NAME).
forwarder_headers = ""
secure_scheme_headers = {}

# A worker keeps the memory that its busiest minute took. Its successor begins when it has ended, so that a lone one
# would leave clients waiting; the jitter keeps workers of one age from ending together.
max_requests = 200_000 if workers > 1 else 0
max_requests_jitter = max_requests // 5

# Each worker makes its own: what the application holds are threads and connections, which are not to be shared.
preload_app = False

# A heartbeat file on a disk can block for as long as the disk does.
if Path("/dev/shm").is_dir():  # noqa: S108 - gunicorn makes a private file there
    worker_tmp_dir = "/dev/shm"  # noqa: S108


# Its workers keep their figures in one folder, so that whichever is asked for /metrics knows them all. To have those of
# the other processes too, an operator names one folder for all of them.
if not load_environment().get("PROMETHEUS_MULTIPROC_DIR"):
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="chatapi-metrics-")


def on_exit(server):
    """Take that folder away again, unless another master (USR2) goes on with it."""
    folder = Path(os.environ.get("PROMETHEUS_MULTIPROC_DIR", ""))
    if folder.name.startswith("chatapi-metrics-") and not server.reexec_pid and not server.master_pid:
        shutil.rmtree(folder, ignore_errors=True)


# More than there are: some may be added by TTIN. A reload begins with new ones.
_loads = Loads(2 * workers + 16)


def pre_fork(_server, worker):
    """Let a worker know how many connections the others have."""
    worker.load = _loads.claim()


def child_exit(_server, worker):
    """Forget one that has ended."""
    if worker.load:
        worker.load.free()


def post_worker_init(worker):
    """Let streams and waits end as soon as the worker is about to, and not only when its grace is over.

    What has been loaded by now stays: Python's collector need not look through it now and then, which took 70 ms each
    time, for all threads.
    """
    gc.collect()
    gc.freeze()
    room = worker.wsgi.extensions["waiting_room"]

    def close_room():
        room.is_closing = True

    worker.when_stopping = close_room
    worker.log.info("Worker ready (pid: %s)", worker.pid)


def pre_request(_worker, _req):
    """Say nothing: gunicorn's own would log paths at debug, and people type all kinds of things into those."""


_SECURITY_HEADERS = "".join(f"{name}: {text}\r\n" for name, text in SECURITY_HEADERS.items())


# As the application calls them.
_SLUGS = {HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "payload_too_large"}


def _write_error(client: socket.socket, status: int, _reason: str, _message: str) -> None:
    """Answer what gunicorn refuses before the application sees it in the application's own form.

    Its 501 for an unknown transfer coding becomes a 400: bad input is never the server's fault.
    """
    found = HTTPStatus(HTTPStatus.BAD_REQUEST if status == HTTPStatus.NOT_IMPLEMENTED else status)
    body = {
        "code": found.value,
        "status": found.phrase,
        "error": _SLUGS.get(found) or found.phrase.lower().replace(" ", "_").replace("-", "_"),
        "message": "The request could not be understood",
    }
    payload = json.dumps(body)
    head = (
        f"HTTP/1.1 {found.value} {found.phrase}\r\nConnection: close\r\nContent-Type: application/json\r\n"
        f"X-Request-ID: {uuid.uuid4()}\r\nCache-Control: no-store\r\n{_SECURITY_HEADERS}"
        f"Content-Length: {len(payload)}\r\n\r\n"
    )
    gunicorn.util.write_nonblock(client, (head + payload).encode("ascii"))


class _Logger(Logger):
    """Hands gunicorn's own lines to the application's logging."""

    def setup(self, cfg):
        super().setup(cfg)
        self.error_log.propagate = True


# gunicorn has no settings for these two, and looks them up here at each use.
gunicorn.util.write_error = _write_error
gunicorn.http.wsgi.SERVER = "chatapi"

# The application logs its requests itself.
accesslog = None
errorlog = None
logger_class = _Logger
loglevel = _settings["LOG_LEVEL"]

# One socket in the home folder would be shared by all that run there.
control_socket_disable = True
