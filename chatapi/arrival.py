"""Tells when a request has arrived whole, as its bytes come in; what they mean is gunicorn's to find out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum, auto
from http import HTTPStatus

MAX_HEAD_BYTES = 32 * 1024
MAX_DIGITS = 18
"""Of a Content-Length."""
MAX_BODY_BYTES = 1024 * 1024
"""As long as any body may be that the application reads."""
MAX_CHUNKS = 1024
"""Each costs time, in the main loop and in gunicorn's parser; clients send bodies of up to 64 KiB in a few."""
MAX_LINE_BYTES = 4096
"""Of a chunk's size and what is said beside it."""

_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]+)[ \t]*(?=\r\n)")
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[^\r]*chunked")
_CONTINUE = re.compile(rb"\r\nexpect:[ \t]*100-continue[ \t]*\r\n")
_CHUNK_SIZE = re.compile(rb"([0-9a-f]{1,16})[ \t]*(;.*)?", re.IGNORECASE | re.DOTALL)


class State(Enum):
    """How far a request has come."""

    HEAD = auto()
    BODY = auto()
    WHOLE = auto()
    TOO_LONG = auto()
    """Its head says that the body is longer than any that is read: there is no use in waiting for it."""
    REFUSED = auto()
    """See `Arrival.refusal`."""


class Arrival:
    """A request on its way.

    Whatever could have gunicorn's parser ask for more than has come is not whole, or is refused here: a thread that
    waits for a client to send can wait for ever.
    """

    def __init__(self, begun: bytes = b"") -> None:
        self.data = bytearray(begun)
        self.refusal = HTTPStatus.BAD_REQUEST
        self.expects_continue = False
        """The client waits for a word before it sends the body."""
        self._states = self._follow()
        self.state = next(self._states)

    def add(self, data: bytes) -> State:
        """Take what has come, and return how far the request is now; not to be called after its end."""
        self.data += data
        self.state = next(self._states)
        return self.state

    def _follow(self) -> Iterator[State]:
        searched = 0
        while (end := self.data.find(_END, max(0, searched - 3), MAX_HEAD_BYTES)) < 0:
            # A line that ends with a bare LF means that the head never ends (RFC 9112, section 2.2).
            if self.data.count(b"\n") != self.data.count(b"\r\n"):
                yield from self._refuse(HTTPStatus.BAD_REQUEST)
            if len(self.data) >= MAX_HEAD_BYTES:
                yield from self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            searched = len(self.data)
            yield State.HEAD
        head, body = bytes(self.data[: end + 2]).lower(), end + len(_END)
        self.expects_continue = b" http/1.1\r\n" in head and _CONTINUE.search(head) is not None
        if _CHUNKED.search(head):
            yield from self._follow_chunks(body)
        elif len(lengths := _LENGTH.findall(head)) == 1:
            # None means that there is no body; several, no number, or another coding, that the parser refuses the head.
            yield from self._follow_body(body, lengths[0])
        yield State.WHOLE

    def _follow_body(self, begin: int, digits: bytes) -> Iterator[State]:
        # So many digits, be they noughts, take Python long to read, or cannot be read at all.
        if len(digits) > MAX_DIGITS:
            yield from self._refuse(HTTPStatus.BAD_REQUEST)
        length = int(digits)
        if length > MAX_BODY_BYTES:
            yield State.TOO_LONG
        while len(self.data) < begin + length:
            yield State.BODY

    def _follow_chunks(self, begin: int) -> Iterator[State]:
        """Go from size line to size line, up to the empty chunk and the trailers after it."""
        at, size, count = begin, -1, 0
        while size != 0:
            count += 1
            if count > MAX_CHUNKS:
                yield from self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            while (end := self.data.find(b"\r\n", at, at + MAX_LINE_BYTES)) < 0:
                if len(self.data) - at >= MAX_LINE_BYTES:
                    yield from self._refuse(HTTPStatus.BAD_REQUEST)
                yield from self._wait_for_chunks(at - begin)
            line = _CHUNK_SIZE.fullmatch(self.data, at, end)
            if line is None:
                yield from self._refuse(HTTPStatus.BAD_REQUEST)
            else:
                size = int(line[1], 16)
                at = end + 2 + size + 2 if size else end
            while len(self.data) < at:
                yield from self._wait_for_chunks(at - begin)
            if size and self.data[at - 2 : at] != b"\r\n":
                yield from self._refuse(HTTPStatus.BAD_REQUEST)
        while self.data.find(_END, at, at + MAX_HEAD_BYTES) < 0:
            if len(self.data) - at >= MAX_HEAD_BYTES:
                yield from self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            yield from self._wait_for_chunks(at - begin)

    def _wait_for_chunks(self, wanted: int) -> Iterator[State]:
        """Chunks of few bytes take several times as many; a body of so many of them is refused."""
        if max(wanted, len(self.data)) > 2 * MAX_BODY_BYTES:
            yield from self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        yield State.BODY

    def _refuse(self, status: HTTPStatus) -> Iterator[State]:
        self.refusal = status
        yield State.REFUSED
