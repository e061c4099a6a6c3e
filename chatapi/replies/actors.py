"""The Dramatiq actors that answer prompts and title rooms."""

from __future__ import annotations

from uuid import UUID

from flask import Flask

from chatapi.broker import QueueBroker, declare_actor
from chatapi.chatrooms.prompts import GENERATE_REPLY, REPLIES_QUEUE
from chatapi.replies.gemini.factory import make_client
from chatapi.replies.generate import ReplyMaker
from chatapi.replies.leases import LeaseKeeper
from chatapi.replies.publisher import Publisher
from chatapi.replies.titles import TITLE_ROOM, TITLES_QUEUE, title_room


def declare_actors(app: Flask, broker: QueueBroker) -> None:
    """Tell `broker` how replies and titles are made. Only the worker does: this imports the Gemini SDK."""
    client = make_client(app.config)
    keeper = LeaseKeeper(app, most_seconds=app.config["REPLY_ATTEMPT_SECONDS"])
    maker = ReplyMaker(client, keeper, Publisher(app))

    def title(room_id: UUID) -> None:
        title_room(room_id, client)

    declare_actor(broker, GENERATE_REPLY, REPLIES_QUEUE, maker.generate_reply)
    declare_actor(broker, TITLE_ROOM, TITLES_QUEUE, title)
