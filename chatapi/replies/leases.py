"""Looks after what a process holds while it waits for the model: renews leases, hears of stops, notices losses."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import structlog
from flask import Flask

from chatapi.chatrooms.endings import Lease
from chatapi.extensions import in_transaction
from chatapi.replies.jobs import RENEW_EVERY_SECONDS, look_after, renew_leases
from chatapi.request_ids import on_behalf_of
from chatapi.upstream.calls import UpstreamCall

LOOK_EVERY_SECONDS = 0.5
"""How soon a reply notices that it is to be stopped, or was taken away: one small query for all of the process."""

log = structlog.get_logger(__name__)


class HeldLease:
    """A lease and the upstream call made under it, which ends when the reply is stopped or the lease is lost."""

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.since = time.monotonic()
        self.is_to_stop = False
        self.is_ending = False
        """The end is being written, with which the lease goes too."""
        self.model: str | None = None
        """What was asked last."""
        self._is_over = False
        self._call: UpstreamCall | None = None
        self._lock = threading.Lock()

    def call(self, seconds: float) -> UpstreamCall:
        """Return what the next call is made with; it is cancelled from the start if the reply is over already."""
        with self._lock:
            self._call = UpstreamCall(seconds)
            if self._is_over:
                self._call.cancel()
            return self._call

    def cancel(self, *, is_to_stop: bool) -> None:
        """End the call under way, and any further one."""
        with self._lock:
            self.is_to_stop = is_to_stop
            self._is_over = True
            if self._call is not None:
                self._call.cancel()


class LeaseKeeper:
    """Looks after all leases of the process from one thread, with one statement for all of them at a time.

    A lease is renewed for `most_seconds` at the most: a call that hangs beyond every time-out loses its job to
    another worker instead of holding it for ever.
    """

    def __init__(self, app: Flask, most_seconds: float) -> None:
        self._app = app
        self._most_seconds = most_seconds
        self._held: dict[int, HeldLease] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @contextmanager
    def hold(self, lease: Lease) -> Iterator[HeldLease]:
        """Look after `lease` within the block."""
        held = HeldLease(lease)
        with self._changed:
            self._held[lease.token] = held
            self._changed.notify()
            if self._thread is None:
                # Begun here and not at import: threads do not survive the fork of a worker process.
                self._thread = threading.Thread(target=self._run, name="lease-keeper", daemon=True)
                self._thread.start()
        try:
            yield held
        finally:
            with self._changed:
                self._held.pop(lease.token, None)

    def _run(self) -> None:
        renewed_at = time.monotonic()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._held)
            time.sleep(LOOK_EVERY_SECONDS)
            oldest = time.monotonic() - self._most_seconds
            with self._changed:
                held = [each for each in self._held.values() if each.since >= oldest]
            is_time = time.monotonic() - renewed_at >= RENEW_EVERY_SECONDS
            if held and self._look_after(held, renew=is_time) and is_time:
                renewed_at = time.monotonic()

    def _look_after(self, held: Sequence[HeldLease], *, renew: bool) -> bool:
        leases = [each.lease for each in held]
        with self._app.app_context():
            try:
                found = in_transaction(lambda: look_after(leases))
                if renew:
                    in_transaction(lambda: renew_leases(leases))
            except Exception as error:  # noqa: BLE001 - this thread must not end: nobody else would renew
                # The next round tries again; leases outlive two missed rounds.
                log.warning("leases_not_looked_after", count=len(leases), reason=type(error).__name__)
                return False
        for each in held:
            self._act(each, found.get(each.lease.token))
        return True

    def _act(self, held: HeldLease, is_to_stop: bool | None) -> None:
        """End the call of a lease that was lost (None), or whose reply is to be stopped."""
        if held.is_ending:
            return
        if is_to_stop is None:
            with self._changed:
                is_held = held.lease.token in self._held  # Else it was given back meanwhile.
            if is_held:
                with on_behalf_of(held.lease.request_id):
                    log.warning("lease_lost", reply_id=str(held.lease.message_id))
                held.cancel(is_to_stop=False)
        elif is_to_stop:
            held.cancel(is_to_stop=True)
