"""The Dramatiq actors. Messages carry ids only, and every actor is safe to run twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import dramatiq
from flask import Flask
from sqlalchemy.exc import SQLAlchemyError

from chatapi.auth.delivery import CHORES_QUEUE, DELIVER_OTP, deliver_otp
from chatapi.broker import QueueBroker
from chatapi.chatrooms.prompts import GENERATE_REPLY, REPLIES_QUEUE
from chatapi.errors import log_database_error
from chatapi.replies.gemini.generativeai import GenerativeAIClient
from chatapi.replies.generate import generate_reply
from chatapi.replies.leases import LeaseKeeper


@contextmanager
def _database_errors_logged() -> Iterator[None]:
    """Log failures of the database by our own rules; Dramatiq would log their messages, which quote values.

    What failed is still in PostgreSQL, and the sweeper rings for it again.
    """
    try:
        yield
    except SQLAlchemyError as error:
        log_database_error(error)


def declare_actors(app: Flask, broker: QueueBroker) -> None:
    """Tell `broker` what its messages ask for. Only worker processes do: this imports the Gemini SDK."""
    client = GenerativeAIClient(
        api_key=app.config["GEMINI_API_KEY"],
        endpoint=app.config["GEMINI_API_ENDPOINT"],
        timeout_seconds=app.config["GEMINI_TIMEOUT_SECONDS"],
        pool_size=app.config["WORKER_THREADS"],
    )
    keeper = LeaseKeeper(app, most_seconds=app.config["REPLY_ATTEMPT_SECONDS"])

    def on_reply(message_id: str) -> None:
        with _database_errors_logged():
            generate_reply(UUID(message_id), client, keeper)

    def on_delivery(outbox_id: str) -> None:
        with _database_errors_logged():
            deliver_otp(UUID(outbox_id))

    dramatiq.actor(actor_name=GENERATE_REPLY, queue_name=REPLIES_QUEUE, broker=broker)(on_reply)
    dramatiq.actor(actor_name=DELIVER_OTP, queue_name=CHORES_QUEUE, broker=broker)(on_delivery)
