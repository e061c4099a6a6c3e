"""The message routes: prompts sent, replies read, awaited, followed, stopped and made again. All need a token."""

from __future__ import annotations

import re
from typing import Any

from flask import Response, request, stream_with_context, url_for
from werkzeug.http import parse_list_header

from chatapi.auth.tokens import current_user
from chatapi.chatrooms import prompts, service, stops
from chatapi.chatrooms.follower import end_id
from chatapi.chatrooms.idempotency import (
    IdempotencyInProgressError,
    IdempotencyMismatchError,
    KeyedRequest,
    keyed_request,
)
from chatapi.chatrooms.models import Message
from chatapi.chatrooms.schemas import (
    MessageAnswerSchema,
    MessageSchema,
    PromptHeadersSchema,
    RegeneratedSchema,
    SendHeadersSchema,
    SendMessageSchema,
    SentMessageSchema,
    StreamHeadersSchema,
)
from chatapi.chatrooms.stream import stream_reply, wait_for_reply
from chatapi.errors import NotFoundError
from chatapi.openapi import LOCATION_HEADER
from chatapi.parsing import ApiBlueprint
from chatapi.quota import DailyLimitReachedError
from chatapi.schemas import NothingSchema

MAX_WAIT_SECONDS = 60

_WAIT = re.compile(r'wait\s*=\s*(?:([0-9]+)|"([0-9]+)")', re.ASCII | re.IGNORECASE)

STREAM_HEADERS = {
    "Cache-Control": "no-cache, no-transform",
    # Keeps nginx from collecting events, as others' own means do by the media type.
    "X-Accel-Buffering": "no",
}
ACCEPTED_HEADERS = {
    **LOCATION_HEADER,
    "Idempotent-Replayed": {"description": "`true` if this was accepted earlier", "schema": {"type": "string"}},
}
PROMPT_HEADERS = {
    **ACCEPTED_HEADERS,
    "Preference-Applied": {"description": "`wait=N` if the reply is finished", "schema": {"type": "string"}},
}
STREAM_EVENT = {
    "description": "One of the events",
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "event": {"type": "string", "enum": ["delta", "reset", "done", "stopped", "error"]},
        "data": {"type": "string", "description": "A JSON object", "contentMediaType": "application/json"},
    },
    "required": ["id", "event", "data"],
}

NO_CHATROOM, NO_MESSAGE = NotFoundError("Chatroom not found"), NotFoundError("Message not found")
TOO_BUSY = prompts.TooBusyError(retry_after=5)
NOT_ACCEPTED = (
    IdempotencyInProgressError(retry_after=1),
    IdempotencyMismatchError(),
    DailyLimitReachedError(
        extra={"daily_usage_count": 5, "limit": 5, "tier": "basic", "resets_at": "2026-11-23T00:00:00.000000Z"},
        retry_after=3600,
    ),
    prompts.TooManyInFlightError(retry_after=5),
    TOO_BUSY,
)
"""Why a prompt may be refused, or another reply to it."""

blueprint = ApiBlueprint("messages", __name__, url_prefix="/chatroom", description="Prompts and replies")


@blueprint.post("/<chatroom_id>/message")
@blueprint.arguments(SendMessageSchema)
@blueprint.arguments(PromptHeadersSchema, location="headers")
@blueprint.response(201, SentMessageSchema, headers=PROMPT_HEADERS)
@blueprint.problems(NO_CHATROOM, *NOT_ACCEPTED)
def send_message(
    body: dict[str, Any], preferences: dict[str, Any], chatroom_id: str
) -> tuple[dict[str, Any], int, dict[str, str]]:
    """Send a prompt

    The reply is pending; read it at `Location` until its status is final, follow its stream, or wait for it here with
    `Prefer: wait=N`.
    """
    user_id, keyed = current_user().id, _keyed(preferences, body)
    accepted = prompts.post_message(user_id, chatroom_id, body["content"], keyed)
    prompts.announce(accepted)
    headers, reply = _headers(chatroom_id, accepted), accepted.ai_message
    seconds = _wait_seconds(preferences["prefer"])
    if seconds:
        finished = reply if reply.is_final else wait_for_reply(reply.id, seconds)
        if finished is not None:
            reply = finished
            headers["Preference-Applied"] = f"wait={seconds}"
    answer = {"message": "Prompt accepted", "user_message": accepted.user_message, "ai_message": reply}
    return answer, 201, headers


@blueprint.get("/<chatroom_id>/message/<message_id>")
@blueprint.response(200, MessageAnswerSchema)
@blueprint.problems(NO_MESSAGE)
def read_message(chatroom_id: str, message_id: str) -> dict[str, Any]:
    """Read a message, such as a reply that is awaited"""
    return {"message": service.find_owned_message(current_user().id, chatroom_id, message_id)}


@blueprint.get("/<chatroom_id>/message/<message_id>/stream")
@blueprint.arguments(StreamHeadersSchema, location="headers")
@blueprint.response(200, STREAM_EVENT, content_type="text/event-stream", description="Server-sent events")
@blueprint.alt_response(204, description="The stream had ended, and you had all of it", success=True)
@blueprint.problems(NO_MESSAGE, prompts.NotAReplyError, TOO_BUSY)
def stream_message(position: dict[str, Any], chatroom_id: str, message_id: str) -> Response:
    """Follow a reply as it is written

    Server-sent events: `delta` with a piece of text; `reset` when a new attempt begins, and the text so far is void;
    then one of `done`, `stopped` and `error`, with the finished message. Come back with `Last-Event-ID`, and nothing
    is missed or repeated.
    """
    user, last_event_id = current_user(), position["last_event_id"]
    reply = service.find_owned_message(user.id, chatroom_id, message_id)
    if reply.is_final and last_event_id == end_id(reply.text_token):
        return Response(status=204)
    events, leave = stream_reply(reply, user.session_id, last_event_id, MessageSchema().dump)
    response = Response(stream_with_context(events), mimetype="text/event-stream", headers=STREAM_HEADERS)
    response.call_on_close(leave)
    return response


@blueprint.post("/<chatroom_id>/message/<message_id>/stop")
@blueprint.arguments(NothingSchema, required=False)
@blueprint.response(200, MessageAnswerSchema)
@blueprint.problems(NO_MESSAGE, prompts.NotAReplyError)
def stop_message(_body: dict[str, Any], chatroom_id: str, message_id: str) -> dict[str, Any]:
    """Stop a reply

    The answer has its final status: `stopped` with the text so far, or as it had ended already.
    """
    return {"message": stops.stop_reply(current_user().id, chatroom_id, message_id)}


@blueprint.post("/<chatroom_id>/message/<message_id>/regenerate")
@blueprint.arguments(NothingSchema, required=False)
@blueprint.arguments(SendHeadersSchema, location="headers")
@blueprint.response(201, RegeneratedSchema, headers=ACCEPTED_HEADERS)
@blueprint.problems(NO_MESSAGE, prompts.NotAReplyError, prompts.NotFinishedError, *NOT_ACCEPTED)
def regenerate_message(
    _body: dict[str, Any], preferences: dict[str, Any], chatroom_id: str, message_id: str
) -> tuple[dict[str, Any], int, dict[str, str]]:
    """Ask for another reply to the same prompt

    It is made from what preceded the prompt, and counts as one prompt.
    """
    user_id, keyed = current_user().id, _keyed(preferences, None)
    accepted = prompts.regenerate(user_id, chatroom_id, message_id, keyed)
    prompts.announce(accepted)
    return {"message": "Prompt accepted", "ai_message": accepted.ai_message}, 201, _headers(chatroom_id, accepted)


def _keyed(headers: dict[str, Any], body: Any) -> KeyedRequest | None:
    return keyed_request(headers["idempotency_key"], request.method, request.path.lower(), body)


def _headers(chatroom_id: str, accepted: prompts.AcceptedPrompt) -> dict[str, str]:
    reply: Message = accepted.ai_message
    location = url_for("messages.read_message", chatroom_id=chatroom_id, message_id=reply.id)
    return {"Location": location, **({"Idempotent-Replayed": "true"} if accepted.is_replay else {})}


def _wait_seconds(prefer: str) -> int:
    """Return what `Prefer: wait=N` asks for, at most a minute; 0 without it. The first counts (RFC 7240, 2)."""
    for preference in parse_list_header(prefer):
        found = _WAIT.fullmatch(preference.split(";")[0].strip())
        if found:
            digits = (found[1] or found[2]).lstrip("0")
            return min(int(digits[:3] or 0), MAX_WAIT_SECONDS)
    return 0
