"""The Dramatiq actor that answers prompts."""

from __future__ import annotations

from uuid import UUID

from flask import Flask

from chatapi.broker import QueueBroker, declare_actor
from chatapi.chatrooms.prompts import GENERATE_REPLY, REPLIES_QUEUE
from chatapi.replies.gemini.generativeai import GenerativeAIClient
from chatapi.replies.generate import generate_reply
from chatapi.replies.leases import LeaseKeeper


def declare_actors(app: Flask, broker: QueueBroker) -> None:
    """Tell `broker` how replies are made. Only the worker does: this imports the Gemini SDK."""
    client = GenerativeAIClient(
        api_key=app.config["GEMINI_API_KEY"],
        endpoint=app.config["GEMINI_API_ENDPOINT"],
        timeout_seconds=app.config["GEMINI_TIMEOUT_SECONDS"],
        pool_size=app.config["WORKER_THREADS"],
    )
    keeper = LeaseKeeper(app, most_seconds=app.config["REPLY_ATTEMPT_SECONDS"])

    def answer(message_id: UUID) -> None:
        generate_reply(message_id, client, keeper)

    declare_actor(broker, GENERATE_REPLY, REPLIES_QUEUE, answer)
