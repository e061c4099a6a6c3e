"""Idempotency keys: a prompt sent again under its key is answered with what the first was answered.

After https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/. The key is stored in the transaction
that accepts the prompt, so that there is never one without the other; a refusal stores neither.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus
from typing import Any, cast
from uuid import UUID

from sqlalchemy import func, select, text

from chatapi.chatrooms.models import IdempotencyKey
from chatapi.errors import ChatAPIError, ConflictError, UnauthorizedError
from chatapi.extensions import db, delete_some

KEY_HOURS = 24
RETRY_AFTER_SECONDS = 1


@dataclass(frozen=True)
class KeyedRequest:
    """A request that carries a key; `fingerprint` is the same for the same method, path and body."""

    key: str
    fingerprint: bytes


class IdempotencyInProgressError(ConflictError):
    """The first request with this key is still being worked on."""

    slug = "idempotency_in_progress"
    message = "The first request with this key is still being accepted, try again shortly"


class IdempotencyMismatchError(ChatAPIError):
    """The key was used for something else."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    slug = "idempotency_mismatch"
    message = "This Idempotency-Key was used for another request"


# Held to the end of the transaction. It keeps whoever comes second from waiting for the first.
_TRY_LOCK = text("SELECT pg_try_advisory_xact_lock(hashtextextended(:key, 0))")

# A key that is over is taken over. Of an account that is being erased there is no row to insert for in the end.
_STORE = text("""
    INSERT INTO idempotency_keys AS stored (user_id, key, fingerprint, reply_id)
    SELECT id, :key, :fingerprint, :reply_id FROM users WHERE id = :user_id FOR KEY SHARE
    ON CONFLICT (user_id, key) DO UPDATE
    SET fingerprint = excluded.fingerprint, reply_id = excluded.reply_id, created_at = excluded.created_at
    WHERE stored.created_at <= now() - make_interval(hours => :hours)
    RETURNING reply_id
""")


def keyed_request(key: str | None, method: str, path: str, body: Any) -> KeyedRequest | None:
    """Return what identifies a request with an Idempotency-Key, None without one."""
    if key is None:
        return None
    whole = json.dumps([method, path, body], sort_keys=True)
    return KeyedRequest(key, hashlib.sha256(whole.encode()).digest())


def claim_key(user_id: UUID, request: KeyedRequest, reply_id: UUID) -> UUID | None:
    """Store the key for the reply that is about to be accepted; return the earlier reply if there is one under it.

    Raises `IdempotencyInProgressError` while another transaction holds the key, `IdempotencyMismatchError` if it was
    for another request, and `UnauthorizedError` if the account was erased meanwhile. To be called first in the
    accepting transaction.
    """
    if not db.session.scalar(_TRY_LOCK, {"key": f"{user_id} {request.key}"}):
        raise IdempotencyInProgressError(retry_after=RETRY_AFTER_SECONDS)
    stored = {"user_id": user_id, "key": request.key, "fingerprint": request.fingerprint, "reply_id": reply_id}
    if db.session.execute(_STORE, {**stored, "hours": KEY_HOURS}).one_or_none() is not None:
        return None
    earlier = db.session.execute(
        select(IdempotencyKey.fingerprint, IdempotencyKey.reply_id).where(
            IdempotencyKey.user_id == user_id, IdempotencyKey.key == request.key
        )
    ).one_or_none()
    if earlier is None:
        raise UnauthorizedError
    if earlier.fingerprint != request.fingerprint:
        raise IdempotencyMismatchError
    return cast("UUID", earlier.reply_id)


def prune_keys() -> int:
    """Delete some of the keys that are over; return how many."""
    return delete_some(IdempotencyKey, IdempotencyKey.created_at <= func.now() - timedelta(hours=KEY_HOURS))
