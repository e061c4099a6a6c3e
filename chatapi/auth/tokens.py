"""Access and refresh tokens, and who is calling."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from flask import current_app, g, request
from flask_jwt_extended import create_access_token, verify_jwt_in_request
from flask_jwt_extended.exceptions import JWTDecodeError
from sqlalchemy import func, select

from chatapi.auth.models import RefreshToken, User
from chatapi.errors import UnauthorizedError
from chatapi.extensions import db, jwt
from chatapi.ids import uuid7
from chatapi.security import client_network

ISSUER = "chatapi"
SESSION_VERSION_CLAIM = "sv"
REQUIRED_CLAIMS = {"exp", "jti", "type", "sub", "iss", "aud", SESSION_VERSION_CLAIM}


@dataclass(frozen=True)
class Tokens:
    """What a sign-in hands out; `expires_in` is the access token's life in seconds."""

    token: str
    refresh_token: str
    expires_in: int


@dataclass(frozen=True)
class CurrentUser:
    """The caller, as the database knows them at this request: nothing here comes from the token but the id."""

    id: UUID
    is_pro: bool
    rooms_version: int


def configure_jwt(config: dict[str, Any]) -> dict[str, Any]:
    """Return flask-jwt-extended's settings: HS256, in the Authorization header, bound to issuer and audience."""
    return {
        "JWT_SECRET_KEY": config["JWT_SECRET"],
        "JWT_ALGORITHM": "HS256",
        "JWT_TOKEN_LOCATION": ["headers"],
        "JWT_ACCESS_TOKEN_EXPIRES": timedelta(seconds=config["JWT_ACCESS_TTL_SECONDS"]),
        "JWT_ENCODE_ISSUER": ISSUER,
        "JWT_DECODE_ISSUER": ISSUER,
        "JWT_ENCODE_AUDIENCE": ISSUER,
        "JWT_DECODE_AUDIENCE": ISSUER,
    }


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


def issue_tokens(user: User) -> Tokens:
    """Begin a session: return an access token and store a refresh token as the first of its family."""
    refresh_token = secrets.token_urlsafe(32)
    db.session.add(
        RefreshToken(
            user_id=user.id,
            family_id=uuid7(),
            token_hash=hash_token(refresh_token),
            expires_at=func.now() + timedelta(seconds=current_app.config["JWT_REFRESH_TTL_SECONDS"]),
        )
    )
    return Tokens(
        token=create_access_token(str(user.id), additional_claims={SESSION_VERSION_CLAIM: user.session_version}),
        refresh_token=refresh_token,
        expires_in=current_app.config["JWT_ACCESS_TTL_SECONDS"],
    )


def hash_token(token: str) -> bytes:
    """Return what is stored of a random token: 256 random bits need no salt and no stretching."""
    return hashlib.sha256(token.encode()).digest()


def identify_caller() -> None:
    """Read the request's token, if it is good, and say whose request budget the request is charged to.

    To be called before each request, ahead of the limiter. It refuses nobody: `require_user` does.
    """
    g.claims = _read_claims()
    g.rate_limit_key = f"user:{g.claims['sub']}" if g.claims else f"ip:{client_network(request.remote_addr)}"


def require_user() -> None:
    """Let the request pass if its token is good and its account still is, else answer 401.

    OPTIONS only asks what the address takes, and Flask answers it by itself.
    """
    if request.method == "OPTIONS":
        return
    if g.claims is None:
        raise UnauthorizedError
    row = db.session.execute(
        select(
            User.disabled_at,
            User.session_version,
            User.rooms_version,
            func.coalesce(User.pro_until > func.now(), False).label("is_pro"),
        ).where(User.id == g.claims["sub"])
    ).one_or_none()
    if row is None or row.disabled_at is not None or row.session_version != g.claims[SESSION_VERSION_CLAIM]:
        raise UnauthorizedError
    g.user = CurrentUser(UUID(g.claims["sub"]), row.is_pro, row.rooms_version)


def current_user() -> CurrentUser:
    """Return who is calling; only on protected routes."""
    user: CurrentUser = g.user
    return user


def _read_claims() -> dict[str, Any] | None:
    """Return the claims of a good access token, else None."""
    if "Authorization" not in request.headers:
        return None
    try:
        verified = verify_jwt_in_request()
        if verified is None:  # The library asks OPTIONS requests for no token.
            return None
        claims: dict[str, Any] = verified[1]
        UUID(claims["sub"])
    except Exception:  # noqa: BLE001 - whatever a header does to the libraries, it is no good token
        return None
    return claims
