"""Sessions: begun by a sign-in, kept up by rotating refresh tokens, ended by deleting their row."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import structlog
from flask import current_app
from sqlalchemy import ColumnElement, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert

from chatapi.auth.models import RefreshToken, Session, User
from chatapi.auth.tokens import make_access_token
from chatapi.errors import UnauthorizedError
from chatapi.extensions import db, delete_some
from chatapi.ids import uuid7
from chatapi.keys import derived_key

REFRESH_GRACE_SECONDS = 10
"""How long a refresh token that was used gets the same successor again, as the answer may have been lost."""

TOKEN_BYTES = 32

log = structlog.get_logger(__name__)


class InvalidRefreshTokenError(UnauthorizedError):
    """The refresh token is unknown, expired, or used once too often."""

    message = "The refresh token is not valid, sign in again"


@dataclass(frozen=True)
class Tokens:
    """What a sign-in hands out; `expires_in` is the access token's life in seconds."""

    token: str
    refresh_token: str
    expires_in: int


def open_session(user: User) -> Tokens:
    """Begin a session of the user, whose row is locked, with the first refresh token of its family."""
    session_id = uuid7()
    refresh_token = secrets.token_urlsafe(TOKEN_BYTES)
    db.session.execute(insert(Session).values(id=session_id, user_id=user.id, expires_at=_session_expiry()))
    _store(refresh_token, session_id)
    return _tokens(user.id, user.session_version, session_id, refresh_token)


def rotate(refresh_token: str) -> Tokens | None:
    """Return new tokens for a refresh token, which is thereby used, or None if it is no good.

    The session's row is locked first, so of many uses at once one rotates, and the others find the token used. They
    get the same successor for `REFRESH_GRACE_SECONDS`: it is derived from the token, and need not be kept. After
    that somebody holds a token that they should not, thief or robbed, so the session ends (RFC 9700, 4.14.2). None
    must be committed like a success.
    """
    token_hash = hash_token(refresh_token)
    family = select(RefreshToken.family_id).where(RefreshToken.token_hash == token_hash).scalar_subquery()
    session_id = db.session.scalar(select(Session.id).where(Session.id == family).with_for_update())
    if session_id is None:
        return None
    now = func.clock_timestamp()
    row = db.session.execute(
        select(
            User.id,
            User.session_version,
            User.disabled_at,
            RefreshToken.used_at,
            (RefreshToken.expires_at > now).label("is_live"),
            (RefreshToken.used_at > now - timedelta(seconds=REFRESH_GRACE_SECONDS)).label("is_in_grace"),
        )
        .join(Session, Session.user_id == User.id)
        .join(RefreshToken, RefreshToken.family_id == Session.id)
        .where(RefreshToken.token_hash == token_hash)
    ).one_or_none()
    if row is None:
        return None
    if row.used_at is not None and not row.is_in_grace:
        log.warning("refresh_token_reused", session_id=str(session_id), user_id=str(row.id))
        end_session(session_id)
        return None
    if row.disabled_at is not None or not row.is_live:
        return None
    successor = _successor(refresh_token)
    if row.used_at is None:
        db.session.execute(update(RefreshToken).where(RefreshToken.token_hash == token_hash).values(used_at=now))
        _store(successor, session_id)
        db.session.execute(
            update(Session).where(Session.id == session_id).values(refreshed_at=now, expires_at=_session_expiry())
        )
    return _tokens(row.id, row.session_version, session_id, successor)


def end_session(session_id: UUID) -> None:
    """End one session: its access and refresh tokens are dead once this is committed."""
    db.session.execute(delete(Session).where(Session.id == session_id))


def end_sessions(user_id: UUID, but: UUID | None = None) -> None:
    """End all sessions of the user, or all `but` one, which then goes on. The user's row is locked first."""
    if but is None:
        version = update(User).where(User.id == user_id).values(session_version=User.session_version + 1)
        db.session.execute(version.execution_options(synchronize_session=False))
    db.session.execute(delete(Session).where(Session.user_id == user_id, Session.id.is_distinct_from(but)))


def prune_sessions() -> int:
    """Delete some sessions and refresh tokens that are past their life; return how many."""
    tokens = delete_some(RefreshToken, RefreshToken.expires_at < func.now())
    return tokens + delete_some(Session, Session.expires_at < func.now())


def hash_token(token: str) -> bytes:
    """Return what is stored of a random token: 256 random bits need no salt and no stretching."""
    return hashlib.sha256(token.encode()).digest()


def _successor(refresh_token: str) -> str:
    """Return the token that follows `refresh_token`: only we can tell, and we tell the same each time."""
    digest = hmac.digest(derived_key("refresh-successor"), refresh_token.encode(), hashlib.sha256)
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def _store(refresh_token: str, family_id: UUID) -> None:
    values = {"token_hash": hash_token(refresh_token), "family_id": family_id, "expires_at": _refresh_expiry()}
    db.session.execute(insert(RefreshToken).values(values))


def _refresh_expiry() -> ColumnElement[datetime]:
    return func.clock_timestamp() + timedelta(seconds=current_app.config["JWT_REFRESH_TTL_SECONDS"])


def _session_expiry() -> ColumnElement[datetime]:
    """A session lives as long as its newest refresh token, and never shorter than its access token."""
    config = current_app.config
    seconds = max(config["JWT_REFRESH_TTL_SECONDS"], config["JWT_ACCESS_TTL_SECONDS"])
    return func.clock_timestamp() + timedelta(seconds=seconds)


def _tokens(user_id: UUID, session_version: int, session_id: UUID, refresh_token: str) -> Tokens:
    return Tokens(
        token=make_access_token(user_id, session_version, session_id),
        refresh_token=refresh_token,
        expires_in=current_app.config["JWT_ACCESS_TTL_SECONDS"],
    )
