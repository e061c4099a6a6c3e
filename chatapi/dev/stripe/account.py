"""The account that the stand-in keeps: objects, events, what waits to be delivered, and where it is saved."""

from __future__ import annotations

import copy
import fnmatch
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatapi.dev.stripe import objects
from chatapi.dev.stripe.calendar import DAY_SECONDS, Clock
from chatapi.dev.stripe.wire import Json, missing_object, new_id

MAX_EVENTS = 5000
MAX_SAVED_EVENTS = 500
PREFIXES = {
    "customer": "cus_",
    "product": "prod_",
    "price": "price_",
    "checkout.session": "cs_",
    "subscription": "sub_",
    "invoice": "in_",
    "event": "evt_",
    "webhook_endpoint": "we_",
}


@dataclass(frozen=True)
class DunningRules:
    """What happens when a renewal is not paid: retries so many days after the first failure, then a last status."""

    retry_days: Sequence[int] = (3, 5, 7)
    final_status: str = "canceled"

    def __post_init__(self) -> None:
        if self.final_status not in {"canceled", "unpaid", "past_due"}:
            raise ValueError("final_status must be canceled, unpaid or past_due")


class Account:
    """Everything that is known. Whoever reads or changes it holds it by `changing`; all of it is plain JSON."""

    def __init__(self, base_url: str, *, livemode: bool, dunning: DunningRules, state_file: Path | None) -> None:
        self.base_url = base_url
        self.livemode = livemode
        self.dunning = dunning
        self.clock = Clock()
        self.on_delivery: Callable[[Json], None] = lambda _: None
        self._state_file = state_file
        self._lock = threading.RLock()
        self._saving = threading.Lock()
        self._depth = 0
        self._changes = 0
        self._saved_changes = 0
        self._request: Json = {"id": None, "idempotency_key": None}
        self.kinds: dict[str, dict[str, Json]] = {kind: {} for kind in PREFIXES}
        self.private: dict[str, Json] = {}
        """What Stripe does not show, by the id of the object it belongs to: cards, secrets, line items."""
        self.deliveries: dict[str, Json] = {}
        """Deliveries that are not confirmed yet, by id."""
        self.remembered: dict[str, Json] = {}
        """Answers kept by idempotency key."""

    @contextmanager
    def changing(self, request: Json | None = None) -> Iterator[None]:
        """Hold the account; what was changed is saved when this is over. `request` is what events then name."""
        try:
            with self._lock:
                outer = self._request
                self._request = request or outer
                self._depth += 1
                try:
                    yield
                finally:
                    self._depth -= 1
                    self._request = outer
                    is_outermost, changes = not self._depth, self._changes
        finally:
            if is_outermost and self._state_file is not None:
                self._save(self._state_file, changes)

    def touch(self) -> None:
        """Have what was changed saved."""
        self._changes += 1

    def head(self, kind: str, object_id: str | None = None) -> objects.Head:
        prefix = PREFIXES[kind]
        if kind == "checkout.session":
            prefix += "live_" if self.livemode else "test_"
        return objects.Head(object_id or new_id(prefix), self.clock.now(), self.livemode)

    def part_head(self, prefix: str) -> objects.Head:
        """Begin a part of another object, such as a line."""
        return objects.Head(new_id(prefix), self.clock.now(), self.livemode)

    def add(self, made: Json, event_type: str | None = None) -> Json:
        """Keep a new object, and tell of it."""
        self.kinds[made["object"]][made["id"]] = made
        self.touch()
        if event_type:
            self.emit(event_type, made)
        return made

    def find(self, kind: str, object_id: str, *, param: str | None = None) -> Json:
        """Return an object; `ApiError` when there is none, or its customer was deleted."""
        found = self.kinds[kind].get(object_id)
        if found is None or (param and found.get("deleted")):
            raise missing_object(kind, object_id, param=param)
        return found

    def all_of(self, kind: str) -> list[Json]:
        """Return all objects of a kind that are not deleted, oldest first."""
        return [made for made in self.kinds[kind].values() if not made.get("deleted")]

    def secret_of(self, object_id: str) -> Json:
        """Return what is kept beside an object, to read or to change."""
        self.touch()
        return self.private.setdefault(object_id, {})

    @contextmanager
    def updating(self, held: Json, event_type: str | None) -> Iterator[Json]:
        """Change an object; if it then differs, tell so by `event_type`, if any, with what it was before."""
        before = copy.deepcopy(held)
        yield held
        previous = _difference(before, held)
        if previous:
            self.touch()
            if event_type:
                self.emit(event_type, held, previous)

    def emit(self, event_type: str, about: Json, previous: Json | None = None) -> Json:
        """Make an event with `about` as it is now, to be delivered to every endpoint that wants it."""
        data: Json = {"object": copy.deepcopy(about)}
        if previous is not None:
            data["previous_attributes"] = previous
        made = objects.event(self.head("event"), event_type, data, dict(self._request))
        endpoints = [endpoint for endpoint in self.all_of("webhook_endpoint") if _wants(endpoint, event_type)]
        made["pending_webhooks"] = len(endpoints)
        self.add(made)
        self._forget_old_events()
        for endpoint in endpoints:
            self.deliver(made, endpoint)
        return made

    def deliver(self, event: Json, endpoint: Json) -> None:
        """Have `event` sent to `endpoint`."""
        delivery = {"id": new_id("del_"), "event": event["id"], "endpoint": endpoint["id"], "attempts": 0}
        self.deliveries[delivery["id"]] = delivery
        self.touch()
        self.on_delivery(delivery)

    def _forget_old_events(self) -> None:
        events = self.kinds["event"]
        while len(events) > MAX_EVENTS:
            del events[next(iter(events))]

    def forget_old_answers(self) -> None:
        """Drop answers kept for longer than Stripe keeps them, 24 hours."""
        oldest = self.clock.now() - DAY_SECONDS
        while self.remembered and self.remembered[first := next(iter(self.remembered))]["at"] <= oldest:
            del self.remembered[first]

    def _save(self, state_file: Path, changes: int) -> None:
        """Save all that was changed so far. Of many who change something at once, one saves for all who wait."""
        with self._saving:
            if self._saved_changes >= changes:
                return
            with self._lock:
                saved_changes, text = self._changes, json.dumps(self._state())
            draft = state_file.with_name(state_file.name + ".new")
            # It holds the secrets of webhooks.
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
                file.write(text)
            draft.replace(state_file)
            self._saved_changes = saved_changes

    def _state(self) -> Json:
        """Return what is saved: everything, but of the events only the newest and those that wait to be delivered."""
        waiting = {delivery["event"] for delivery in self.deliveries.values()}
        events = self.kinds["event"]
        newest = set(list(events)[-MAX_SAVED_EVENTS:])
        kept = {key: event for key, event in events.items() if key in newest or key in waiting}
        return {
            "kinds": {**self.kinds, "event": kept},
            "private": self.private,
            "deliveries": self.deliveries,
            "remembered": self.remembered,
            "offset": self.clock.offset,
        }

    def load(self) -> None:
        """Go on from the state file, if there is one; pages of open sessions are now at this server."""
        if self._state_file is None:
            return
        self._state_file.parent.mkdir(parents=True, exist_ok=True)
        if not self._state_file.exists():
            return
        state = json.loads(self._state_file.read_text(encoding="utf-8"))
        self.clock.offset = state.pop("offset")
        for name, value in state.items():
            setattr(self, name, value)
        for session in self.kinds["checkout.session"].values():
            if session["url"]:
                session["url"] = self.checkout_url(session["id"])

    def checkout_url(self, session_id: str) -> str:
        return f"{self.base_url}/checkout/{session_id}"


def _wants(endpoint: Json, event_type: str) -> bool:
    if endpoint["status"] != "enabled":
        return False
    return any(fnmatch.fnmatchcase(event_type, pattern) for pattern in endpoint["enabled_events"])


def _difference(before: Any, after: Any) -> Any:
    """Return what `before` had otherwise, as `previous_attributes` shows it: hashes in part, lists whole."""
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return before
    names = [*before, *(name for name in after if name not in before)]
    return {
        name: _difference(before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)
    }
