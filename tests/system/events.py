"""Somebody who follows a reply over server-sent events, as a browser does."""

from __future__ import annotations

import http.client
import json
import time
from dataclasses import dataclass
from typing import Any

from tests import leaks
from tests.support import Account

END_EVENTS = ("done", "stopped", "error")


@dataclass(frozen=True)
class Received:
    """One event, and when it came."""

    name: str
    data: dict[str, Any]
    id: str
    at: float


class EventStream:
    """One connection to a stream; iterate over it for its events."""

    def __init__(
        self, account: Account, room_id: str, reply_id: str, last_event_id: str | None = None, seconds: float = 30
    ) -> None:
        self._path = f"/chatroom/{room_id}/message/{reply_id}/stream"
        self._connection = http.client.HTTPConnection("127.0.0.1", account.client.port, timeout=seconds)
        headers = account.headers if last_event_id is None else {**account.headers, "Last-Event-ID": last_event_id}
        self._connection.request("GET", self._path, headers=headers)
        self._response = self._connection.getresponse()
        self.status_code = self._response.status
        self.headers = self._response.headers
        self.comments: list[float] = []
        self._seen = b""
        self._deadline = time.monotonic() + 3 * seconds

    def __enter__(self) -> EventStream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        leaks.SUITE.note_answer("GET", self._path, None, self.status_code, self.headers.items(), self._seen)
        self._response.close()
        self._connection.close()

    def read_error(self) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(self._response.read())
        return body

    def next(self) -> Received | None:
        """Return the next event; None when the stream ends between two, as it must."""
        fields: dict[str, str] = {}
        while line := self._response.readline():
            self._seen += line
            if line == b"\n" and "event" in fields:
                return Received(fields["event"], json.loads(fields["data"]), fields["id"], time.monotonic())
            # Signs of life alone would keep this going for ever.
            assert time.monotonic() < self._deadline, "the stream does not end"
            if line.startswith(b":"):
                self.comments.append(time.monotonic())
            elif line != b"\n":
                name, _, value = line.decode().rstrip("\n").partition(": ")
                fields[name] = value
        assert fields.keys() <= {"retry"}, "the stream ends within an event"
        return None


class Reader:
    """Reads one reply, over as many connections as it takes; `text` is what a browser would show."""

    def __init__(self, account: Account, room_id: str, reply_id: str) -> None:
        self._where = (account, room_id, reply_id)
        self.text = ""
        self.last_id: str | None = None
        self.events: list[Received] = []
        self.comments: list[float] = []
        self.connections = 0

    @property
    def end(self) -> Received | None:
        return self.events[-1] if self.events and self.events[-1].name in END_EVENTS else None

    @property
    def resets(self) -> int:
        return sum(event.name == "reset" for event in self.events)

    def read(self, most: int | None = None, seconds: float = 30) -> None:
        """Read on from where it was left; up to `most` events, or until the stream ends or breaks."""
        left = most
        with EventStream(*self._where, self.last_id, seconds) as stream:
            self.connections += 1
            assert stream.status_code == 200, stream.read_error()
            while left is None or left > 0:
                event = stream.next()
                if event is None:
                    break
                self._take(event)
                left = None if left is None else left - 1
            self.comments += stream.comments

    def read_to_end(self, most_seconds: float = 60) -> Received:
        """Come back until the reply has ended, also when the server is away for a while."""
        deadline = time.monotonic() + most_seconds
        while self.end is None:
            assert time.monotonic() < deadline, f"no end within {most_seconds} s"
            try:
                self.read()
            except (OSError, http.client.HTTPException):
                time.sleep(0.2)
        return self.end

    def _take(self, event: Received) -> None:
        assert self.end is None, "nothing comes after the end"
        self.events.append(event)
        self.last_id = event.id
        if event.name == "reset":
            self.text = ""
        elif event.name == "delta":
            self.text += event.data["text"]
