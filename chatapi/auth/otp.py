"""One-time codes: made, hashed, and claimed by one atomic update."""

from __future__ import annotations

import secrets
from datetime import timedelta
from typing import Literal
from uuid import UUID

from sqlalchemy import case, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert

from chatapi.auth import limits
from chatapi.auth.models import OtpCode
from chatapi.extensions import db, delete_some
from chatapi.ids import uuid7
from chatapi.keys import hash_number, keyed_hash

Purpose = Literal["login", "verification", "password_reset"]

OTP_TTL_SECONDS = 300
OTP_DIGITS = 6
MAX_OTP_ATTEMPTS = 5
"""ASVS 5.0, 6.5.1 to 6.5.5: single use, from a CSPRNG, short-lived, few tries, bound to what it was asked for."""


def make_code(mobile_number: str, purpose: Purpose) -> str:
    """Return a fresh code for the number and purpose; any earlier one stops being good."""
    code = f"{secrets.randbelow(10**OTP_DIGITS):0{OTP_DIGITS}}"
    challenge_id = uuid7()
    values = {
        "challenge_id": challenge_id,
        "code_hash": _hash_code(mobile_number, purpose, challenge_id, code),
        "attempts": 0,
        "created_at": func.now(),
        "expires_at": func.now() + timedelta(seconds=OTP_TTL_SECONDS),
        "used_at": None,
    }
    statement = insert(OtpCode).values(number_hash=hash_number(mobile_number), purpose=purpose, **values)
    db.session.execute(statement.on_conflict_do_update(index_elements=["number_hash", "purpose"], set_=values))
    return code


def claim_code(mobile_number: str, purpose: Purpose, code: str) -> bool:
    """Return whether `code` is the good one, and use it up if so.

    The try is counted, the code compared and claimed in a single UPDATE, so of many requests at once no more
    than `MAX_OTP_ATTEMPTS` are compared and no more than one wins. Tries that compared also count against the
    number, whichever code they were at. The caller must commit also when the answer is False: a try that is rolled
    back was not counted.
    """
    is_claimed = _try_code(mobile_number, purpose, code)
    if not is_claimed:
        limits.count_failure()
    return is_claimed


def prune_codes() -> int:
    """Delete some codes that are used or past their life; return how many."""
    return delete_some(OtpCode, or_(OtpCode.expires_at < func.now(), OtpCode.used_at.is_not(None)))


def _try_code(mobile_number: str, purpose: Purpose, code: str) -> bool:
    number_hash = hash_number(mobile_number)
    is_open = (
        OtpCode.number_hash == number_hash,
        OtpCode.purpose == purpose,
        OtpCode.attempts < MAX_OTP_ATTEMPTS,
        OtpCode.expires_at > func.now(),
        OtpCode.used_at.is_(None),
    )
    challenge_id = db.session.scalar(select(OtpCode.challenge_id).where(*is_open))
    hit = None if challenge_id is None else limits.try_take(limits.CODE_TRIES, number_hash)
    if challenge_id is None or hit is None:
        return False
    matches = OtpCode.code_hash == _hash_code(mobile_number, purpose, challenge_id, code)
    claimed: bool | None = db.session.scalar(
        update(OtpCode)
        .where(*is_open, OtpCode.challenge_id == challenge_id)
        .values(attempts=OtpCode.attempts + 1, used_at=case((matches, func.now())))
        .returning(OtpCode.used_at.is_not(None))
        .execution_options(synchronize_session=False)
    )
    if claimed is not False:  # It was right, or others had used up the code while this one waited for the row.
        limits.give_back(hit)
    return bool(claimed)


def _hash_code(mobile_number: str, purpose: Purpose, challenge_id: UUID, code: str) -> bytes:
    return keyed_hash("otp", mobile_number, purpose, str(challenge_id), code)
