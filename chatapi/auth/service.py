"""Signing up, and signing in with a code."""

from __future__ import annotations

import secrets
from datetime import timedelta
from http import HTTPStatus

from flask import current_app
from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert

from chatapi.auth import limits
from chatapi.auth.delivery import Dispatched, dispatch
from chatapi.auth.models import IS_USABLE, Signup, User
from chatapi.auth.otp import Purpose, claim_code, make_code
from chatapi.auth.sessions import hash_token
from chatapi.errors import BadRequestError, ChatAPIError
from chatapi.extensions import DELETE_BATCH, db, delete_some
from chatapi.ids import uuid7
from chatapi.keys import hash_number

SIGNUP_TTL_SECONDS = 24 * 3600


class AlreadyRegisteredError(ChatAPIError):
    """The number is somebody's already."""

    status = HTTPStatus.CONFLICT
    slug = "already_registered"
    message = "This mobile number is already registered"


class InvalidOtpError(BadRequestError):
    """One answer for a code that is wrong, expired, used, superseded or out of tries."""

    slug = "invalid_otp"
    message = "The code is not valid, ask for a new one"


def sign_up(
    mobile_number: str, name: str | None, email: str | None, password_hash: str | None, network: str
) -> tuple[User, str] | None:
    """Note a sign-up; return the account it is for, and the token that proves who asked for it.

    E-mail and password wait until verify-otp brings that token with a code of the number, so signing up a
    stranger's number gains nothing. None once the number is verified: that must be committed like a success, as it
    counts against `network`; then answer `AlreadyRegisteredError`. Raises `RateLimitedError`.
    """
    # Taken before looking, and given back if there is nothing to tell: one who was told often is told no more.
    conflict = None
    if current_app.config["AUTH_IP_LIMIT"]:
        conflict = limits.take(limits.SIGN_UP_CONFLICTS, limits.hash_network(network))
    signup_hit = limits.try_take(limits.SIGN_UPS, hash_number(mobile_number))
    user = _ensure_user(mobile_number)
    if user.verified_at is not None:
        if signup_hit is not None:
            limits.give_back(signup_hit)
        return None
    if signup_hit is None:
        raise limits.too_many(limits.SIGN_UPS, hash_number(mobile_number))
    if conflict is not None:
        limits.give_back(conflict)
    user.name = name or user.name
    token = secrets.token_urlsafe(32)
    db.session.add(
        Signup(
            token_hash=hash_token(token),
            user_id=user.id,
            name=name,
            email=email,
            password_hash=password_hash,
            expires_at=func.now() + timedelta(seconds=SIGNUP_TTL_SECONDS),
        )
    )
    return user, token


def request_otp(mobile_number: str, purpose: Purpose) -> Dispatched:
    """Make a code and hand it over for delivery, whether or not the number is registered.

    Nothing is looked up, so there is nothing to be told from the answer or its time. Raises `OtpRateLimitedError`.
    """
    number_hash = hash_number(mobile_number)
    limits.take(limits.CODES, number_hash, limits.OtpRateLimitedError)
    limits.take(limits.code_spacing(purpose), number_hash, limits.OtpRateLimitedError)
    return dispatch(mobile_number, purpose, make_code(mobile_number, purpose))


def verify_otp(mobile_number: str, code: str, purpose: Purpose, signup_token: str | None) -> User | None:
    """Return the account that the code signs in to, locked, made if there was none; None if the code is no good.

    None must be committed like a success, as the try counts; then answer `InvalidOtpError`.
    """
    if not claim_code(mobile_number, purpose, code):
        return None
    user = _ensure_user(mobile_number)
    if user.disabled_at is not None:
        return None
    if user.verified_at is None:
        user.verified_at = func.now()
        _complete_signup(user, signup_token)
    return user


def find_verified(mobile_number: str) -> User | None:
    """Return the number's account, locked, if it can be used."""
    return db.session.scalars(
        select(User)
        .where(User.mobile_number == mobile_number, *IS_USABLE)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).one_or_none()


def prune_signups() -> int:
    """Delete some sign-ups past their life, and accounts that only those were for; return how many."""
    deleted = delete_some(Signup, Signup.expires_at < func.now())
    is_awaited = select(Signup.token_hash).where(Signup.user_id == User.id).exists()
    too_old = func.now() - timedelta(seconds=SIGNUP_TTL_SECONDS)
    is_unproven = (User.verified_at.is_(None), User.disabled_at.is_(None), User.created_at < too_old, ~is_awaited)
    unproven = select(User.id).where(*is_unproven)
    locked = db.session.scalars(unproven.limit(DELETE_BATCH).with_for_update(skip_locked=True)).all()
    # Asked once more under the locks: somebody may have signed up again just before they were had.
    return deleted + delete_some(User, User.id.in_(locked), ~is_awaited)


def _ensure_user(mobile_number: str) -> User:
    """Return the number's account, locked, made first if need be."""
    values = {"id": uuid7(), "mobile_number": mobile_number, "number_hash": hash_number(mobile_number)}
    query = select(User).where(User.mobile_number == mobile_number).with_for_update()
    user = None
    while user is None:  # One that was there may be erased while its lock is waited for.
        db.session.execute(insert(User).values(values).on_conflict_do_nothing(index_elements=["mobile_number"]))
        user = db.session.scalars(query.execution_options(populate_existing=True)).one_or_none()
    return user


def _complete_signup(user: User, signup_token: str | None) -> None:
    """Give the account what its own sign-up asked for, and forget all sign-ups for it."""
    if signup_token is not None:
        signup = db.session.scalars(
            select(Signup).where(
                Signup.user_id == user.id,
                Signup.token_hash == hash_token(signup_token),
                Signup.expires_at > func.now(),
            )
        ).one_or_none()
        if signup is not None:
            user.name = signup.name or user.name
            user.email = signup.email
            user.password_hash = signup.password_hash
    db.session.execute(delete(Signup).where(Signup.user_id == user.id))
