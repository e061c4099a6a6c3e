"""The chatroom routes; all of them need a token."""

from __future__ import annotations

from typing import Any

from flask import Response, current_app, url_for

from chatapi.auth.tokens import current_user
from chatapi.chatrooms import cache, export, search, service
from chatapi.chatrooms.live import live_replies
from chatapi.chatrooms.schemas import (
    ChatroomAnswerSchema,
    ChatroomDetailSchema,
    ChatroomListQuerySchema,
    ChatroomListSchema,
    ChatroomQuerySchema,
    ChatroomSchema,
    CreateChatroomSchema,
    ExportedChatroomSchema,
    ExportQuerySchema,
    MessageSchema,
    UpdateChatroomSchema,
)
from chatapi.errors import NotFoundError
from chatapi.exports import REFUSALS as EXPORT_REFUSALS
from chatapi.exports import send_export
from chatapi.extensions import in_transaction
from chatapi.openapi import LOCATION_HEADER
from chatapi.parsing import ApiBlueprint
from chatapi.schemas import DoneSchema

NO_CHATROOM = NotFoundError("Chatroom not found")
MODEL_NOT_IN_PLAN = service.ModelNotInPlanError("The model smart is for Pro only; GET /models says which are yours")

_show_page = ChatroomListSchema().dump

blueprint = ApiBlueprint("chatrooms", __name__, url_prefix="/chatroom", description="Chatrooms and their messages")


@blueprint.post("")
@blueprint.arguments(CreateChatroomSchema, required=False)
@blueprint.response(201, ChatroomAnswerSchema, headers=LOCATION_HEADER)
@blueprint.problems(MODEL_NOT_IN_PLAN)
def create_chatroom(body: dict[str, Any]) -> tuple[dict[str, Any], int, dict[str, str]]:
    """Open a chatroom"""
    user = current_user()
    service.check_model(body.get("model"), is_pro=user.is_pro)
    chatroom = in_transaction(lambda: service.create_chatroom(user.id, **body))
    location = url_for("chatrooms.read_chatroom", chatroom_id=chatroom.id)
    return {"message": "Chatroom created", "chatroom": chatroom}, 201, {"Location": location}


@blueprint.get("")
@blueprint.arguments(ChatroomListQuerySchema, location="query")
@blueprint.response(200, ChatroomListSchema)
def list_chatrooms(query: dict[str, Any]) -> Response:
    """List the caller's chatrooms, the one with the newest message first

    The first page is cached for 300 seconds and still right after every change. With `q`, those that match, the best
    first: as in a web search, by words, "phrases", or, and -not, in title, description or any message.
    """
    user, q = current_user(), query.pop("q")
    if q is not None:
        return _page_answer(_page(search.search_chatrooms(user.id, q, **query)), is_cached=False)
    is_first = query["cursor"] is None
    page = cache.load_page(user.id, user.rooms_version, query["limit"]) if is_first else None
    if page is not None:
        return _page_answer(page, is_cached=True)
    page = _page(service.list_chatrooms(user.id, **query))
    if is_first:
        cache.store_page(user.id, user.rooms_version, query["limit"], page)
    return _page_answer(page, is_cached=False)


def _page(found: Any) -> str:
    return current_app.json.dumps(_show_page(found), separators=(",", ":"), sort_keys=False)


def _page_answer(page: str, *, is_cached: bool) -> Response:
    """Return a page with the word on whether it was cached."""
    return Response(f'{page[:-1]},"cached":{"true" if is_cached else "false"}}}\n', mimetype="application/json")


@blueprint.get("/<chatroom_id>")
@blueprint.arguments(ChatroomQuerySchema, location="query")
@blueprint.response(200, ChatroomDetailSchema)
@blueprint.problems(NO_CHATROOM)
def read_chatroom(query: dict[str, Any], chatroom_id: str) -> dict[str, Any]:
    """Read a chatroom with its newest messages

    Messages come in their order; `before` pages back.
    """
    return {"chatroom": service.read_chatroom(current_user().id, chatroom_id, **query)}


@blueprint.get("/<chatroom_id>/export")
@blueprint.arguments(ExportQuerySchema, location="query")
@blueprint.response(200, ExportedChatroomSchema, description="A file in the format that was asked for")
@blueprint.alt_response(200, schema={"type": "string"}, content_type="text/markdown", success=True)
@blueprint.problems(
    NO_CHATROOM,
    *EXPORT_REFUSALS,
)
def export_chatroom(query: dict[str, Any], chatroom_id: str) -> Response:
    """Export a chatroom with all its messages

    One document, JSON or Markdown, streamed; one export at a time.
    """
    user_id = current_user().id
    room = in_transaction(lambda: service.find_chatroom(user_id, chatroom_id))
    show = MessageSchema().dump
    form = export.EXPORT_FORMATS[query["format"]]
    document = form.write(ChatroomSchema().dump(room), map(show, export.read_messages(room.id)))
    return send_export(user_id, document, form.mimetype, f"chatroom-{room.id}.{form.extension}")


@blueprint.route("/<chatroom_id>", methods=["PUT", "PATCH"])
@blueprint.arguments(UpdateChatroomSchema, required=False)
@blueprint.response(200, ChatroomAnswerSchema)
@blueprint.problems(MODEL_NOT_IN_PLAN, NO_CHATROOM)
def update_chatroom(body: dict[str, Any], chatroom_id: str) -> dict[str, Any]:
    """Change a chatroom

    Members that are not sent stay; null clears.
    """
    user = current_user()
    service.check_model(body.get("model"), is_pro=user.is_pro)
    chatroom = in_transaction(lambda: service.update_chatroom(user.id, chatroom_id, body))
    return {"message": "Chatroom updated", "chatroom": chatroom}


@blueprint.delete("/<chatroom_id>")
@blueprint.response(200, DoneSchema)
@blueprint.problems(NO_CHATROOM)
def delete_chatroom(chatroom_id: str) -> dict[str, str]:
    """Delete a chatroom and all its messages"""
    gone = in_transaction(lambda: service.delete_chatroom(current_user().id, chatroom_id))
    for reply_id in gone:
        live_replies().announce_end(reply_id)
    return {"message": "Chatroom deleted"}
