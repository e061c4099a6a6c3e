"""The caller's own account; all routes need a token."""

from __future__ import annotations

from typing import Any

from flask import Response

from chatapi.auth.routes import user_fields
from chatapi.auth.tokens import current_user
from chatapi.exports import REFUSALS as EXPORT_REFUSALS
from chatapi.exports import send_export
from chatapi.extensions import in_transaction
from chatapi.parsing import ApiBlueprint
from chatapi.users import service
from chatapi.users.erase import erase_account
from chatapi.users.export import write_account
from chatapi.users.schemas import (
    ExportSchema,
    ProfileAnswerSchema,
    ProfileSchema,
    UpdatedProfileSchema,
    UpdateProfileSchema,
)

blueprint = ApiBlueprint("users", __name__, url_prefix="/user", description="The caller's own account")


@blueprint.get("/me")
@blueprint.response(200, ProfileAnswerSchema)
def read_me() -> dict[str, Any]:
    """Show the caller's account"""
    return {"user": _profile_fields(service.read_profile(current_user().id))}


@blueprint.route("/me", methods=["PUT", "PATCH"])
@blueprint.arguments(UpdateProfileSchema, required=False)
@blueprint.response(200, UpdatedProfileSchema)
def update_me(body: dict[str, Any]) -> dict[str, Any]:
    """Change the caller's account

    Members that are not sent stay; null clears.
    """
    profile = in_transaction(lambda: service.update_profile(current_user().id, body))
    return {"message": "Profile updated", "user": _profile_fields(profile)}


@blueprint.delete("/me")
@blueprint.response(204)
def erase_me() -> None:
    """Erase the caller's account

    Rooms, messages and sessions are gone at once. Today's prompt count and the limits of sign-in stay with the number.
    """
    in_transaction(lambda: erase_account(current_user().id))


@blueprint.get("/me/export")
@blueprint.response(200, ExportSchema)
@blueprint.problems(*EXPORT_REFUSALS)
def export_me() -> Response:
    """Export everything that is held about the caller

    One JSON document, streamed; one at a time.
    """
    user_id = current_user().id
    profile = in_transaction(lambda: service.read_profile(user_id))
    account = ProfileSchema().dump(_profile_fields(profile))
    return send_export(user_id, write_account(account, profile.user), "application/json", "account.json")


def _profile_fields(profile: service.Profile) -> dict[str, Any]:
    return {
        **user_fields(profile.user),
        "subscription_status": profile.subscription_status,
        "daily_usage_count": profile.daily_usage_count,
        "stats": {"chatroom_count": profile.chatroom_count, "message_count": profile.message_count},
    }
