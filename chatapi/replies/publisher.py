"""Publishes the text of replies while the model writes it: the first at once, the rest a few times a second.

One thread for all replies of a process, so that what several say at the same time costs one round trip to Redis.
Redis being away costs nobody anything: what could not be published is published later, or read from PostgreSQL.
"""

from __future__ import annotations

import threading
import time

import structlog
from flask import Flask

from chatapi.chatrooms.endings import Lease
from chatapi.chatrooms.live import LiveReplies, Piece
from chatapi.replies.storable import storable

PUBLISH_EVERY_SECONDS = 0.1
"""How often more of one reply is published; a reader's eye does not need more."""
TRY_AGAIN_SECONDS = 1.0

log = structlog.get_logger(__name__)


class LiveText:
    """What one attempt has written so far."""

    def __init__(self, lease: Lease, publisher: Publisher) -> None:
        self._lease = lease
        self._publisher = publisher
        self._pieces: list[str] = []
        self._published = 0
        self._is_begun = False
        self._is_over = False
        self._lock = threading.Lock()
        self.due_at = 0.0

    @property
    def text(self) -> str:
        """All of it."""
        with self._lock:
            return "".join(self._pieces)

    def add(self, piece: str) -> bool:
        """Add what the model says next; return whether it is the first."""
        with self._lock:
            is_first = not self._pieces
            self._pieces.append(storable(piece))
        self._publisher.notify(self)
        return is_first

    def unpublished(self) -> list[Piece]:
        """Return what is to be appended to the stream: its beginning if it has none, and the text since the last."""
        with self._lock:
            if self._is_over:
                return []
            text, message_id, token = "".join(self._pieces), self._lease.message_id, self._lease.token
            pieces = [] if self._is_begun else [Piece(message_id, token, 0, "", is_first=True)]
            if len(text) > self._published:
                pieces.append(Piece(message_id, token, self._published, text[self._published :], is_first=False))
            self._is_begun, self._published = True, len(text)
            return pieces

    def end(self) -> None:
        """Publish no more: the reply has ended, and the rest of the text is in PostgreSQL."""
        with self._lock:
            self._is_over = True

    def begin_again(self) -> None:
        """Publish everything anew: the stream was lost."""
        with self._lock:
            self._is_begun, self._published = False, 0
        self._publisher.notify(self)


class Publisher:
    """The thread that publishes, for all replies of a process."""

    def __init__(self, app: Flask) -> None:
        self._live: LiveReplies = app.extensions["live_replies"]
        self._waiting: set[LiveText] = set()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def begin(self, lease: Lease) -> LiveText:
        """Begin an attempt: readers of an earlier one forget what they have."""
        text = LiveText(lease, self)
        self.notify(text)
        return text

    def notify(self, text: LiveText) -> None:
        """Note that there is more of `text`."""
        with self._changed:
            self._waiting.add(text)
            self._changed.notify()
            if self._thread is None:
                # Begun here and not at import: threads do not survive the fork of a worker process.
                self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            texts = self._take_due()
            try:
                self._publish(texts)
            except Exception:
                # Without this thread no reply of the process would be streamed any more.
                log.exception("publishing_failed")
                for text in texts:
                    text.due_at = time.monotonic() + TRY_AGAIN_SECONDS
                    text.begin_again()

    def _take_due(self) -> list[LiveText]:
        """Wait until something is due, and take it."""
        with self._changed:
            while True:
                now = time.monotonic()
                if due := [text for text in self._waiting if text.due_at <= now]:
                    self._waiting.difference_update(due)
                    return due
                first = min((text.due_at for text in self._waiting), default=None)
                self._changed.wait(None if first is None else first - now)

    def _publish(self, texts: list[LiveText]) -> None:
        pieces = [(text, piece) for text in texts for piece in text.unpublished()]
        arrived = self._live.append([piece for _, piece in pieces])
        for (text, piece), is_there in zip(pieces, arrived, strict=True):
            if is_there is None:
                text.due_at = time.monotonic() + TRY_AGAIN_SECONDS
            else:
                # Not for a mere beginning: the first text is published at once.
                text.due_at = time.monotonic() + PUBLISH_EVERY_SECONDS if piece.text else 0.0
        for text in {text for (text, _), is_there in zip(pieces, arrived, strict=True) if not is_there}:
            text.begin_again()
