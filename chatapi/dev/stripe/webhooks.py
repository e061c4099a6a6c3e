"""Delivery of events: signed, at least once, in no order, tried again until it is taken.

For tests it can be held back and let go in another order, delayed, lost and repeated.
"""

from __future__ import annotations

import heapq
import http.client
import itertools
import json
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from chatapi.dev.stripe.account import Account
from chatapi.dev.stripe.wire import ApiError, Json, signature_header

BACKOFF_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
TIMEOUT_SECONDS = 10.0
MAX_AT_ONCE = 64
MAX_RECORDED_ATTEMPTS = 2000
ORDERS = ("as made", "reversed", "shuffled")


@dataclass(frozen=True)
class Attempt:
    """One try to deliver; `status` None when no answer came."""

    event_id: str
    event_type: str
    endpoint_id: str
    url: str
    status: int | None
    number: int


class Deliverer:
    """Sends what the account has for its endpoints, each attempt in a thread of its own."""

    def __init__(self, account: Account, backoff: Sequence[float], timeout_seconds: float) -> None:
        self._account = account
        self._backoff = backoff
        self._timeout_seconds = timeout_seconds
        self._changed = threading.Condition()
        self._due: list[tuple[float, int, Json]] = []
        self._numbers = itertools.count()
        self._under_way = 0
        self._held: list[Json] | None = None
        self._to_drop: int | None = 0
        self._delay_seconds = 0.0
        self._attempts: deque[Attempt] = deque(maxlen=MAX_RECORDED_ATTEMPTS)
        self._connections: set[http.client.HTTPConnection] = set()
        self._is_stopped = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        account.on_delivery = self.take

    def start(self) -> None:
        """Begin, with what was not delivered yet when the state was saved."""
        with self._account.changing():
            waiting = list(self._account.deliveries.values())
        for delivery in waiting:
            self._plan(delivery, 0)
        self._thread.start()

    def stop(self) -> None:
        """Send nothing more, and cut what is under way."""
        with self._changed:
            self._is_stopped = True
            for connection in self._connections:
                _cut(connection)
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        with self._changed:
            self._changed.wait_for(lambda: not self._under_way, timeout=5)

    def take(self, delivery: Json) -> None:
        """Send a new delivery, or do with it what tests have asked for. The account is held by the caller."""
        with self._changed:
            if self._to_drop is None or self._to_drop > 0:
                self._to_drop = None if self._to_drop is None else self._to_drop - 1
                self._account.deliveries.pop(delivery["id"], None)
            elif self._held is not None:
                self._held.append(delivery)
            else:
                self._plan(delivery, self._delay_seconds)

    def _plan(self, delivery: Json, seconds: float) -> None:
        with self._changed:
            heapq.heappush(self._due, (time.monotonic() + seconds, next(self._numbers), delivery))
            self._changed.notify_all()

    def _run(self) -> None:
        while (delivery := self._next()) is not None:
            threading.Thread(target=self._send_and_go_on, args=(delivery,), daemon=True).start()

    def _next(self) -> Json | None:
        """Wait for the next delivery that is due, and count it as under way; None when stopped."""
        with self._changed:
            while not self._is_stopped:
                is_due = bool(self._due) and self._due[0][0] <= time.monotonic()
                if is_due and self._under_way < MAX_AT_ONCE:
                    self._under_way += 1
                    return heapq.heappop(self._due)[2]
                wait = None if is_due or not self._due else max(0.0, self._due[0][0] - time.monotonic())
                self._changed.wait(wait)
        return None

    def _send_and_go_on(self, delivery: Json) -> None:
        try:
            if not self._send(delivery):
                retry = min(delivery["attempts"], len(self._backoff)) - 1
                self._plan(delivery, self._backoff[retry])
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()

    def _send(self, delivery: Json) -> bool:
        """Try once; return whether there is nothing more to do."""
        with self._account.changing():
            event = self._account.kinds["event"].get(delivery["event"])
            endpoint = self._account.kinds["webhook_endpoint"].get(delivery["endpoint"])
            if event is None or endpoint is None or endpoint["status"] != "enabled":
                self._account.deliveries.pop(delivery["id"], None)
                return True
            payload = json.dumps(event, indent=2).encode()
            secrets = self._account.private[endpoint["id"]]["secrets"]
            delivery["attempts"] += 1
            url = endpoint["url"]
        status = self._post(url, payload, signature_header(payload, secrets, int(time.time())))
        is_taken = status is not None and 200 <= status < 300
        attempt = Attempt(event["id"], event["type"], endpoint["id"], url, status, delivery["attempts"])
        with self._changed:
            self._attempts.append(attempt)
        with self._account.changing():
            if is_taken and delivery["id"] in self._account.deliveries:
                del self._account.deliveries[delivery["id"]]
                event["pending_webhooks"] = max(0, event["pending_webhooks"] - 1)
            self._account.touch()
        return is_taken

    def _post(self, url: str, payload: bytes, signature: str) -> int | None:
        parts = urlsplit(url)
        make = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = make(parts.hostname or "", parts.port, timeout=self._timeout_seconds)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            "Stripe-Signature": signature,
            "User-Agent": "Stripe/1.0 (stand-in)",
        }
        with self._changed:
            if self._is_stopped:
                return None
            self._connections.add(connection)
        try:
            connection.request("POST", path, payload, headers)
            with connection.getresponse() as response:
                response.read()
                return response.status
        except (OSError, ValueError, http.client.HTTPException):
            return None
        finally:
            with self._changed:
                self._connections.discard(connection)
            connection.close()

    @property
    def attempts(self) -> list[Attempt]:
        """What was tried, oldest first."""
        with self._changed:
            return list(self._attempts)

    def wait_until_delivered(self, timeout_seconds: float) -> bool:
        """Return whether, before the time is over, nothing is left to send but what is held."""
        with self._changed:
            return self._changed.wait_for(lambda: not (self._due or self._under_way), timeout_seconds)

    def hold(self) -> None:
        """Keep back what is made from now on."""
        with self._changed:
            if self._held is None:
                self._held = []

    def release(self, order: str, seed: int | None, drop: int, copies: int) -> int:
        """Send what was held one after the other, in `order`, then hold no more; return how many were sent.

        `drop` of them, chosen by `seed`, are lost; each of the others is sent `copies` times in all, the copies of one
        anywhere among the others when shuffled. It returns when each was tried once.
        """
        if order not in ORDERS:
            raise ApiError(400, f"order must be one of {', '.join(ORDERS)}", param="order")
        with self._changed:
            held, self._held = self._held or [], None
        chance = random.Random(seed)  # noqa: S311 - a test's order is no secret.
        lost = chance.sample(held, min(drop, len(held)))
        with self._account.changing():
            for delivery in lost:
                self._account.deliveries.pop(delivery["id"], None)
        lost_ids = {delivery["id"] for delivery in lost}
        sent = [delivery for delivery in held if delivery["id"] not in lost_ids for _ in range(copies)]
        if order == "reversed":
            sent.reverse()
        elif order == "shuffled":
            chance.shuffle(sent)
        for delivery in sent:
            with self._changed:
                self._under_way += 1
            self._send_and_go_on(delivery)
        return len(sent)

    def drop(self, count: int | None) -> None:
        """Lose the next `count` deliveries, None: all from now on, 0: none any more."""
        with self._changed:
            self._to_drop = count

    def delay(self, seconds: float) -> None:
        """Send what is made from now on so much later."""
        with self._changed:
            self._delay_seconds = seconds


def _cut(connection: http.client.HTTPConnection) -> None:
    if connection.sock is None:
        return
    try:
        connection.sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        return
