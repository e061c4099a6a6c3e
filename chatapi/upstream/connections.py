"""urllib3's connections, each known to the call that it serves, which can so be ended from another thread."""

from __future__ import annotations

import contextlib
import functools
import socket
from typing import Any

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from chatapi.upstream.calls import UpstreamCall, current_call


def watch_pools(manager: PoolManager) -> None:
    """Have `manager` make connections of this kind."""
    manager.pool_classes_by_scheme = {"http": _WatchedHTTPPool, "https": _WatchedHTTPSPool}


def shut_down(sock: socket.socket) -> None:
    """End `sock` under whatever thread waits for it; who owns it closes it."""
    with contextlib.suppress(OSError):
        # Not SSLSocket's own shutdown, which takes the TLS state away under the reading thread.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


class _WatchedConnection(HTTPConnection):
    _call: UpstreamCall | None = None
    _handle: socket.socket | None = None

    def connect(self) -> None:
        call = current_call()
        try:
            super().connect()
            self._watch(call)
        except BaseException:
            call.unwatch()
            raise
        finally:
            if self._handle is not None:
                self._handle.close()

    def request(self, *args: Any, **kwargs: Any) -> None:
        # A connection from the pool has to be watched before it is sent on: the upstream may not read.
        if self.sock is not None:
            self._watch(current_call())
        super().request(*args, **kwargs)

    def unwatch(self) -> None:
        if self._call is not None:
            self._call.unwatch()
            self._call = None

    def _watch(self, call: UpstreamCall) -> None:
        self._call = call
        # The socket itself is kept: http.client forgets that of an answer which ends with the connection.
        call.watch(functools.partial(shut_down, self.sock))

    def _new_conn(self) -> socket.socket:
        """Connect as urllib3 does, but to a socket that can be shut meanwhile."""
        error: OSError = OSError("there is no such address")
        try:
            for family, kind, protocol, _, address in socket.getaddrinfo(
                self._dns_host, self.port, type=socket.SOCK_STREAM
            ):
                try:
                    return self._connect_to(socket.socket(family, kind, protocol), address)
                except OSError as failed:
                    error = failed
            raise error
        except TimeoutError as late:
            raise ConnectTimeoutError(self, "Connecting took too long") from late
        except OSError as failed:
            raise NewConnectionError(self, "Could not connect") from failed

    def _connect_to(self, sock: socket.socket, address: Any) -> socket.socket:
        # A second handle, until the connection stands: what makes a TLS connection of it takes the first one away.
        if self._handle is not None:
            self._handle.close()
        self._handle = sock.dup()
        current_call().watch(functools.partial(shut_down, self._handle))
        try:
            for option in self.socket_options or ():
                sock.setsockopt(*option)
            sock.settimeout(self.timeout)
            sock.connect(address)
        except BaseException:
            sock.close()
            raise
        return sock


class _WatchedTLSConnection(_WatchedConnection, HTTPSConnection):
    pass


class _WatchedHTTPPool(HTTPConnectionPool):
    ConnectionCls = _WatchedConnection

    def _put_conn(self, conn: Any) -> None:
        _release(conn)
        super()._put_conn(conn)


class _WatchedHTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _WatchedTLSConnection

    def _put_conn(self, conn: Any) -> None:
        _release(conn)
        super()._put_conn(conn)


def _release(conn: Any) -> None:
    # Before it goes back: a late deadline must not cut the next call on the same connection.
    if isinstance(conn, _WatchedConnection):
        conn.unwatch()
