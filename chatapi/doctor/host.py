"""This machine, and what of the outside is reached by nothing else here: delivery of codes, folders, open files."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from chatapi.doctor.findings import Finding, failed, ok, skipped, warning
from chatapi.doctor.settings import Settings, is_remote, not_set

CONNECT_SECONDS = 4.0
LEAST_FREE_BYTES = 500 * 2**20
FILES_BESIDE_STREAMS = 200


def check_delivery(settings: Settings) -> Iterator[Finding]:
    """Yield whether codes can leave; none is sent."""
    name, delivery = "codes", settings["OTP_DELIVERY"]
    if delivery == "echo":
        yield ok(name, "echo: whoever asks for a code gets it in the answer, for development alone")
        return
    url = settings["OTP_WEBHOOK_URL"]
    if not url:
        yield not_set(name, "OTP_DELIVERY" if not delivery else "OTP_WEBHOOK_URL")
        return
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    try:
        _connect(host, port, is_tls=parts.scheme == "https")
    except ssl.SSLCertVerificationError as error:
        advice = "Codes are not sent there: put the gateway's certificate right."
        yield failed(name, f"{host}:{port} has a certificate that is not good: {error.verify_message}", advice)
        return
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        yield failed(name, f"{host}:{port} takes no connection ({reason})", "Is OTP_WEBHOOK_URL right, and is it up?")
        return
    found = f"{host}:{port} takes connections (no code was sent)"
    if settings.is_production and parts.scheme == "http" and is_remote(host):
        yield warning(name, found, "Codes travel in the open: use https in OTP_WEBHOOK_URL.")
    else:
        yield ok(name, found)


def _connect(host: str, port: int, *, is_tls: bool) -> None:
    with socket.create_connection((host, port), timeout=CONNECT_SECONDS) as connection:
        if is_tls:
            with ssl.create_default_context().wrap_socket(connection, server_hostname=host):
                pass


def check_host(settings: Settings) -> Iterator[Finding]:
    """Yield what there is to say of folders and limits, for whoever runs this."""
    yield _check_folder(settings, "log files", "LOG_DIR", "the log goes to standard output alone")
    because = "the web's processes share a folder, and workers' figures are not shown"
    yield _check_folder(settings, "metrics files", "PROMETHEUS_MULTIPROC_DIR", because)
    yield _check_files(settings)


def _check_folder(settings: Settings, name: str, setting: str, unset: str) -> Finding:
    if settings.has_fault(setting):
        return skipped(name, f"{setting} is at fault")
    folder = settings[setting]
    if not folder:
        return skipped(name, f"{setting} is not set: {unset}")
    there = Path(folder)
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        who = f"{there} cannot be written by this user" if there.is_dir() else f"{there} is no folder"
        return failed(name, who, f"Give it to the service's user, or set {setting} to another one.")
    free = shutil.disk_usage(there).free
    if free < LEAST_FREE_BYTES:
        return warning(name, f"{folder}: {free / 2**20:.0f} MB are free", "Make room.")
    return ok(name, f"{folder}, {free / 2**30:.1f} GB free" + ("" if there == Path(folder) else ", not made yet"))


def _check_files(settings: Settings) -> Finding:
    name, streams = "open files", settings["MAX_OPEN_STREAMS"] or 0
    needed, allowed = 2 * streams + FILES_BESIDE_STREAMS, resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if allowed != resource.RLIM_INFINITY and allowed < needed:
        found = f"{allowed} for each process here, and a web process may need {needed}"
        return warning(name, found, "Raise the limit where the web is started (`ulimit -n`, LimitNOFILE).")
    return ok(name, f"{'no limit' if allowed == resource.RLIM_INFINITY else allowed} for each process here")
