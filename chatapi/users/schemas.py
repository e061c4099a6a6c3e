"""What goes in and out of the user routes."""

from __future__ import annotations

from marshmallow import fields

from chatapi.auth.schemas import UserSchema
from chatapi.schemas import ApiSchema, Email, Name, Timestamp


class UserStatsSchema(ApiSchema):
    """What the account holds."""

    chatroom_count = fields.Integer(required=True)
    message_count = fields.Integer(required=True)


class ProfileSchema(UserSchema):
    """An account with what it holds and has used."""

    subscription_status = fields.String(
        required=True,
        allow_none=True,
        metadata={"description": "Stripe's word, null if there never was a subscription"},
    )
    daily_usage_count = fields.Integer(required=True)
    stats = fields.Nested(UserStatsSchema, required=True)


class ProfileAnswerSchema(ApiSchema):
    """The caller's account."""

    user = fields.Nested(ProfileSchema, required=True)


class UpdateProfileSchema(ApiSchema):
    """What is to change; null clears."""

    name = Name(shortest=1, longest=100, trim=True, allow_none=True)
    email = Email(allow_none=True)


class UpdatedProfileSchema(ProfileAnswerSchema):
    """The caller's account after the change."""

    message = fields.String(required=True)


class ExportedUserSchema(ProfileSchema):
    """The account, and what else is known of it."""

    has_password = fields.Boolean(required=True)
    verified_at = Timestamp(required=True, allow_none=True)


class ExportSchema(ApiSchema):
    """Everything held about a user; rooms hold their messages, oldest first."""

    exported_at = Timestamp(required=True)
    user = fields.Nested(ExportedUserSchema, required=True)
    sessions = fields.List(fields.Dict(), required=True)
    daily_usage = fields.List(fields.Dict(), required=True)
    codes = fields.List(
        fields.Dict(), required=True, metadata={"description": "Codes that wait, but not what they are"}
    )
    sign_in_limits = fields.List(
        fields.Dict(),
        required=True,
        metadata={"description": "When something was counted that is limited for the number"},
    )
    idempotency_keys = fields.List(fields.Dict(), required=True)
    audit = fields.List(fields.Dict(), required=True, metadata={"description": "What operators did to the account"})
    billing = fields.List(fields.Dict(), required=True, metadata={"description": "The customer at Stripe, if any"})
    subscriptions = fields.List(fields.Dict(), required=True)
    stripe_events = fields.List(
        fields.Dict(), required=True, metadata={"description": "What Stripe has told of the customer, for 90 days"}
    )
    chatrooms = fields.List(fields.Dict(), required=True)
