"""What goes in and out of the chatroom and message routes."""

from __future__ import annotations

from typing import Any

from marshmallow import fields, post_dump, validate

from chatapi.schemas import ApiSchema, Name, QueryCount, Text, Timestamp

MAX_CONTENT_LENGTH = 5000


class CreateChatroomSchema(ApiSchema):
    """A new chatroom; everything has a default."""

    title = Name(shortest=1, longest=200, trim=True, allow_none=True)
    description = Text(longest=1000, allow_none=True)
    system_instruction = Text(longest=4000, allow_none=True)


class UpdateChatroomSchema(CreateChatroomSchema):
    """What is to change; null clears."""


class ChatroomSchema(ApiSchema):
    """A chatroom."""

    id = fields.UUID(required=True)
    title = fields.String(required=True, allow_none=True)
    description = fields.String(required=True, allow_none=True)
    system_instruction = fields.String(required=True, allow_none=True)
    model = fields.String(required=True, allow_none=True)
    created_at = Timestamp(required=True)
    updated_at = Timestamp(required=True)
    message_count = fields.Integer(required=True)
    last_message_at = Timestamp(required=True, allow_none=True)


class UsageSchema(ApiSchema):
    """Tokens that the model counted."""

    prompt_tokens = fields.Integer(required=True, allow_none=True)
    output_tokens = fields.Integer(required=True, allow_none=True)


class MessageSchema(ApiSchema):
    """A prompt or a reply; `error`, `model` and `usage` are there only when there is something to say."""

    id = fields.UUID(required=True)
    content = fields.String(required=True)
    message_type = fields.String(required=True, validate=validate.OneOf(["user", "ai"]))
    status = fields.String(
        required=True, validate=validate.OneOf(["pending", "processing", "completed", "failed", "stopped"])
    )
    reply_to = fields.UUID(required=True, allow_none=True)
    error = fields.String()
    model = fields.String()
    usage = fields.Nested(UsageSchema)
    created_at = Timestamp(required=True)
    updated_at = Timestamp(required=True)

    @post_dump
    def drop_absent(self, shown: dict[str, Any], **_options: Any) -> dict[str, Any]:
        """Leave out the optional members that are null."""
        for name in ("error", "model", "usage"):
            if shown.get(name) is None:
                shown.pop(name, None)
        return shown


class ChatroomAnswerSchema(ApiSchema):
    """A chatroom, made or changed."""

    message = fields.String(required=True)
    chatroom = fields.Nested(ChatroomSchema, required=True)


class ChatroomListQuerySchema(ApiSchema):
    """Which page of the list."""

    limit = QueryCount(most=100, default=50)
    cursor = fields.String(load_default=None)


class ChatroomListSchema(ApiSchema):
    """A page of the caller's chatrooms, the one with the newest message first."""

    chatrooms = fields.List(fields.Nested(ChatroomSchema), required=True)
    cached = fields.Boolean(required=True)
    next_cursor = fields.String(required=True, allow_none=True)


class ChatroomQuerySchema(ApiSchema):
    """Which page of the messages."""

    limit = QueryCount(most=200, default=50)
    before = fields.String(load_default=None, metadata={"description": "Messages before the one with this id"})


class ChatroomWithMessagesSchema(ChatroomSchema):
    """A chatroom with a page of its messages, oldest first."""

    messages = fields.List(fields.Nested(MessageSchema), required=True)
    has_more = fields.Boolean(required=True, metadata={"description": "Whether there are older ones"})


class ChatroomDetailSchema(ApiSchema):
    """A chatroom, opened."""

    chatroom = fields.Nested(ChatroomWithMessagesSchema, required=True)


class SendMessageSchema(ApiSchema):
    """A prompt."""

    content = Text(shortest=1, longest=MAX_CONTENT_LENGTH, trim=True, required=True)


class SentMessageSchema(ApiSchema):
    """The accepted prompt, and the reply that is on its way."""

    message = fields.String(required=True)
    user_message = fields.Nested(MessageSchema, required=True)
    ai_message = fields.Nested(MessageSchema, required=True)


class MessageAnswerSchema(ApiSchema):
    """A message."""

    message = fields.Nested(MessageSchema, required=True)
