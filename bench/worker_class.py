"""Compares gunicorn's gthread and gevent workers for plain requests and with open streams (docs/decisions/0015).

    python bench/worker_class.py [--rounds 3] [--seconds 5] [--streams 500]

Starts servers, a worker and a web of its own for each class, in turns, several rounds. Needs `wrk`, and gevent beside
the requirements (`pip install gevent`); plain psycopg2 blocks gevent's hub, so it is given psycopg2's wait callback.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import selectors
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import requests

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from chatapi.dev.embedded import EmbeddedPostgres, EmbeddedValkey, free_port  # noqa: E402
from chatapi.dev.gemini_standin import GeminiStandin  # noqa: E402
from chatapi.dev.processes import Child, stop_all  # noqa: E402
from chatapi.dev.system import health, migration, system_children  # noqa: E402

USERS = 25
GEVENT_CONF = """
exec(open({conf!r}).read())
worker_class = "gevent"

def post_fork(server, worker):
    import psycopg2.extensions as extensions
    from gevent.socket import wait_read, wait_write

    def wait(connection):
        while True:
            state = connection.poll()
            if state == extensions.POLL_OK:
                return
            (wait_read if state == extensions.POLL_READ else wait_write)(connection.fileno())

    extensions.set_wait_callback(wait)
"""


class Bench:
    """Servers, a worker, and one web of either class at a time."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="chatapi-bench-"))
        self.port = free_port()
        self.gemini = GeminiStandin()
        self.gemini.start()
        postgres = EmbeddedPostgres(self.folder / "postgres")
        valkey = EmbeddedValkey(self.folder / "valkey", free_port())
        postgres.prepare()
        valkey.prepare()
        self.servers = [postgres.child(log=self.folder / "pg.log"), valkey.child(log=self.folder / "valkey.log")]
        for server in self.servers:
            server.start()
        assert postgres.wait_ready()
        assert valkey.wait_ready()
        many = "1000000"
        self.environ = {
            **os.environ,
            "APP_ENV": "development",
            "DATABASE_URL": postgres.url,
            "REDIS_URL": valkey.url,
            "GEMINI_API_ENDPOINT": self.gemini.url,
            "JWT_SECRET": "a secret of this bench and nothing else 8dZr1x",
            "RATE_LIMIT_MAX_REQUESTS": many,
            "AUTH_IP_LIMIT": "0",
            "BASIC_DAILY_PROMPTS": many,
            "MAX_BACKLOG": many,
            "MAX_IN_FLIGHT_PER_USER": many,
            "MAX_OPEN_STREAMS": "2000",
        }
        upgrade = migration(self.environ, self.folder)
        upgrade.start()
        while upgrade.poll() is None:
            time.sleep(0.1)
        children = {child.name: child for child in system_children(self.environ, self.port, self.folder)}
        self.web, self.worker = children["web"], children["worker"]
        (self.folder / "gevent.conf.py").write_text(GEVENT_CONF.format(conf=str(ROOT / "gunicorn.conf.py")))

    def start_web(self, kind: str) -> Child:
        words = list(self.web.argv)
        if kind == "gevent":
            words += ["-c", str(self.folder / "gevent.conf.py")]
        web = Child(f"web-{kind}", words, env=self.web.env, stop_timeout=20, log=self.folder / f"web-{kind}.log")
        web.start()
        while health(self.port) is None:
            time.sleep(0.2)
        time.sleep(1)
        return web

    def call(self, method: str, path: str, token: str = "", **body: Any) -> Any:
        url = f"http://127.0.0.1:{self.port}{path}"
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        answer = requests.request(method, url, json=body or None, headers=headers, timeout=30)
        assert answer.ok, (path, answer.status_code, answer.text)
        return answer.json()

    def sign_in(self, index: int) -> tuple[str, str]:
        number = f"+1555{os.getpid():07d}{index:03d}"[:16]
        otp = self.call("POST", "/auth/send-otp", mobile_number=number)["otp"]
        token = self.call("POST", "/auth/verify-otp", mobile_number=number, otp=otp)["token"]
        rooms = [self.call("POST", "/chatroom", token, title=f"room {n}")["chatroom"]["id"] for n in range(20)]
        return token, rooms[0]

    def stop(self) -> None:
        stop_all([self.worker])
        stop_all(self.servers)
        self.gemini.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def wrk(bench: Bench, seconds: int, path: str, token: str = "", body: str = "") -> dict[str, float]:
    """Return requests a second, the 99th percentile in milliseconds, and answers that were no success."""
    lua = bench.folder / "wrk.lua"
    lines = [f'wrk.headers["Authorization"] = "Bearer {token}"'] if token else []
    if body:
        lines += ['wrk.method = "POST"', f"wrk.body = [[{body}]]"]
        lines += ['wrk.headers["Content-Type"] = "application/json"']
    lua.write_text("\n".join(lines))
    command = ["wrk", "-t1", "-c32", f"-d{seconds}s", "--latency", "-s", str(lua)]
    command.append(f"http://127.0.0.1:{bench.port}{path}")
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", done.stdout)
    slowest = re.search(r"99%\s+([\d.]+)(us|ms|s)", done.stdout)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    assert slowest, done.stdout + done.stderr
    assert rate
    scale = {"us": 0.001, "ms": 1.0, "s": 1000.0}[slowest[2]]
    return {"rate": float(rate[1]), "p99": float(slowest[1]) * scale, "bad": float(bad[1]) if bad else 0.0}


class Readers:
    """Many open streams, read by one thread."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._selector = selectors.DefaultSelector()
        self.bytes = 0
        self.statuses: list[bytes] = []
        self.ended = 0
        self._is_over = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def open(self, token: str, room: str, reply: str) -> None:
        connection = socket.create_connection(("127.0.0.1", self._port))
        head = f"GET /chatroom/{room}/message/{reply}/stream HTTP/1.1\r\nHost: x\r\n"
        connection.sendall(f"{head}Authorization: Bearer {token}\r\n\r\n".encode())
        self._selector.register(connection, selectors.EVENT_READ, [True])

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._is_over = True
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]

    def _run(self) -> None:
        while not self._is_over:
            for key, _ in self._selector.select(0.2):
                data = key.fileobj.recv(65536)  # type: ignore[union-attr]
                if key.data[0]:
                    self.statuses.append(data[9:12])
                    key.data[0] = False
                self.bytes += len(data)
                if not data:
                    self.ended += 1
                    self._selector.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]


def with_streams(bench: Bench, users: list[tuple[str, str]], streams: int, seconds: int) -> dict[str, float]:
    """Open `streams`, a reply each, as many of them being written as the worker has threads; look at other requests."""
    readers = Readers(bench.port)
    readers.start()
    for index in range(streams):
        token, _ = users[index % len(users)]
        room = bench.call("POST", "/chatroom", token, title="stream")["chatroom"]["id"]
        content = f"stream {index} [[words=3000 chunk_ms=250]]"
        sent = bench.call("POST", f"/chatroom/{room}/message", token, content=content)
        readers.open(token, room, sent["ai_message"]["id"])
    time.sleep(3)
    before = readers.bytes
    began_at = time.monotonic()
    live = [timed(bench, "/health/live") for _ in range(seconds * 20) if time.sleep(0.02) is None]
    listed = [timed(bench, "/chatroom", users[0][0]) for _ in range(seconds * 10) if time.sleep(0.02) is None]
    took = time.monotonic() - began_at
    found = {
        "open": float(len(readers.statuses) - readers.ended),
        "refused": float(sum(status != b"200" for status in readers.statuses)),
        "live_p50": statistics.median(live),
        "live_p99": sorted(live)[int(len(live) * 0.99)],
        "list_p50": statistics.median(listed),
        "list_p99": sorted(listed)[int(len(listed) * 0.99)],
        "kilobytes_a_second": (readers.bytes - before) / 1000 / took,
        "web_megabytes": memory(bench.running),
    }
    readers.stop()
    return found


def timed(bench: Bench, path: str, token: str = "") -> float:
    """Return how long one request took, in milliseconds, on a connection of its own."""
    began_at = time.perf_counter()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    assert requests.get(f"http://127.0.0.1:{bench.port}{path}", headers=headers, timeout=30).ok
    return (time.perf_counter() - began_at) * 1000


def memory(web: Child) -> float:
    """Return the proportional memory of the web's worker processes together, in megabytes."""
    children = subprocess.run(["pgrep", "-P", str(web.pid)], capture_output=True, text=True, check=True).stdout.split()
    total = 0
    for pid in children:
        total += int(re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)[1])  # type: ignore[index]
    return total / 1024


def main() -> None:
    """Run and print a line for each round, and medians at the end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--streams", type=int, default=500)
    options = parser.parse_args()
    bench, results = Bench(), {"gthread": [], "gevent": []}
    try:
        web = bench.start_web("gthread")
        users = [bench.sign_in(index) for index in range(USERS)]
        stop_all([web])
        for number in range(options.rounds):
            for kind in ("gthread", "gevent") if number % 2 == 0 else ("gevent", "gthread"):
                bench.running = web = bench.start_web(kind)
                token, room = users[0]
                found = {f"idle_{k}": v for k, v in {"web_megabytes": memory(web)}.items()}
                for name, arguments in {
                    "live": ("/health/live",),
                    "list": ("/chatroom", token),
                    "accept": (f"/chatroom/{room}/message", token, {"content": "hello"}),
                }.items():
                    figures = wrk(bench, options.seconds, *arguments[:2], *[json.dumps(b) for b in arguments[2:]])
                    found |= {f"{name}_{figure}": value for figure, value in figures.items()}
                truncate(bench)
                bench.worker.start()
                time.sleep(6)
                figures = with_streams(bench, users, options.streams, options.seconds)
                found |= {f"streams_{figure}": value for figure, value in figures.items()}
                stop_all([web])
                bench.worker.kill()
                truncate(bench)
                results[kind].append(found)
                print(kind, json.dumps({k: round(v, 1) for k, v in found.items()}), flush=True)
        print(f"{'':24}{'gthread':>12}{'gevent':>12}{'ratio':>8}")
        for name in results["gthread"][0]:
            a, b = (statistics.median(found[name] for found in results[kind]) for kind in ("gthread", "gevent"))
            print(f"{name:24}{a:12.1f}{b:12.1f}{(b / a if a else 0):8.2f}")
    finally:
        bench.stop()


def truncate(bench: Bench) -> None:
    """Forget the prompts of the last measurement."""
    import psycopg2  # noqa: PLC0415 - not before gevent's own web would have patched it

    url = bench.environ["DATABASE_URL"]
    with psycopg2.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute("DELETE FROM reply_jobs; DELETE FROM chatrooms WHERE title = 'stream'")


if __name__ == "__main__":
    main()
