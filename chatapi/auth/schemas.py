"""What goes in and out of the auth routes."""

from __future__ import annotations

from marshmallow import fields, validate

from chatapi.auth.otp import OTP_TTL_SECONDS
from chatapi.schemas import ApiSchema, Email, MobileNumber, Name, Text, Timestamp


class UserSchema(ApiSchema):
    """An account as its owner sees it."""

    id = fields.UUID(required=True)
    mobile_number = fields.String(required=True, metadata={"example": "+15551234567"})
    name = fields.String(required=True, allow_none=True)
    email = fields.String(required=True, allow_none=True)
    subscription_tier = fields.String(required=True, validate=validate.OneOf(["basic", "pro"]))
    created_at = Timestamp(required=True)


class SignupRequestSchema(ApiSchema):
    """A sign-up."""

    mobile_number = MobileNumber(required=True, metadata={"example": "+15551234567"})
    name = Name(shortest=1, longest=100, trim=True, load_default=None, allow_none=True)
    email = Email(load_default=None, allow_none=True)
    password = Text(shortest=8, longest=128, load_default=None, allow_none=True, load_only=True)


class SignupSchema(ApiSchema):
    """The noted sign-up; its token goes into verify-otp."""

    message = fields.String(required=True)
    user = fields.Nested(UserSchema, required=True)
    signup_token = fields.String(required=True)


class OtpRequestSchema(ApiSchema):
    """A wish for a code."""

    mobile_number = MobileNumber(required=True, metadata={"example": "+15551234567"})
    purpose = fields.String(load_default="login", validate=validate.OneOf(["login", "verification", "password_reset"]))


class OtpSchema(ApiSchema):
    """A code is on its way; `otp` is there only when delivery is `echo`."""

    message = fields.String(required=True)
    mobile_number = fields.String(required=True)
    purpose = fields.String(required=True)
    expires_in = fields.Integer(required=True, metadata={"example": OTP_TTL_SECONDS})
    otp = fields.String()


class VerifyOtpSchema(ApiSchema):
    """A code, brought back."""

    mobile_number = MobileNumber(required=True, metadata={"example": "+15551234567"})
    otp = fields.String(
        required=True,
        # The length too, as `$` lets a newline follow; the pattern alone is what the OpenAPI document shows.
        validate=[validate.Length(equal=6), validate.Regexp(r"^[0-9]{6}$", error="Must be six digits.")],
        metadata={"example": "123456"},
    )
    purpose = fields.String(load_default="login", validate=validate.OneOf(["login", "verification"]))
    signup_token = Text(shortest=1, longest=200, load_default=None, allow_none=True)


class SessionSchema(ApiSchema):
    """A session: the access token goes into `Authorization: Bearer …`."""

    message = fields.String(required=True)
    token = fields.String(required=True)
    refresh_token = fields.String(required=True)
    token_type = fields.String(required=True, metadata={"example": "Bearer"})
    expires_in = fields.Integer(required=True, metadata={"description": "Life of the token, seconds"})
    user = fields.Nested(UserSchema, required=True)
