"""The chatroom and message routes; all of them need a token."""

from __future__ import annotations

from typing import Any

from flask import Response, jsonify, url_for

from chatapi.auth.tokens import current_user
from chatapi.chatrooms import cache, prompts, service
from chatapi.chatrooms.schemas import (
    ChatroomAnswerSchema,
    ChatroomDetailSchema,
    ChatroomListQuerySchema,
    ChatroomListSchema,
    ChatroomQuerySchema,
    CreateChatroomSchema,
    MessageAnswerSchema,
    SendMessageSchema,
    SentMessageSchema,
    UpdateChatroomSchema,
)
from chatapi.extensions import in_transaction
from chatapi.openapi import LOCATION_HEADER
from chatapi.parsing import ApiBlueprint
from chatapi.schemas import DoneSchema

blueprint = ApiBlueprint("chatrooms", __name__, url_prefix="/chatroom", description="Chatrooms and their messages")


@blueprint.post("")
@blueprint.arguments(CreateChatroomSchema, required=False)
@blueprint.response(201, ChatroomAnswerSchema, headers=LOCATION_HEADER)
def create_chatroom(body: dict[str, Any]) -> tuple[dict[str, Any], int, dict[str, str]]:
    """Open a chatroom"""
    chatroom = in_transaction(lambda: service.create_chatroom(current_user().id, **body))
    location = url_for("chatrooms.read_chatroom", chatroom_id=chatroom.id)
    return {"message": "Chatroom created", "chatroom": chatroom}, 201, {"Location": location}


@blueprint.get("")
@blueprint.arguments(ChatroomListQuerySchema, location="query")
@blueprint.response(200, ChatroomListSchema)
def list_chatrooms(query: dict[str, Any]) -> Response:
    """List the caller's chatrooms, the one with the newest message first

    The first page is cached for 300 seconds and still right after every change.
    """
    user = current_user()
    is_first = query["cursor"] is None
    page = cache.load_page(user.id, user.rooms_version, query["limit"]) if is_first else None
    if page is not None:
        return jsonify(**page, cached=True)
    page = ChatroomListSchema().dump(service.list_chatrooms(user.id, **query))
    if is_first:
        cache.store_page(user.id, user.rooms_version, query["limit"], page)
    return jsonify(**page, cached=False)


@blueprint.get("/<chatroom_id>")
@blueprint.arguments(ChatroomQuerySchema, location="query")
@blueprint.response(200, ChatroomDetailSchema)
@blueprint.problems(404)
def read_chatroom(query: dict[str, Any], chatroom_id: str) -> dict[str, Any]:
    """Read a chatroom with its newest messages

    Messages come in their order; `before` pages back.
    """
    room = service.find_chatroom(current_user().id, chatroom_id)
    page = service.list_messages(room, **query)
    return {"chatroom": {**service.fields_of(room), "messages": page.messages, "has_more": page.has_more}}


@blueprint.route("/<chatroom_id>", methods=["PUT", "PATCH"])
@blueprint.arguments(UpdateChatroomSchema, required=False)
@blueprint.response(200, ChatroomAnswerSchema)
@blueprint.problems(404)
def update_chatroom(body: dict[str, Any], chatroom_id: str) -> dict[str, Any]:
    """Change a chatroom

    Members that are not sent stay; null clears.
    """
    chatroom = in_transaction(lambda: service.update_chatroom(current_user().id, chatroom_id, body))
    return {"message": "Chatroom updated", "chatroom": chatroom}


@blueprint.delete("/<chatroom_id>")
@blueprint.response(200, DoneSchema)
@blueprint.problems(404)
def delete_chatroom(chatroom_id: str) -> dict[str, str]:
    """Delete a chatroom and all its messages"""
    in_transaction(lambda: service.delete_chatroom(current_user().id, chatroom_id))
    return {"message": "Chatroom deleted"}


@blueprint.post("/<chatroom_id>/message")
@blueprint.arguments(SendMessageSchema)
@blueprint.response(201, SentMessageSchema, headers=LOCATION_HEADER)
@blueprint.problems(404, 429)
def send_message(body: dict[str, Any], chatroom_id: str) -> tuple[dict[str, Any], int, dict[str, str]]:
    """Send a prompt

    The reply is pending; read it at `Location` until its status is final.
    """
    user = current_user()
    accepted = in_transaction(lambda: prompts.post_message(user.id, chatroom_id, body["content"]))
    prompts.ring_reply(accepted.ai_message.id)
    location = url_for("chatrooms.read_message", chatroom_id=chatroom_id, message_id=accepted.ai_message.id)
    answer = {
        "message": "Prompt accepted",
        "user_message": accepted.user_message,
        "ai_message": accepted.ai_message,
    }
    return answer, 201, {"Location": location}


@blueprint.get("/<chatroom_id>/message/<message_id>")
@blueprint.response(200, MessageAnswerSchema)
@blueprint.problems(404)
def read_message(chatroom_id: str, message_id: str) -> dict[str, Any]:
    """Read a message, such as a reply that is awaited"""
    room = service.find_chatroom(current_user().id, chatroom_id)
    return {"message": service.find_message(room, message_id)}
