"""The HTTP edge below both SDKs: requests, with answers handed on as they arrive and refusals read here."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import requests
import urllib3

from chatapi.replies.gemini.outcomes import refusal_of
from chatapi.upstream.adapter import UpstreamAdapter
from chatapi.upstream.calls import current_call

PIECE_BYTES = 65_536
TAIL_CHARACTERS = 16_384

ERROR_ELEMENT = re.compile(r'\{\s*"error"\s*:')
"""An error among the elements of a stream; within a reply's text the quotes would be escaped."""


class PiecewiseResponse(requests.Response):
    """An answer whose body comes in the pieces in which it arrives."""

    def __init__(self, response: requests.Response) -> None:
        super().__init__()
        self.__dict__.update(response.__dict__)
        self._tail = ""

    def iter_content(self, chunk_size: int | None = 1, decode_unicode: bool = False) -> Iterator[Any]:
        """Yield the body; decoded, as google.api_core reads streams, whole characters and never an empty piece.

        It asks for one byte at a time, which requests would obey: that costs a core for a few dozen replies.
        """
        return self._texts() if decode_unicode else super().iter_content(chunk_size)

    def pieces(self) -> Iterator[bytes]:
        """Yield the body's bytes as they arrive, until it ends and the connection has gone back to its pool."""
        while piece := self.raw.read1(PIECE_BYTES, decode_content=True):
            yield piece

    def error_element(self) -> Any:
        """Return the last error among a stream's elements, which google.api_core passes over; None without one."""
        starts = [match.start() for match in ERROR_ELEMENT.finditer(self._tail)]
        try:
            return json.JSONDecoder().raw_decode(self._tail, starts[-1])[0] if starts else None
        except (ValueError, RecursionError):
            return None

    def _texts(self) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")()
        # google.api_core looks at the first character of whatever comes before and after the array, and stumbles over
        # blanks there. They wait until something follows.
        blanks: str | None = None
        for piece in self.pieces():
            text = (blanks or "") + decoder.decode(piece)
            if not text.strip():
                blanks = None if blanks is None else text
                continue
            text, blanks = (text.lstrip() if blanks is None else text), ""
            self._tail = (self._tail + text)[-TAIL_CHARACTERS:]
            yield text
        decoder.decode(b"", final=True)


class GeminiAdapter(UpstreamAdapter):
    """Raises what a status from 300 on means.

    Here and not in the SDKs: google.api_core's reading of an error ends in AttributeError when the body is JSON of
    another shape, as proxies send, and google.auth sends a request that got 401 three times.
    """

    def build_response(self, req: requests.PreparedRequest, resp: urllib3.BaseHTTPResponse) -> PiecewiseResponse:
        return PiecewiseResponse(super().build_response(req, resp))

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,  # noqa: ARG002 - the body is read by whoever wants it.
        timeout: Any = None,
        verify: bool | str = True,
        cert: bytes | str | tuple[bytes | str, bytes | str] | None = None,
        proxies: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """Send `request`; `timeout` bounds each read in seconds, the call as a whole has its own."""
        response = super().send(request, True, timeout, verify, cert, proxies)
        # A connection whose answer was not read to its end is closed then, and not kept.
        current_call().at_exit(response.close)
        if response.status_code >= 300:
            raise refusal_of(response.status_code, response.content or b"")
        return response
