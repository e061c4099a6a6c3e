"""Calls over TLS: their ends reach through it, and their connections are kept too."""

from __future__ import annotations

import datetime
import ipaddress
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from chatapi.replies.gemini.base import GeminiCancelled, GeminiRetryable
from chatapi.upstream.calls import UpstreamCall
from tests.replies.gemini.support import Way, http, make_client, receive_request, serve


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's context with a certificate for 127.0.0.1, which clients are told to trust."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(address, critical=False)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = tmp_path / "certificate.pem"
    path.write_bytes(private + certificate.public_bytes(encoding))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(path))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


def test_answers_come_on_one_connection_when_it_is_tls(way: Way, tls: ssl.SSLContext) -> None:
    accepted: list[socket.socket] = []

    def handle(plain: socket.socket) -> None:
        accepted.append(plain)
        with tls.wrap_socket(plain, server_side=True) as connection:
            while receive_request(connection):
                connection.sendall(http(way.body(way.element())))

    with serve(handle) as url:
        client = make_client(way.sdk, url.replace("http:", "https:"))
        assert [way.ask(client, call=UpstreamCall(5)).text for _ in range(3)] == ["well"] * 3
        client.close()

    assert len(accepted) == 1


@pytest.mark.parametrize("is_shaking_hands", [True, False])
@pytest.mark.parametrize("is_cancelled", [True, False])
def test_call_ends_at_once_when_tls_hangs(
    way: Way, tls: ssl.SSLContext, is_shaking_hands: bool, is_cancelled: bool
) -> None:
    is_left = threading.Event()

    def handle(plain: socket.socket) -> None:
        if is_shaking_hands:
            while plain.recv(65_536):
                continue
        else:
            with tls.wrap_socket(plain, server_side=True, suppress_ragged_eofs=True) as connection:
                receive_request(connection)
                connection.recv(1)
        is_left.set()

    with serve(handle) as url:
        client = make_client(way.sdk, url.replace("http:", "https:"), timeout=10)
        call = UpstreamCall(10 if is_cancelled else 0.5)
        if is_cancelled:
            threading.Timer(0.5, call.cancel).start()
        started_at = time.monotonic()
        with pytest.raises(GeminiCancelled if is_cancelled else GeminiRetryable):
            way.ask(client, call=call)
        took = time.monotonic() - started_at
        client.close()
        assert is_left.wait(2)

    assert 0.4 < took < 0.8
