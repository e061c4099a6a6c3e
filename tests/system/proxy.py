"""A proxy before several instances that tries the next one only when no connection comes about, as it safely may."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path


class Proxy:
    """Makes one connection for each that it gets, to the instances in turns: ports here, or sockets in files."""

    def __init__(self, places: Sequence[int | Path]) -> None:
        self._places = places
        self._turns = itertools.count()
        self._server = socket.create_server(("127.0.0.1", 0), backlog=200)
        self.port = int(self._server.getsockname()[1])
        threading.Thread(target=self._run, daemon=True).start()

    def close(self) -> None:
        """Take no more connections; those there are go on."""
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                threading.Thread(target=self._relay, args=(connection,), daemon=True).start()

    def _relay(self, client: socket.socket) -> None:
        with client:
            instance = self._connect()
            if instance is not None:
                with instance:
                    back = threading.Thread(target=_pump, args=(instance, client), daemon=True)
                    back.start()
                    _pump(client, instance)
                    back.join()

    def _connect(self) -> socket.socket | None:
        turn = next(self._turns)
        for more in range(len(self._places)):
            # Reset: its listener was closed while this connection waited there, so nothing was sent yet.
            with suppress(ConnectionRefusedError, ConnectionResetError):
                return _connect_to(self._places[(turn + more) % len(self._places)])
        return None


def _connect_to(place: int | Path) -> socket.socket:
    if isinstance(place, int):
        return socket.create_connection(("127.0.0.1", place))
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(place))
    return connection


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
