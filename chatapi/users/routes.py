"""The caller's own account; all routes need a token."""

from __future__ import annotations

from typing import Any

from flask import Response, current_app, stream_with_context
from flask.sansio.blueprints import BlueprintSetupState

from chatapi.auth.routes import user_fields
from chatapi.auth.tokens import current_user
from chatapi.extensions import in_transaction
from chatapi.parsing import ApiBlueprint
from chatapi.security import limit_send_time
from chatapi.users import service
from chatapi.users.erase import erase_account
from chatapi.users.export import ExportSlots, stream_export
from chatapi.users.schemas import (
    ExportSchema,
    ProfileAnswerSchema,
    ProfileSchema,
    UpdatedProfileSchema,
    UpdateProfileSchema,
)

blueprint = ApiBlueprint("users", __name__, url_prefix="/user", description="The caller's own account")


@blueprint.record_once
def _init_slots(state: BlueprintSetupState) -> None:
    """Let exports have a quarter of a process's threads, and leave the rest to everybody else."""
    state.app.extensions["export_slots"] = ExportSlots(max(1, state.app.config["WEB_THREADS"] // 4))


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
@blueprint.problems(429, 503)
def export_me() -> Response:
    """Export everything that is held about the caller

    One JSON document, streamed; one at a time.
    """
    user_id = current_user().id
    slots: ExportSlots = current_app.extensions["export_slots"]
    profile = in_transaction(lambda: service.read_profile(user_id))
    account = ProfileSchema().dump(_profile_fields(profile))
    slots.take(user_id)
    response = Response(
        stream_with_context(stream_export(account, profile.user)),
        mimetype="application/json",
        headers={"Content-Disposition": 'attachment; filename="account.json"'},
    )
    response.call_on_close(lambda: slots.give_back(user_id))
    limit_send_time(response)
    return response


def _profile_fields(profile: service.Profile) -> dict[str, Any]:
    return {
        **user_fields(profile.user),
        "subscription_status": None,
        "daily_usage_count": profile.daily_usage_count,
        "stats": {"chatroom_count": profile.chatroom_count, "message_count": profile.message_count},
    }
