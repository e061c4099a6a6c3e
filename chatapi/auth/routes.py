"""The public sign-in routes."""

from __future__ import annotations

from typing import Any

from flask import g, request

from chatapi.auth import credentials, limits, service
from chatapi.auth.delivery import ring_delivery
from chatapi.auth.models import User
from chatapi.auth.otp import OTP_TTL_SECONDS, Purpose
from chatapi.auth.passwords import hash_password
from chatapi.auth.schemas import (
    ForgotPasswordSchema,
    LoginSchema,
    OtpRequestSchema,
    OtpSchema,
    RefreshSchema,
    ResetPasswordSchema,
    SessionSchema,
    SignupRequestSchema,
    SignupSchema,
    TokensSchema,
    VerifyOtpSchema,
)
from chatapi.auth.sessions import InvalidRefreshTokenError, Tokens, open_session, rotate
from chatapi.errors import ChatAPIError, RateLimitedError
from chatapi.extensions import in_transaction
from chatapi.parsing import ApiBlueprint
from chatapi.schemas import DoneSchema

blueprint = ApiBlueprint("auth", __name__, url_prefix="/auth", description="Signing up and signing in")

NOT_LIMITED_BY_ADDRESS = {"auth.refresh"}
"""A refresh token cannot be guessed, and many clients behind one address refresh all day."""
SENDS_CODES = {"auth.send_otp", "auth.forgot_password"}
TRIED_TOO_OFTEN = RateLimitedError(retry_after=900)


@blueprint.before_request
def limit_address() -> None:
    """Count the request to its address; see `AUTH_IP_LIMIT`."""
    if request.method == "OPTIONS" or request.endpoint in NOT_LIMITED_BY_ADDRESS:
        return
    is_for_code = request.endpoint in SENDS_CODES
    limits.take_for_network(g.network, limits.OtpRateLimitedError if is_for_code else RateLimitedError)


@blueprint.post("/signup")
@blueprint.arguments(SignupRequestSchema)
@blueprint.response(201, SignupSchema)
@blueprint.problems(service.AlreadyRegisteredError, TRIED_TOO_OFTEN)
def sign_up(body: dict[str, Any]) -> dict[str, Any]:
    """Sign up with a mobile number

    E-mail and password become the account's when verify-otp brings the `signup_token`.
    """
    password, number = body.pop("password"), body["mobile_number"]
    if password is not None:
        credentials.require_good_password("password", password, number)
    password_hash = None if password is None else hash_password(password)
    noted = in_transaction(lambda: service.sign_up(**body, password_hash=password_hash, network=g.network))
    if noted is None:
        raise service.AlreadyRegisteredError
    user, token = noted
    # What this caller sent, and nothing that another one did: nobody has proven yet whose number it is.
    shown = {**user_fields(user), "name": body["name"], "email": body["email"]}
    return {"message": "Signed up: now verify the number with a code", "user": shown, "signup_token": token}


@blueprint.post("/send-otp")
@blueprint.arguments(OtpRequestSchema)
@blueprint.response(200, OtpSchema)
@blueprint.problems(limits.OtpRateLimitedError(retry_after=60))
def send_otp(body: dict[str, Any]) -> dict[str, Any]:
    """Send a one-time code

    The answer is the same whether or not the number is registered.
    """
    return _send_code(**body)


@blueprint.post("/verify-otp")
@blueprint.arguments(VerifyOtpSchema)
@blueprint.response(200, SessionSchema)
@blueprint.problems(service.InvalidOtpError, TRIED_TOO_OFTEN)
def verify_otp(body: dict[str, Any]) -> dict[str, Any]:
    """Sign in with a one-time code

    A good code for a new number makes the account.
    """

    def open_with_code() -> dict[str, Any] | None:
        return _open_session(
            service.verify_otp(body["mobile_number"], body["otp"], body["purpose"], body["signup_token"])
        )

    session = in_transaction(open_with_code)
    if session is None:
        raise service.InvalidOtpError
    return session


@blueprint.post("/login")
@blueprint.arguments(LoginSchema)
@blueprint.response(200, SessionSchema)
@blueprint.problems(credentials.InvalidCredentialsError, TRIED_TOO_OFTEN)
def log_in(body: dict[str, Any]) -> dict[str, Any]:
    """Sign in with a password

    The answer is the same for a wrong password, an unknown number, and an account without a password.
    """
    check = check_password(body["mobile_number"], body["password"], credentials.InvalidCredentialsError)
    new_hash = credentials.renewed_hash(check, body["password"])
    session = in_transaction(lambda: _open_session(credentials.finish_login(check, new_hash)))
    if session is None:
        raise credentials.InvalidCredentialsError
    return session


@blueprint.post("/forgot-password")
@blueprint.arguments(ForgotPasswordSchema)
@blueprint.response(200, OtpSchema)
@blueprint.problems(limits.OtpRateLimitedError(retry_after=60))
def forgot_password(body: dict[str, Any]) -> dict[str, Any]:
    """Send a code to set a new password with

    The answer is the same whether or not the number is registered.
    """
    return _send_code(body["mobile_number"], "password_reset")


@blueprint.post("/reset-password")
@blueprint.arguments(ResetPasswordSchema)
@blueprint.response(200, DoneSchema)
@blueprint.problems(service.InvalidOtpError, TRIED_TOO_OFTEN)
def reset_password(body: dict[str, Any]) -> dict[str, str]:
    """Set a new password with a code

    Every session of the user ends.
    """
    number, new_password = body["mobile_number"], body["new_password"]
    credentials.require_good_password("new_password", new_password, number)
    # Before anything is looked up: a wrong code takes as long as the right one, and holds no row meanwhile.
    new_hash = hash_password(new_password)
    if not in_transaction(lambda: credentials.reset_password(number, body["otp"], new_hash)):
        raise service.InvalidOtpError
    return {"message": "Password set, sign in with it"}


@blueprint.post("/refresh")
@blueprint.arguments(RefreshSchema)
@blueprint.response(200, TokensSchema)
@blueprint.problems(InvalidRefreshTokenError)
def refresh(body: dict[str, Any]) -> dict[str, Any]:
    """Turn a refresh token into new tokens

    It can be used once. The same one within 10 seconds gets the same successor, as an answer may be lost; later it
    ends the session.
    """
    tokens = in_transaction(lambda: rotate(body["refresh_token"]))
    if tokens is None:
        raise InvalidRefreshTokenError
    return _token_fields(tokens)


def check_password(mobile_number: str, password: str, error: type[ChatAPIError]) -> credentials.PasswordCheck:
    """Return the check that the right password has passed. Raises `error` for a wrong one, which counts."""
    check = in_transaction(lambda: credentials.begin_check(mobile_number))
    if not check.verify(password):
        in_transaction(limits.count_failure)
        raise error
    return check


def user_fields(user: User) -> dict[str, Any]:
    """Return what `UserSchema` shows of an account."""
    return {
        "id": user.id,
        "mobile_number": user.mobile_number,
        "name": user.name,
        "email": user.email,
        "subscription_tier": "pro" if user.is_pro else "basic",
        "created_at": user.created_at,
    }


def _send_code(mobile_number: str, purpose: Purpose) -> dict[str, Any]:
    dispatched = in_transaction(lambda: service.request_otp(mobile_number, purpose))
    if dispatched.outbox_id is not None:
        ring_delivery(dispatched.outbox_id)
    answer = {
        "message": "Code sent",
        "mobile_number": mobile_number,
        "purpose": purpose,
        "expires_in": OTP_TTL_SECONDS,
    }
    return answer if dispatched.echo is None else {**answer, "otp": dispatched.echo}


def _open_session(user: User | None) -> dict[str, Any] | None:
    """Begin a session of the user and return what `SessionSchema` shows of it; None for nobody."""
    if user is None:
        return None
    tokens = open_session(user)
    limits.remember_network(g.network)
    return {"message": "Signed in", **_token_fields(tokens), "user": user_fields(user)}


def _token_fields(tokens: Tokens) -> dict[str, Any]:
    return {
        "token": tokens.token,
        "refresh_token": tokens.refresh_token,
        "token_type": "Bearer",
        "expires_in": tokens.expires_in,
    }
