"""What requests sends by, to providers: within an `UpstreamCall`, and under the id of the request it is done for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import requests
from requests.adapters import HTTPAdapter

from chatapi.request_ids import REQUEST_ID_HEADER, current_request_id
from chatapi.upstream.connections import watch_pools


class UpstreamAdapter(HTTPAdapter):
    """Sends a request as part of this thread's `UpstreamCall`, and names whom it is for."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        watch_pools(self.poolmanager)

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        watch_pools(manager)
        return manager

    def close(self) -> None:
        # requests leaves a pool's connections to whenever the last answer that came by it is collected.
        for key in self.poolmanager.pools.keys():  # noqa: SIM118 - it has no iterator.
            self.poolmanager.pools[key].close()
        super().close()

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: bool | str = True,
        cert: bytes | str | tuple[bytes | str, bytes | str] | None = None,
        proxies: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """Send `request`; `timeout` bounds each read in seconds, the call as a whole has its own."""
        if request_id := current_request_id():
            request.headers[REQUEST_ID_HEADER] = request_id
        return super().send(request, stream, timeout, verify, cert, proxies)


def session_by(adapter: UpstreamAdapter) -> requests.Session:
    """Return a session that sends everything by `adapter`."""
    session = requests.Session()
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    return session
