"""HTTP/1.1 for the stand-ins: keep-alive, JSON, chunks, and waits that end when the client leaves."""

from __future__ import annotations

import json
import select
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

MAX_BODY_BYTES = 20 * 1024 * 1024


class BodyRefusedError(Exception):
    """A request's body is too long or of a length nobody knows; its connection ends with the answer."""


class StandinServer(ThreadingHTTPServer):
    """A thread per connection, on 127.0.0.1 alone, and an end that ends all of them."""

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, port: int, handler: type[StandinHandler]) -> None:
        self._connections: set[socket.socket] = set()
        self._changed = threading.Condition()
        super().__init__(("127.0.0.1", port), handler)

    def server_bind(self) -> None:
        # Not HTTPServer's own, which asks the resolver for this machine's name.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._changed:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        with self._changed:
            self._connections.discard(request)
            self._changed.notify_all()

    def cut_connections(self) -> None:
        """End every connection, as a server that dies does, and wait for their threads."""
        with self._changed:
            for connection in self._connections:
                _shut(connection)
            self._changed.wait_for(lambda: not self._connections, timeout=5)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that leaves is what half of the tests are about.
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return


class StandinHandler(BaseHTTPRequestHandler):
    """What the routes of a stand-in are written with."""

    protocol_version = "HTTP/1.1"
    server_version = "stand-in"
    disable_nagle_algorithm = True
    wbufsize = -1
    """Head and body leave in one packet; whatever must leave earlier is flushed."""

    is_left = False
    """Whether the client closed the connection while an answer to it was under way."""

    def url_path(self) -> str:
        return unquote(urlsplit(self.path).path)

    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.path).query)

    def read_body(self) -> bytes:
        """Read the body to its end, so that the next request begins where it begins; else `BodyRefusedError`."""
        length = self.headers.get("Content-Length", "0")
        is_number = length.isascii() and length.isdigit()
        if "Transfer-Encoding" in self.headers or not is_number or int(length[:12]) > MAX_BODY_BYTES:
            self.close_connection = True
            raise BodyRefusedError
        return self.rfile.read(int(length))

    def start_answer(self, status: int, content_type: str, *, length: int | None) -> None:
        """Send the head of an answer; it goes out in chunks when `length` is None."""
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        if length is None:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def send_json(self, status: int, body: object) -> None:
        # ASCII, so that no lone surrogate that came in can break the answer.
        answer = json.dumps(body).encode()
        self.start_answer(status, "application/json; charset=UTF-8", length=len(answer))
        self.wfile.write(answer)

    def send_chunk(self, data: bytes) -> None:
        """Send one chunk at once; the empty one is the last."""
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def wait(self, seconds: float) -> bool:
        """Wait, and say if the client left or the server was stopped meanwhile."""
        ends_at = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self.connection, select.POLLIN)
        while (left := ends_at - time.monotonic()) > 0:
            if not poll.poll(left * 1000):
                continue
            if self._is_closed():
                self.close_connection = self.is_left = True
                return True
            # The next request is here already. It has to wait, and the socket has nothing more to tell.
            time.sleep(min(left, 0.05))
        return False

    def _is_closed(self) -> bool:
        try:
            return not self.connection.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name.
        """Keep quiet: prompts do not belong in logs."""
