"""The public sign-in routes."""

from __future__ import annotations

from typing import Any

from chatapi.auth import service
from chatapi.auth.delivery import ring_delivery
from chatapi.auth.models import User
from chatapi.auth.otp import OTP_TTL_SECONDS
from chatapi.auth.schemas import (
    OtpRequestSchema,
    OtpSchema,
    SessionSchema,
    SignupRequestSchema,
    SignupSchema,
    VerifyOtpSchema,
)
from chatapi.auth.tokens import Tokens, issue_tokens
from chatapi.extensions import in_transaction
from chatapi.parsing import ApiBlueprint

blueprint = ApiBlueprint("auth", __name__, url_prefix="/auth", description="Signing up and signing in")


@blueprint.post("/signup")
@blueprint.arguments(SignupRequestSchema)
@blueprint.response(201, SignupSchema)
@blueprint.problems(409)
def sign_up(body: dict[str, Any]) -> dict[str, Any]:
    """Sign up with a mobile number

    E-mail and password become the account's when verify-otp brings the `signup_token`.
    """
    user, token = in_transaction(lambda: service.sign_up(**body))
    # What this caller sent, and nothing that another one did: nobody has proven yet whose number it is.
    shown = {**user_fields(user), "name": body["name"], "email": body["email"]}
    return {"message": "Signed up: now verify the number with a code", "user": shown, "signup_token": token}


@blueprint.post("/send-otp")
@blueprint.arguments(OtpRequestSchema)
@blueprint.response(200, OtpSchema)
def send_otp(body: dict[str, Any]) -> dict[str, Any]:
    """Send a one-time code

    The answer is the same whether or not the number is registered.
    """
    dispatched = in_transaction(lambda: service.request_otp(**body))
    if dispatched.outbox_id is not None:
        ring_delivery(dispatched.outbox_id)
    answer = {"message": "Code sent", **body, "expires_in": OTP_TTL_SECONDS}
    return answer if dispatched.echo is None else {**answer, "otp": dispatched.echo}


@blueprint.post("/verify-otp")
@blueprint.arguments(VerifyOtpSchema)
@blueprint.response(200, SessionSchema)
@blueprint.problems(400)
def verify_otp(body: dict[str, Any]) -> dict[str, Any]:
    """Sign in with a one-time code

    A good code for a new number makes the account.
    """
    session = in_transaction(lambda: _open_session(**body))
    if session is None:
        raise service.InvalidOtpError
    user, tokens = session
    return {
        "message": "Signed in",
        "token": tokens.token,
        "refresh_token": tokens.refresh_token,
        "token_type": "Bearer",
        "expires_in": tokens.expires_in,
        "user": user_fields(user),
    }


def _open_session(mobile_number: str, otp: str, purpose: Any, signup_token: str | None) -> tuple[User, Tokens] | None:
    user = service.verify_otp(mobile_number, otp, purpose, signup_token)
    return None if user is None else (user, issue_tokens(user))


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
