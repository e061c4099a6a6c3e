"""The id of the request that work is done for: bound once, carried from process to process, sent on to providers.

It is in every log line of a thread from when it is bound. Between processes it is kept in PostgreSQL beside the work
itself, as messages in Redis may be lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import structlog

REQUEST_ID_HEADER = "X-Request-ID"


def current_request_id() -> str | None:
    """Return the id of the request that this thread works for, None when nobody asked for what it does."""
    return cast("str | None", structlog.contextvars.get_contextvars().get("request_id"))


def continue_request(request_id: str | None) -> None:
    """Have this thread go on with what a request began elsewhere; None when it is not known which.

    It holds until the thread turns to other work, and so also for what is logged when this work fails.
    """
    if request_id is None:
        structlog.contextvars.unbind_contextvars("request_id")
    else:
        structlog.contextvars.bind_contextvars(request_id=request_id)


@contextmanager
def on_behalf_of(request_id: str | None) -> Iterator[None]:
    """Name within the block whose work this is, where one thread sees to that of many.

    A request that is being served keeps its own id, and the other stands beside it: who stops a reply is one request,
    who asked for it another.
    """
    current = current_request_id()
    if request_id is None or request_id == current:
        yield
        return
    name = "request_id" if current is None else "prompt_request_id"
    with structlog.contextvars.bound_contextvars(**{name: request_id}):
        yield
