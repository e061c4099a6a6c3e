"""From what a worker writes of a reply to the events that one reader gets: nothing twice, nothing missing.

The server-sent events of https://html.spec.whatwg.org/multipage/server-sent-events.html. An event's id says how far its
reader is: the fencing token of the attempt and the number of characters, or the end. So it can be continued by any
process, from Redis or from the stored text alike.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from chatapi.chatrooms.live import Written

_EVENT_ID = re.compile(r"(?P<token>[0-9]{1,19})-(?P<offset>[0-9]{1,9}|end)", re.ASCII)


@dataclass(frozen=True)
class Event:
    """One server-sent event; `data` is sent as JSON."""

    name: str
    data: dict[str, Any]
    id: str

    def encode(self) -> str:
        """Return the event as it goes over the wire; JSON has no line break that could end it early."""
        return f"id: {self.id}\nevent: {self.name}\ndata: {json.dumps(self.data, ensure_ascii=False)}\n\n"


def end_id(text_token: int | None) -> str:
    """Return the id of the event that ends a stream."""
    return f"{text_token or 0}-end"


class Follower:
    """Where one reader is in one reply. `last_event_id` is what they came back with; None the first time.

    What an id of ours does not say, or one of another reply's, gets a `reset` first: whoever has it has some text.
    """

    def __init__(self, last_event_id: str | None) -> None:
        found = _EVENT_ID.fullmatch(last_event_id or "")
        is_position = found is not None and found["offset"] != "end"
        self._token = int(found["token"]) if found and is_position else None
        self._offset = int(found["offset"]) if found and is_position else 0
        # What the reader has been told of: an attempt, and text of it.
        self._has_attempt = bool(last_event_id)
        self._has_text = bool(last_event_id) and (not is_position or self._offset > 0)
        self._resets = False
        self._fresh: list[str] = []
        if last_event_id and not is_position:
            self._restart(None)

    def take(self, written: Written) -> None:
        """Note what was written. What an older attempt writes late is nothing; a gap waits for the stored text."""
        if written.is_end:
            return
        if self._token is None or written.token > self._token:
            self._restart(written.token)
        if written.token == self._token and written.offset <= self._offset:
            fresh = written.text[self._offset - written.offset :]
            self._offset += len(fresh)
            if fresh:
                self._fresh.append(fresh)

    def events(self) -> Iterator[Event]:
        """Yield what the reader does not have yet of what was noted: at most a `reset` and one `delta`."""
        if self._resets:
            yield Event("reset", {}, f"{self._token or 0}-0")
            self._has_attempt, self._has_text = True, False
        if text := "".join(self._fresh):
            yield Event("delta", {"text": text}, f"{self._token or 0}-{self._offset}")
            self._has_attempt = self._has_text = True
        self._resets, self._fresh = False, []

    def finish(self, message: dict[str, Any], text_token: int | None, detail: str | None) -> Iterator[Event]:
        """Yield what is missing of a reply that has ended, and its end. `message` is as the API shows it.

        `detail` is a sentence about the error of a failed one.
        """
        content, status = message["content"], message["status"]
        if text_token is None or text_token != self._token or self._offset > len(content):
            self._fresh = []
            self._resets = self._has_text
            self._token, self._offset = text_token or self._token, 0
        self._fresh.append(content[self._offset :])
        self._offset = len(content)
        yield from self.events()
        if status == "failed":
            data = {"error": message["error"], "detail": detail, "message": message}
            yield Event("error", data, end_id(text_token))
        else:
            yield Event("done" if status == "completed" else "stopped", {"message": message}, end_id(text_token))

    def _restart(self, token: int | None) -> None:
        """Begin a new attempt; what was noted of an earlier one, and not seen by anybody, is dropped."""
        self._resets = self._has_attempt
        self._fresh = []
        self._token, self._offset = token, 0
