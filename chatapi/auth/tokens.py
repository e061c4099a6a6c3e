"""Access tokens, and who is calling."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any
from uuid import UUID

from flask import Flask, current_app, g, request
from flask_jwt_extended import create_access_token, decode_token
from flask_jwt_extended.exceptions import JWTDecodeError
from sqlalchemy.exc import SQLAlchemyError

from chatapi.errors import UnauthorizedError
from chatapi.extensions import jwt, run_alone
from chatapi.limits import client_network

ISSUER = "chatapi"
SESSION_CLAIM = "sid"
SESSION_VERSION_CLAIM = "sv"
REQUIRED_CLAIMS = {"exp", "jti", "type", "sub", "iss", "aud", SESSION_CLAIM, SESSION_VERSION_CLAIM}

VERIFIED_TOKENS = 4096
"""How many verified tokens a process remembers, at less than a kilobyte each."""
DEAD_SESSIONS = 4096
"""How many sessions a process remembers that have ended before their access token."""


CALLER_PATIENCE_SECONDS = 2.0
"""For PostgreSQL to find the caller, which takes it no time: if it stands still, that is noticed here."""

_CALLER = """
    SELECT rooms_version, is_pro FROM find_caller(%(user_id)s, %(session_id)s, %(session_version)s)
    WHERE rooms_version IS NOT NULL
"""


@dataclass(frozen=True, slots=True)
class Claims:
    """What a verified access token says; `expires_at` in seconds since 1970."""

    user_id: UUID
    session_id: UUID
    session_version: int
    expires_at: int


@dataclass(frozen=True, slots=True)
class CurrentUser:
    """The caller, as the database knows them at this request: nothing here comes from the token but the ids."""

    id: UUID
    session_id: UUID
    is_pro: bool
    rooms_version: int


class DeadSessions:
    """The last sessions that were found to have ended before their access token did. None of them begins again."""

    def __init__(self) -> None:
        self._ids: dict[UUID, None] = {}
        self._lock = threading.Lock()

    def __contains__(self, session_id: UUID) -> bool:
        return session_id in self._ids

    def add(self, session_id: UUID) -> None:
        """Remember a session, and forget the one that was found first when they are too many."""
        with self._lock:
            self._ids[session_id] = None
            if len(self._ids) > DEAD_SESSIONS:
                del self._ids[next(iter(self._ids))]


def configure_jwt(config: dict[str, Any]) -> dict[str, Any]:
    """Return flask-jwt-extended's settings: HS256, in the Authorization header, bound to issuer and audience."""
    return {
        "JWT_SECRET_KEY": config["JWT_SECRET"],
        "JWT_ALGORITHM": "HS256",
        "JWT_TOKEN_LOCATION": ["headers"],
        # No cookies, so no claim against forged requests by them.
        "JWT_COOKIE_CSRF_PROTECT": False,
        "JWT_ACCESS_TOKEN_EXPIRES": timedelta(seconds=config["JWT_ACCESS_TTL_SECONDS"]),
        "JWT_ENCODE_ISSUER": ISSUER,
        "JWT_DECODE_ISSUER": ISSUER,
        "JWT_ENCODE_AUDIENCE": ISSUER,
        "JWT_DECODE_AUDIENCE": ISSUER,
    }


def init_tokens(app: Flask) -> None:
    """Bind flask-jwt-extended, and remember verified tokens.

    Reading a token and checking its signature is the dearest part of a small request, half of it in looking at each
    character of base64, and comes to the same each time. So it is done once per token and process. What may change
    is looked at on each request all the same: the token's age in `identify_caller`, its session and account in
    `require_user`. Tokens that fail are not remembered.
    """
    jwt.init_app(app)
    app.extensions["verify_access_token"] = lru_cache(maxsize=VERIFIED_TOKENS)(_verify)
    app.extensions["dead_sessions"] = DeadSessions()


@jwt.decode_key_loader
def _key_for(_header: dict[str, Any], unverified_claims: dict[str, Any]) -> str:
    """Return the key to check a token with, if it has every claim of ours.

    The library fills in a missing `type` or `jti`, passes a missing `exp`, and takes a made-up type for an access
    token; only here are the claims seen as they came.
    """
    if not unverified_claims.keys() >= REQUIRED_CLAIMS or unverified_claims["type"] != "access":
        raise JWTDecodeError("Not an access token of ours")
    secret: str = current_app.config["JWT_SECRET_KEY"]
    return secret


def make_access_token(user_id: UUID, session_version: int, session_id: UUID) -> str:
    """Return an access token for a session of the user."""
    claims = {SESSION_VERSION_CLAIM: session_version, SESSION_CLAIM: str(session_id)}
    token: str = create_access_token(str(user_id), additional_claims=claims)
    return token


def identify_caller() -> None:
    """Read the request's token, if it is good, and say whose request budget the request is charged to.

    To be called before each request, ahead of the limiter. It refuses nobody: `require_user` does.
    """
    g.network = client_network(request.remote_addr)
    g.claims = _read_claims()
    g.rate_limit_key = f"user:{g.claims.user_id}" if g.claims else f"ip:{g.network}"


def require_user() -> None:
    """Let the request pass if its token is good and its session and account still are, else answer 401.

    OPTIONS only asks what the address takes, and Flask answers it by itself.
    """
    if request.method == "OPTIONS":
        return
    claims: Claims | None = g.claims
    if claims is None:
        raise UnauthorizedError
    user = _find_user(claims)
    if user is None:
        raise UnauthorizedError
    g.user = user


def notice_ended_session() -> None:
    """Look on public routes too if the session of a token is still there; nobody is refused for it.

    Whoever has a token of a session that ended could otherwise use up its owner's request budget there. To be called
    before each request, behind the limiter, which bounds how often that can be.
    """
    claims: Claims | None = g.claims
    is_looked_at = require_user in current_app.before_request_funcs.get(request.blueprint, ())
    if claims is None or is_looked_at or "counted" not in g:
        return
    with suppress(SQLAlchemyError):
        _find_user(claims)


def _find_user(claims: Claims) -> CurrentUser | None:
    """Return who the claims speak of, None if the session or the account has ended, which is then remembered."""
    rows = run_alone(
        _CALLER,
        {
            "user_id": str(claims.user_id),
            "session_id": str(claims.session_id),
            "session_version": claims.session_version,
        },
        CALLER_PATIENCE_SECONDS,
    )
    if not rows:
        current_app.extensions["dead_sessions"].add(claims.session_id)
        return None
    rooms_version, is_pro = rows[0]
    return CurrentUser(claims.user_id, claims.session_id, is_pro, rooms_version)


def current_user() -> CurrentUser:
    """Return who is calling; only on protected routes."""
    user: CurrentUser = g.user
    return user


def _read_claims() -> Claims | None:
    """Return the claims of a good access token in the Authorization header (RFC 6750), else None."""
    try:
        given = request.authorization
        if given is None or given.type != "bearer" or not given.token:
            return None
        verify: Callable[[str], Claims] = current_app.extensions["verify_access_token"]
        claims = verify(given.token)
    except Exception:  # noqa: BLE001 - whatever a header does to the libraries, it is no good token
        return None
    # Whoever has a token of a session that ended must not use up its owner's request budget with it.
    is_dead = claims.session_id in current_app.extensions["dead_sessions"]
    return None if is_dead or claims.expires_at <= time.time() else claims


def _verify(token: str) -> Claims:
    """Return the claims of `token`, or raise whatever is wrong with it."""
    if "=" in token:  # PyJWT takes base64 with its padding for the same token; RFC 7515, 2, has none.
        raise JWTDecodeError("Not an access token of ours")
    claims = decode_token(token)
    if type(claims[SESSION_VERSION_CLAIM]) is not int:
        raise JWTDecodeError("Not an access token of ours")
    return Claims(UUID(claims["sub"]), UUID(claims[SESSION_CLAIM]), claims[SESSION_VERSION_CLAIM], int(claims["exp"]))
