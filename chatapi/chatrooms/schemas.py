"""What goes in and out of the chatroom and message routes."""

from __future__ import annotations

from typing import Any

from marshmallow import ValidationError, fields, validate

from chatapi.catalogue import TIERS, catalogue
from chatapi.schemas import ApiSchema, Name, QueryCount, Text, Timestamp

MAX_CONTENT_LENGTH = 5000


def _check_alias(alias: str) -> None:
    if catalogue().find(alias) is None:
        raise ValidationError("Not the alias of a model: GET /models lists them.")


class AnsweringModel(fields.String):
    """The alias of the model that answers in a room: the room's own while there is such a model, else the default's."""

    def _serialize(self, value: str | None, attr: str | None, obj: Any, **kwargs: Any) -> str:  # noqa: ARG002
        models = catalogue()
        return (models.find(value) or models.default).alias


class CreateChatroomSchema(ApiSchema):
    """A new chatroom; everything has a default."""

    title = Name(shortest=1, longest=200, trim=True, allow_none=True)
    description = Text(longest=1000, allow_none=True)
    system_instruction = Text(longest=4000, allow_none=True)
    model = fields.String(
        allow_none=True,
        validate=_check_alias,
        metadata={"description": "An alias from GET /models; null is the default"},
    )


class UpdateChatroomSchema(CreateChatroomSchema):
    """What is to change; null clears."""


class ChatroomSchema(ApiSchema):
    """A chatroom."""

    id = fields.UUID(required=True)
    title = fields.String(required=True, allow_none=True)
    description = fields.String(required=True, allow_none=True)
    system_instruction = fields.String(required=True, allow_none=True)
    model = AnsweringModel(required=True, metadata={"description": "The alias of the model that answers"})
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

    LEFT_OUT_WHEN_NULL = frozenset({"error", "model", "usage"})

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


class ChatroomAnswerSchema(ApiSchema):
    """A chatroom, made or changed."""

    message = fields.String(required=True)
    chatroom = fields.Nested(ChatroomSchema, required=True)


class ChatroomListQuerySchema(ApiSchema):
    """Which page of the list, or of what is found."""

    limit = QueryCount(most=100, default=50)
    cursor = fields.String(
        load_default=None, metadata={"description": "The `next_cursor` of the page before; without it, the first"}
    )
    q = Text(
        shortest=1,
        longest=200,
        trim=True,
        load_default=None,
        metadata={"description": 'What to search for: words, "phrases", or, -not'},
    )


class ListedChatroomSchema(ChatroomSchema):
    """A chatroom in a list; `snippet` is there only with `q`."""

    snippet = fields.String(metadata={"description": "With `q`: a piece of plain text from the best match"})


class ChatroomListSchema(ApiSchema):
    """A page of the caller's chatrooms: the one with the newest message first, with `q` the best match."""

    chatrooms = fields.List(fields.Nested(ListedChatroomSchema), required=True)
    cached = fields.Boolean(required=True)
    next_cursor = fields.String(required=True, allow_none=True)


class ExportQuerySchema(ApiSchema):
    """What to write."""

    format = fields.String(
        load_default="json",
        validate=validate.OneOf(["json", "markdown"]),
        metadata={"description": "What to write it as"},
    )


class ExportedChatroomSchema(ApiSchema):
    """A chatroom with all its messages, oldest first."""

    exported_at = Timestamp(required=True)
    chatroom = fields.Nested(ChatroomSchema, required=True)
    messages = fields.Nested(MessageSchema, many=True, required=True)


class ChatroomQuerySchema(ApiSchema):
    """Which page of the messages."""

    limit = QueryCount(most=200, default=50)
    before = fields.String(load_default=None, metadata={"description": "Messages before the one with this id"})


class ChatroomWithMessagesSchema(ChatroomSchema):
    """A chatroom with a page of its messages, oldest first."""

    messages = fields.Nested(MessageSchema, many=True, required=True)
    has_more = fields.Boolean(required=True, metadata={"description": "Whether there are older ones"})


class ChatroomDetailSchema(ApiSchema):
    """A chatroom, opened."""

    chatroom = fields.Nested(ChatroomWithMessagesSchema, required=True)


class SendMessageSchema(ApiSchema):
    """A prompt."""

    content = Text(shortest=1, longest=MAX_CONTENT_LENGTH, trim=True, required=True)


class SendHeadersSchema(ApiSchema):
    """Headers of a request that is accepted once, however often it is sent."""

    idempotency_key = fields.String(
        data_key="Idempotency-Key",
        load_default=None,
        validate=validate.Regexp(r"^[ -~]{1,255}$", error="Must be 1 to 255 printable ASCII characters."),
        metadata={"description": "The same key with the same request is accepted once within 24 hours"},
    )


class PromptHeadersSchema(SendHeadersSchema):
    """Headers of a prompt."""

    prefer = fields.String(
        data_key="Prefer",
        load_default="",
        metadata={"description": "`wait=N` waits up to N seconds (60 at most) for the reply (RFC 7240)"},
    )


class StreamHeadersSchema(ApiSchema):
    """Where to go on."""

    last_event_id = fields.String(
        data_key="Last-Event-ID",
        load_default=None,
        metadata={"description": "The id of the last event that arrived; the stream goes on behind it"},
    )


class SentMessageSchema(ApiSchema):
    """The accepted prompt, and the reply that is on its way."""

    message = fields.String(required=True)
    user_message = fields.Nested(MessageSchema, required=True)
    ai_message = fields.Nested(MessageSchema, required=True)


class RegeneratedSchema(ApiSchema):
    """The new reply to an earlier prompt, on its way."""

    message = fields.String(required=True)
    ai_message = fields.Nested(MessageSchema, required=True)


class ModelSchema(ApiSchema):
    """A model that a chatroom can name."""

    alias = fields.String(required=True)
    description = fields.String(required=True)
    tiers = fields.List(
        fields.String(validate=validate.OneOf(TIERS)), required=True, metadata={"description": "Who may use it"}
    )
    default = fields.Boolean(required=True, metadata={"description": "Whether it answers where none is named"})


class ModelListSchema(ApiSchema):
    """The models there are."""

    models = fields.List(fields.Nested(ModelSchema), required=True)


class MessageAnswerSchema(ApiSchema):
    """A message."""

    message = fields.Nested(MessageSchema, required=True)
