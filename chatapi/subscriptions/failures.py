"""Why something could not be done at Stripe, in one word."""

from __future__ import annotations

import structlog
from sqlalchemy.exc import SQLAlchemyError

from chatapi.errors import ChatAPIError, log_database_error
from chatapi.subscriptions.gateway import CustomerMissingError, frames_of

log = structlog.get_logger(__name__)


def reason_of(error: Exception, **about: str) -> str:
    """Return the word for an error. One that nobody expects is logged, with what it was `about`.

    It is logged without its text, which may quote what Stripe has sent.
    """
    if isinstance(error, CustomerMissingError):
        return error.reason
    if isinstance(error, ChatAPIError):
        return error.slug
    if isinstance(error, SQLAlchemyError):
        log_database_error(error)
        return "database_unavailable"
    log.error("billing_broken", reason=type(error).__name__, where=frames_of(error), **about)
    return "unexpected_error"
