"""Why something could not be done at Stripe, in one word."""

from __future__ import annotations

import traceback

import structlog

from chatapi.errors import ChatAPIError
from chatapi.subscriptions.gateway import CustomerMissingError

log = structlog.get_logger(__name__)


def reason_of(error: Exception, **about: str) -> str:
    """Return the word for an error. One that nobody expects is logged, with what it was `about`.

    It is logged without its text, which may quote what Stripe has sent.
    """
    if isinstance(error, CustomerMissingError):
        return error.reason
    if isinstance(error, ChatAPIError):
        return error.slug
    where = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]
    log.error("billing_broken", reason=type(error).__name__, where=where, **about)
    return "unexpected_error"
