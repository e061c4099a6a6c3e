"""The sign-in routes of those who are signed in."""

from __future__ import annotations

from typing import Any

from chatapi.auth import credentials, limits
from chatapi.auth.passwords import hash_password
from chatapi.auth.routes import TRIED_TOO_OFTEN, check_password
from chatapi.auth.schemas import ChangePasswordSchema, LogoutSchema
from chatapi.auth.sessions import end_session, end_sessions
from chatapi.auth.tokens import current_user
from chatapi.errors import ValidationFailedError
from chatapi.extensions import in_transaction
from chatapi.parsing import ApiBlueprint
from chatapi.schemas import DoneSchema

blueprint = ApiBlueprint("sessions", __name__, url_prefix="/auth", description="Sessions and passwords")


@blueprint.post("/change-password")
@blueprint.arguments(ChangePasswordSchema)
@blueprint.response(200, DoneSchema)
@blueprint.problems(credentials.WrongPasswordError, TRIED_TOO_OFTEN)
def change_password(body: dict[str, Any]) -> dict[str, str]:
    """Set or change the caller's password

    The current one is not needed while none is set. All other sessions of the user end.
    """
    caller, new_password = current_user(), body["new_password"]
    account = in_transaction(lambda: credentials.read_account(caller.id))
    credentials.require_good_password("new_password", new_password, account.mobile_number)
    if account.password_hash is not None:
        _check_current(account.mobile_number, body["current_password"])
    old_hash, new_hash = account.password_hash, hash_password(new_password)
    if not in_transaction(lambda: credentials.replace_password(caller.id, caller.session_id, old_hash, new_hash)):
        raise credentials.WrongPasswordError("The password was changed by somebody else meanwhile")
    return {"message": "Password changed"}


@blueprint.post("/logout")
@blueprint.arguments(LogoutSchema, required=False)
@blueprint.response(204)
def log_out(body: dict[str, Any]) -> None:
    """End this session, or with `all` every session of the user

    Its tokens are dead at once.
    """
    caller = current_user()
    in_transaction(lambda: end_sessions(caller.id) if body["all"] else end_session(caller.session_id))


def _check_current(mobile_number: str, password: str | None) -> None:
    """Let the right password pass; it is limited like signing in, as a stolen token must not help to guess it."""
    if password is None:
        raise ValidationFailedError(errors={"current_password": ["Missing data for required field."]})
    check = check_password(mobile_number, password, credentials.WrongPasswordError)
    in_transaction(lambda: limits.give_back(check.hit))
