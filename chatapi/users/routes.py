"""The caller's own account; all routes need a token."""

from __future__ import annotations

from typing import Any

from chatapi.auth.routes import user_fields
from chatapi.auth.tokens import current_user
from chatapi.extensions import in_transaction
from chatapi.parsing import ApiBlueprint
from chatapi.users import service
from chatapi.users.schemas import ProfileAnswerSchema, UpdatedProfileSchema, UpdateProfileSchema

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


def _profile_fields(profile: service.Profile) -> dict[str, Any]:
    return {
        **user_fields(profile.user),
        "subscription_status": None,
        "daily_usage_count": profile.daily_usage_count,
        "stats": {"chatroom_count": profile.chatroom_count, "message_count": profile.message_count},
    }
