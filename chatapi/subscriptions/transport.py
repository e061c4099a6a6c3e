"""The HTTP edge below Stripe's SDK: requests, with a bound to each answer as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import requests

from chatapi.upstream.adapter import UpstreamAdapter, session_by
from chatapi.upstream.calls import UpstreamCall

KEPT_CONNECTIONS = 32
"""One for each thread that may ask at the same time, more or less; further ones are made and not kept."""


class BoundedAdapter(UpstreamAdapter):
    """Gives up an answer that is not there as a whole after `seconds`.

    The timeouts of requests are for one read each, so that a byte now and then would hold a thread for ever. What is
    given up so counts as a timeout like any other: the SDK asks again under the same idempotency key.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        super().__init__(pool_maxsize=KEPT_CONNECTIONS)

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,  # noqa: ARG002 - the body is read here, within the bound.
        timeout: Any = None,
        verify: bool | str = True,
        cert: bytes | str | tuple[bytes | str, bytes | str] | None = None,
        proxies: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """Send `request` and read the whole answer. Raises `requests.Timeout` when the time is up."""
        call = UpstreamCall(self._seconds)
        try:
            with call:
                response = super().send(request, True, timeout, verify, cert, proxies)
                call.at_exit(response.close)
                _ = response.content
        except requests.RequestException:
            # That the connection was shut looks in many ways.
            if not call.is_expired:
                raise
        if call.is_expired:
            raise requests.ReadTimeout("The answer took too long as a whole", request=request)
        return response


def bounded_session(seconds: float) -> requests.Session:
    """Return a session for all threads whose answers take `seconds` at most."""
    return session_by(BoundedAdapter(seconds))
