"""The `flask user` and `flask otp` commands: for support, at the terminal, audited."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click
from sqlalchemy import func, select

from chatapi.auth import audit, limits
from chatapi.auth.delivery import prune_outbox
from chatapi.auth.models import AuditEvent, Session, User
from chatapi.auth.otp import OTP_TTL_SECONDS, make_code, prune_codes
from chatapi.auth.sessions import end_sessions
from chatapi.extensions import db, in_batches, in_transaction
from chatapi.keys import hash_number
from chatapi.schemas import rfc3339
from chatapi.terminal import NUMBER, Group, as_json, examples
from chatapi.users.erase import erase_account
from chatapi.users.service import read_profile

PURPOSES = click.Choice(["login", "verification", "password_reset"])

user_commands = Group("user", help="Show and change accounts, by their mobile number.")
otp_commands = Group("otp", help="Make one-time codes for people, and delete old ones.")

WHOSE = click.argument("number", type=NUMBER, help="The account's mobile number: + and digits, or the digits alone.")


@user_commands.command("show", epilog=examples("flask user show +12025550100", "flask user show 12025550100 --json"))
@WHOSE
@as_json
def show_user(number: str, is_json: bool) -> None:
    """Show the account of NUMBER, and what was done to it from here."""
    shown = in_transaction(lambda: _describe(_find(number)))
    if is_json:
        click.echo(json.dumps(shown, indent=2))
        return
    events = shown.pop("audit")
    for name, value in shown.items():
        click.echo(f"{name:<18} {'-' if value is None else value}")
    for event in events:
        click.echo(f"{event['at']}  {event['action']} by {event['actor']}")


@user_commands.command("disable", epilog=examples("flask user disable +12025550100"))
@WHOSE
def disable_user(number: str) -> None:
    """Keep the account of NUMBER from being used; its tokens die at once."""

    def disable(user: User) -> None:
        user.disabled_at = user.disabled_at or func.now()
        db.session.flush()
        end_sessions(user.id)

    _change(number, "user_disabled", disable)
    click.echo(f"{number} is disabled, and its sessions have ended.")


@user_commands.command("enable", epilog=examples("flask user enable +12025550100"))
@WHOSE
def enable_user(number: str) -> None:
    """Let the account of NUMBER be used again, after a new sign-in."""

    def enable(user: User) -> None:
        user.disabled_at = None

    _change(number, "user_enabled", enable)
    click.echo(f"{number} is enabled.")


@user_commands.command(
    "delete", epilog=examples("flask user delete +12025550100", "flask user delete +12025550100 --yes")
)
@WHOSE
@click.option("--yes", is_flag=True, help="Do not ask.")
def delete_user(number: str, yes: bool) -> None:
    """Erase the account of NUMBER with its rooms and messages, as its owner could."""
    if not yes:
        click.confirm(f"Erase the account of {number} with all its rooms and messages?", abort=True)
    # Erasing locks what it needs in an order of its own.
    _change(number, "user_deleted", lambda user: erase_account(user.id), lock=False)
    click.echo(f"The account of {number} is erased.")


@otp_commands.command(
    "issue",
    epilog=examples("flask otp issue +12025550100", "flask otp issue +12025550100 --purpose password_reset --json"),
)
@WHOSE
@click.option("--purpose", type=PURPOSES, default="login", show_default=True, help="What the code is good for.")
@as_json
def issue_otp(number: str, purpose: Any, is_json: bool) -> None:
    """Make a code for NUMBER and print it, for somebody whose codes do not arrive.

    Make sure first that they are who they say. The code takes the place of an earlier one of its purpose and does not
    count towards the number's limits; the number's wrong guesses are forgotten, so that it is good even after somebody
    burnt the earlier ones. Who issued it is kept in the audit log.
    """

    def issue() -> tuple[str, AuditEvent]:
        user = db.session.scalars(select(User).where(User.mobile_number == number)).one_or_none()
        if user is not None and user.disabled_at is not None:
            raise click.ClickException(f"The account of {number} is disabled, and no code would be accepted.")
        number_hash = hash_number(number)
        limits.clear(limits.CODE_TRIES, number_hash)
        return make_code(number, purpose), audit.record("otp_issued", number_hash, purpose=purpose)

    code, event = in_transaction(issue)
    audit.announce(event)
    if is_json:
        issued = {"mobile_number": number, "purpose": purpose, "otp": code, "expires_in": OTP_TTL_SECONDS}
        click.echo(json.dumps(issued))
    else:
        click.echo(f"{code} is the {purpose} code of {number} for the next {OTP_TTL_SECONDS // 60} minutes.")


@otp_commands.command("prune", epilog=examples("flask otp prune --json"))
@as_json
def prune_otp(is_json: bool) -> None:
    """Delete codes that are used or past their life. The sweeper does so every minute."""
    deleted = {"codes": in_batches(prune_codes), "undelivered": in_batches(prune_outbox)}
    if is_json:
        click.echo(json.dumps(deleted))
    else:
        click.echo(f"Deleted {deleted['codes']} codes, and {deleted['undelivered']} that were never delivered.")


def _find(number: str, *, lock: bool = False) -> User:
    """Return the number's account, or end the command with status 1."""
    query = select(User).where(User.mobile_number == number).execution_options(populate_existing=True)
    user = db.session.scalars(query.with_for_update() if lock else query).one_or_none()
    if user is None:
        raise click.ClickException(f"There is no account of {number}.")
    return user


def _change(number: str, action: str, change: Callable[[User], object], *, lock: bool = True) -> None:
    def work() -> AuditEvent:
        user = _find(number, lock=lock)
        event = audit.record(action, hash_number(number))
        change(user)
        return event

    audit.announce(in_transaction(work))


def _describe(user: User) -> dict[str, Any]:
    profile = read_profile(user.id)
    sessions = db.session.scalar(select(func.count()).select_from(Session).where(Session.user_id == user.id))
    times = {
        name: value and rfc3339(value)
        for name, value in {
            "created_at": user.created_at,
            "verified_at": user.verified_at,
            "disabled_at": user.disabled_at,
            "pro_until": user.pro_until,
        }.items()
    }
    return {
        "id": str(user.id),
        "mobile_number": user.mobile_number,
        "name": user.name,
        "email": user.email,
        "has_password": user.password_hash is not None,
        "subscription_tier": "pro" if user.is_pro else "basic",
        **times,
        "sessions": sessions,
        "prompts_today": profile.daily_usage_count,
        "chatrooms": profile.chatroom_count,
        "messages": profile.message_count,
        "audit": [
            {"at": rfc3339(event.created_at), "action": event.action, "actor": event.actor, "details": event.details}
            for event in audit.list_events(hash_number(user.mobile_number))
        ],
    }
