"""What all exports share: how many are written at once, in what pieces, and how they are sent."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from uuid import UUID

from flask import Response, current_app, stream_with_context

from chatapi.errors import RateLimitedError, ServiceUnavailableError

PIECE_CHARACTERS = 64 * 1024

RETRY_AFTER_SECONDS = 10
REFUSALS = (
    RateLimitedError("An export is being written already", retry_after=RETRY_AFTER_SECONDS),
    ServiceUnavailableError(retry_after=RETRY_AFTER_SECONDS),
)
"""What is answered while there is no slot, for the documentation."""


class ExportSlots:
    """How many exports a process writes at once, each of which holds a thread for as long as its client reads."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._users: set[UUID] = set()
        self._lock = threading.Lock()

    def take(self, user_id: UUID) -> None:
        """Take a slot for a user.

        Raises `RateLimitedError` if the user has one, and `ServiceUnavailableError` if there is none left.
        """
        with self._lock:
            if user_id in self._users:
                raise RateLimitedError(REFUSALS[0].message, retry_after=RETRY_AFTER_SECONDS)
            if len(self._users) >= self._most:
                raise ServiceUnavailableError(retry_after=RETRY_AFTER_SECONDS)
            self._users.add(user_id)

    def give_back(self, user_id: UUID) -> None:
        """Give a user's slot back."""
        with self._lock:
            self._users.discard(user_id)


def send_export(user_id: UUID, parts: Iterable[str], mimetype: str, filename: str) -> Response:
    """Return the answer that streams `parts` as a file, and holds one of the process's slots until it is sent.

    Exports have a quarter of a process's threads, whatever is exported, and leave the rest to everybody else.
    Raises as `ExportSlots.take` does.
    """
    most = max(1, current_app.config["WEB_THREADS"] // 4)
    slots: ExportSlots = current_app.extensions.setdefault("export_slots", ExportSlots(most))
    slots.take(user_id)
    response = Response(
        stream_with_context(in_pieces(parts)),
        mimetype=mimetype,
        headers={"Content-Disposition": f'attachment; filename="{filename}"'},
    )
    response.call_on_close(lambda: slots.give_back(user_id))
    return response


def in_pieces(parts: Iterable[str]) -> Iterator[str]:
    """Yield the text of `parts` in pieces of `PIECE_CHARACTERS`, the last of fewer: each is sent by itself."""
    waiting = ""
    for part in parts:
        waiting += part
        while len(waiting) >= PIECE_CHARACTERS:
            yield waiting[:PIECE_CHARACTERS]
            waiting = waiting[PIECE_CHARACTERS:]
    if waiting:
        yield waiting
