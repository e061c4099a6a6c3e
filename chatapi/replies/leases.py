"""Keeps the leases of a process alive while it waits for the model."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from flask import Flask

from chatapi.extensions import in_transaction
from chatapi.replies.jobs import RENEW_EVERY_SECONDS, Lease, renew_leases

log = structlog.get_logger(__name__)


class LeaseKeeper:
    """Renews what the process holds every 10 s, all in one statement, from a thread of its own.

    A lease is renewed for `most_seconds` at the most: a call that hangs beyond every time-out loses its job to
    another worker instead of holding it for ever.
    """

    def __init__(self, app: Flask, most_seconds: float) -> None:
        self._app = app
        self._most_seconds = most_seconds
        self._held: dict[Lease, float] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @contextmanager
    def hold(self, lease: Lease) -> Iterator[None]:
        """Keep `lease` alive within the block."""
        with self._lock:
            self._held[lease] = time.monotonic()
            if self._thread is None:
                # Begun here and not at import: threads do not survive the fork of a worker process.
                self._thread = threading.Thread(target=self._run, name="lease-keeper", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._lock:
                self._held.pop(lease, None)

    def _run(self) -> None:
        while True:
            time.sleep(RENEW_EVERY_SECONDS)
            oldest = time.monotonic() - self._most_seconds
            with self._lock:
                leases = [lease for lease, since in self._held.items() if since >= oldest]
            if leases:
                self._renew(leases)

    def _renew(self, leases: list[Lease]) -> None:
        with self._app.app_context():
            try:
                kept = in_transaction(lambda: renew_leases(leases))
            except Exception as error:  # noqa: BLE001 - this thread must not end: nobody else would renew
                # The next round tries again; leases outlive two missed rounds.
                log.warning("leases_not_renewed", count=len(leases), reason=type(error).__name__)
                return
        if kept < len(leases):
            log.warning("leases_lost", count=len(leases) - kept)
