"""TLS in front of servers that have none built in, with certificates made for the occasion."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
import struct
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from chatapi.dev.embedded import free_port

T = TypeVar("T")

SSL_REQUEST = struct.pack(">II", 8, 80877103)
GSS_REQUEST = struct.pack(">II", 8, 80877104)
"""What PostgreSQL's clients begin with when they want encryption (its manual, Frontend/Backend Protocol, 54.2)."""

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Authority:
    """A certificate authority of one's own; `file` is what clients are to trust."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._certificate = self._sign(self._name, self._key, is_authority=True)
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    def server_context(self, address: str = "127.0.0.1") -> ssl.SSLContext:
        """Return what a server at `address` shows."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, address)]), key, address)
        file = self.folder / f"server-{address}.pem"
        pem = serialization.PrivateFormat.PKCS8
        file.write_bytes(
            key.private_bytes(serialization.Encoding.PEM, pem, serialization.NoEncryption())
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context

    def _sign(
        self,
        name: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        address: str | None = None,
        *,
        is_authority: bool = False,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        )
        if address:
            names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
            builder = builder.add_extension(names, critical=False)
        return builder.sign(self._key, hashes.SHA256())


class TlsFront:
    """Takes TLS connections on `port` of 127.0.0.1 and passes what is in them on to a server without TLS.

    `opened` counts the connections that came encrypted and stood, `refused` those that did not.
    """

    def __init__(self, context: ssl.SSLContext, connect: Callable[[], Awaitable[Streams]], *, asks_first: bool) -> None:
        self.port = free_port()
        self.opened = self.refused = 0
        self._context = context
        self._connect = connect
        self._asks_first = asks_first
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> TlsFront:
        self._thread.start()
        self._server = self._wait(asyncio.start_server(self._serve, "127.0.0.1", self.port))
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()
        self._wait(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> int:
        """Cut every connection off in the middle; return how many there were."""
        return self._wait(self._cut())

    async def _cut(self) -> int:
        for writer in self._writers:
            writer.transport.abort()
        return len(self._writers)

    async def _end(self) -> None:
        await self._cut()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _wait(self, work: Awaitable[T]) -> T:
        async def run() -> T:
            return await work

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(30)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self._asks_first:
                await self._await_request(reader, writer)
            await self._encrypt(writer)
            server_reader, server_writer = await self._connect()
        except (OSError, EOFError, ConnectionError):
            self.refused += 1
            writer.transport.abort()
            return
        self.opened += 1
        self._writers.add(writer)
        try:
            await asyncio.gather(_pass_on(reader, server_writer), _pass_on(server_reader, writer))
        finally:
            self._writers.discard(writer)
            server_writer.transport.abort()
            writer.transport.abort()

    async def _encrypt(self, writer: asyncio.StreamWriter) -> None:
        plain = writer.transport
        try:
            await writer.start_tls(self._context)
        except AttributeError as error:
            # A client that leaves within the handshake leaves a writer without a transport, which it cannot close.
            writer._transport = plain
            raise ConnectionError("left within the handshake") from error

    async def _await_request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (request := await reader.readexactly(8)) == GSS_REQUEST:
            writer.write(b"N")
        if request != SSL_REQUEST:
            raise ConnectionError("in the clear")
        writer.write(b"S")
        await writer.drain()


async def _pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
    except OSError:
        pass
    finally:
        target.close()


def before_postgres(context: ssl.SSLContext, socket_dir: Path) -> TlsFront:
    """Return TLS in front of the embedded PostgreSQL."""
    path = str(socket_dir / ".s.PGSQL.5432")
    return TlsFront(context, lambda: asyncio.open_unix_connection(path), asks_first=True)


def before_valkey(context: ssl.SSLContext, port: int) -> TlsFront:
    """Return TLS in front of the embedded Valkey."""
    return TlsFront(context, lambda: asyncio.open_connection("127.0.0.1", port), asks_first=False)
