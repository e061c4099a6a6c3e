"""What goes in and out of the auth routes."""

from __future__ import annotations

from typing import Any

from marshmallow import fields, validate

from chatapi.auth.otp import OTP_TTL_SECONDS
from chatapi.schemas import ApiSchema, Email, Flag, MobileNumber, Name, Text, Timestamp

MIN_PASSWORD_LENGTH = 8
MAX_PASSWORD_LENGTH = 128


class Otp(fields.String):
    """A one-time code: six ASCII digits."""

    def __init__(self, **kwargs: Any) -> None:
        # The length too, as `$` lets a newline follow; the pattern alone is what the OpenAPI document shows.
        six_digits = [validate.Length(equal=6), validate.Regexp(r"^[0-9]{6}$", error="Must be six digits.")]
        super().__init__(validate=six_digits, metadata={"example": "123456"}, **kwargs)


class Password(Text):
    """A password to be set, 8 to 128 characters; nothing is asked of what they are (ASVS 5.0, 6.2.1 and 6.2.5)."""

    def __init__(self, **kwargs: Any) -> None:
        shown = {"example": "a lantern over the harbour"}
        super().__init__(
            shortest=MIN_PASSWORD_LENGTH, longest=MAX_PASSWORD_LENGTH, load_only=True, metadata=shown, **kwargs
        )


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

    mobile_number = MobileNumber(required=True)
    name = Name(shortest=1, longest=100, trim=True, load_default=None, allow_none=True)
    email = Email(load_default=None, allow_none=True)
    password = Password(load_default=None, allow_none=True)


class SignupSchema(ApiSchema):
    """The noted sign-up; its token goes into verify-otp."""

    message = fields.String(required=True)
    user = fields.Nested(UserSchema, required=True)
    signup_token = fields.String(required=True)


class OtpRequestSchema(ApiSchema):
    """A wish for a code."""

    mobile_number = MobileNumber(required=True)
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

    mobile_number = MobileNumber(required=True)
    otp = Otp(required=True)
    purpose = fields.String(load_default="login", validate=validate.OneOf(["login", "verification"]))
    signup_token = Text(shortest=1, longest=200, load_default=None, allow_none=True)


class LoginSchema(ApiSchema):
    """A number and its password."""

    mobile_number = MobileNumber(required=True)
    password = Text(shortest=1, longest=MAX_PASSWORD_LENGTH, required=True, load_only=True)


class ForgotPasswordSchema(ApiSchema):
    """Whose password is forgotten."""

    mobile_number = MobileNumber(required=True)


class ResetPasswordSchema(ApiSchema):
    """A code of purpose `password_reset`, brought back with a new password."""

    mobile_number = MobileNumber(required=True)
    otp = Otp(required=True)
    new_password = Password(required=True)


class ChangePasswordSchema(ApiSchema):
    """A new password, and the current one if there is one."""

    current_password = Text(shortest=1, longest=MAX_PASSWORD_LENGTH, load_default=None, allow_none=True, load_only=True)
    new_password = Password(required=True)


class RefreshSchema(ApiSchema):
    """A refresh token, brought back."""

    # Long enough for an access token, so that whoever mixes them up is told what is wrong.
    refresh_token = Text(shortest=1, longest=4096, required=True)


class LogoutSchema(ApiSchema):
    """Whether all sessions of the user end, or this one only."""

    all = Flag(load_default=False)


class TokensSchema(ApiSchema):
    """New tokens: the access token goes into `Authorization: Bearer …`, the refresh token into the next refresh."""

    token = fields.String(required=True)
    refresh_token = fields.String(required=True)
    token_type = fields.String(required=True, metadata={"example": "Bearer"})
    expires_in = fields.Integer(required=True, metadata={"description": "Life of the token, seconds"})


class SessionSchema(TokensSchema):
    """A session that has begun."""

    message = fields.String(required=True)
    user = fields.Nested(UserSchema, required=True)
