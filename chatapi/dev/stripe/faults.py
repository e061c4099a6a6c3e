"""Which faults the Stripe stand-in is to show, to which requests and how often."""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from chatapi.dev.stripe.wire import ApiError

STATUS_KINDS = frozenset({"400", "401", "402", "403", "404", "409", "429", "500", "503"})
CONNECTION_KINDS = frozenset({"hang", "drip", "drip_head", "cut", "bad_json", "lost_answer"})
KINDS = STATUS_KINDS | CONNECTION_KINDS
ERRORS = {
    "400": ("invalid_request_error", None, "The request was refused (a fault that was asked for)."),
    "401": ("invalid_request_error", None, "Invalid API Key provided: sk_test_***"),
    "402": ("card_error", "card_declined", "Your card was declined."),
    "403": ("invalid_request_error", None, "The provided key does not have the required permissions."),
    "404": ("invalid_request_error", "resource_missing", "No such object (a fault that was asked for)."),
    "409": ("idempotency_error", "idempotency_key_in_use", "There is currently another in-progress request."),
    "429": ("invalid_request_error", "rate_limit", "Request rate limit exceeded."),
    "500": ("api_error", None, "An unknown error occurred."),
    "503": ("api_error", None, "Stripe is temporarily unavailable."),
}


@dataclass(frozen=True)
class Fault:
    """One way to misbehave; kind None answers well, only `latency_ms` late.

    The request is executed, late, even if its client has left by then. A kind shows before anything is executed, with
    `after` once it was: then only the answer is lost, which a key of idempotency brings back. `lost_answer` is `cut`
    with `after`. `drip` and `drip_head` answer by a byte now and then, for ever, of the body or of the head. `path` is
    a pattern that the path must match from its start, `times` None means always.
    """

    kind: str | None = None
    path: str | None = None
    method: str | None = None
    times: int | None = None
    latency_ms: int = 0
    after: bool = False

    def __post_init__(self) -> None:
        if self.kind is not None and (not isinstance(self.kind, str) or self.kind not in KINDS):
            raise ValueError(f"kind must be one of {', '.join(sorted(KINDS))}")
        for name in ("times", "latency_ms"):
            value = getattr(self, name)
            is_number = isinstance(value, int) and not isinstance(value, bool) and value >= 0
            if not is_number and not (value is None and name == "times"):
                raise ValueError(f"{name} must be a whole number from 0")
        for name in ("path", "method"):
            if not isinstance(getattr(self, name), str | None):
                raise ValueError(f"{name} must be a text")  # noqa: TRY004 - callers answer any ValueError with 400.
        if not isinstance(self.after, bool):
            raise ValueError("after must be true or false")  # noqa: TRY004 - as above.
        try:
            re.compile(self.path or "")
        except re.error as error:
            raise ValueError("path must be a regular expression") from error

    @classmethod
    def from_fields(cls, fields: object) -> Fault:
        """Build one from parsed JSON; ValueError says what is wrong with it."""
        if not isinstance(fields, Mapping):
            raise ValueError("A fault is a JSON object")  # noqa: TRY004 - as above.
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := set(fields) - known:
            raise ValueError(f"Unknown: {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}")
        return cls(**fields)

    @property
    def is_after(self) -> bool:
        return self.after or self.kind == "lost_answer"

    def error(self) -> ApiError | None:
        """Return what a kind that is a status answers."""
        if self.kind not in ERRORS:
            return None
        kind, code, message = ERRORS[self.kind]
        return ApiError(int(self.kind), message, kind=kind, code=code, is_remembered=False)

    def applies_to(self, method: str, path: str) -> bool:
        """Return whether the fault is for this request."""
        is_method = self.method is None or self.method.upper() == method
        return is_method and (self.path is None or re.match(self.path, path) is not None)


WELL_BEHAVED = Fault()


class FaultBook:
    """The faults asked for, with what is left of each; safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: list[tuple[Fault, list[int]]] = []

    def add(self, fault: Fault) -> None:
        """Show `fault` from now on, after those asked for before it are used up."""
        with self._lock:
            self._entries.append((fault, [0]))

    def clear(self) -> None:
        """Behave well again."""
        with self._lock:
            self._entries.clear()

    def take(self, method: str, path: str) -> Fault:
        """Return what applies to a request, and count it as shown."""
        with self._lock:
            for fault, used in self._entries:
                if (fault.times is None or used[0] < fault.times) and fault.applies_to(method, path):
                    used[0] += 1
                    return fault
        return WELL_BEHAVED
