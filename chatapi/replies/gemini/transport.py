"""The HTTP edge below the SDK: a whole answer by a deadline, or one of requests' own exceptions."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPResponse, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ReadTimeoutError

_calls = threading.local()
"""`_calls.current` is the call this thread makes, for the connection it will be made on."""

_lock = threading.Lock()
"""Guards which call a connection belongs to: a late timer must not cut the next call on the same connection."""


class _Call:
    """One request in flight, whose socket is shut when `seconds` have passed."""

    def __init__(self, seconds: float) -> None:
        self.is_expired = False
        self._connection: _WatchedConnection | None = None
        self._socket: socket.socket | None = None
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        _calls.current = self
        self._timer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        _calls.current = None
        self._timer.cancel()
        with _lock:
            self._connection = self._socket = None

    def watch(self, connection: _WatchedConnection) -> None:
        """Take `connection` for this call's, now that its request was sent."""
        with _lock:
            if self.is_expired:
                raise TimeoutError
            connection.call = self
            # Kept apart: http.client forgets the socket of an answer that ends with the connection.
            self._connection, self._socket = connection, connection.sock

    def _expire(self) -> None:
        with _lock:
            self.is_expired = True
            if self._socket is not None and self._connection is not None and self._connection.call is self:
                with contextlib.suppress(OSError):
                    # Not SSLSocket's own shutdown, which takes the TLS state away under the reading thread.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


class _WatchedConnection(HTTPConnection):
    call: _Call | None = None

    def getresponse(self) -> HTTPResponse:  # type: ignore[override]  # As urllib3 itself has it.
        _calls.current.watch(self)
        return super().getresponse()


class _WatchedTLSConnection(_WatchedConnection, HTTPSConnection):
    pass


class _WatchedHTTPPool(HTTPConnectionPool):
    ConnectionCls = _WatchedConnection


class _WatchedHTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _WatchedTLSConnection


class WholeAnswerAdapter(HTTPAdapter):
    """Reads the whole body before it returns; `timeout` bounds the call, not each read as requests has it.

    An upstream that sends a byte now and then would keep a thread for ever under requests' own timeout. Any status from
    300 on raises `HTTPError` here: google.api_core's reading of an error ends in AttributeError when the body is JSON
    of another shape, as proxies send, and google.auth sends a request that got 401 three times.
    """

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        _watch_pools(self.poolmanager)

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        _watch_pools(manager)
        return manager

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,  # noqa: ARG002 - the SDK's wish; the body is read here in any case.
        timeout: float | tuple[float | None, float | None] | None = None,
        verify: bool | str = True,
        cert: bytes | str | tuple[bytes | str, bytes | str] | None = None,
        proxies: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """Send `request` and return its answer, read to the end within `timeout` seconds."""
        if not isinstance(timeout, int | float):
            raise TypeError("A call to Gemini needs its timeout in seconds")
        with _Call(timeout) as call:
            try:
                response = super().send(request, True, timeout, verify, cert, proxies)
                # requests keeps what was read: this is where the body comes in.
                is_error = bool(response.content is not None and response.status_code >= 300)
            except requests.exceptions.RequestException as error:
                if call.is_expired or _is_read_timeout(error):
                    raise requests.exceptions.ReadTimeout(request=request) from error
                raise
        if call.is_expired:
            # A body whose length nobody announced looks complete when its connection was shut.
            response.close()
            raise requests.exceptions.ReadTimeout(request=request)
        if is_error:
            raise requests.exceptions.HTTPError(request=request, response=response)
        return response


def _watch_pools(manager: PoolManager) -> None:
    manager.pool_classes_by_scheme = {"http": _WatchedHTTPPool, "https": _WatchedHTTPSPool}


def _is_read_timeout(error: requests.exceptions.RequestException) -> bool:
    """Say if `error` is a read that took too long: within a body, requests calls it a ConnectionError."""
    return bool(error.args) and isinstance(error.args[0], ReadTimeoutError)
