"""Passwords of accounts: signing in with one, changing it, setting a new one with a code.

Hashing takes its time on purpose, so it is done between transactions: what was read before it is held against what
is there after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from uuid import UUID

from sqlalchemy import exists, func, select

from chatapi.auth import limits
from chatapi.auth.models import IS_USABLE, Session, User
from chatapi.auth.otp import claim_code
from chatapi.auth.passwords import fault_of_password, hash_password, needs_rehash, verify_password
from chatapi.auth.service import find_verified
from chatapi.auth.sessions import end_sessions
from chatapi.errors import BadRequestError, UnauthorizedError, ValidationFailedError
from chatapi.extensions import db
from chatapi.keys import hash_number


class InvalidCredentialsError(UnauthorizedError):
    """One answer for a wrong password, an unknown number, and an account without a password."""

    status = HTTPStatus.UNAUTHORIZED
    slug = "invalid_credentials"
    message = "Mobile number or password are not right"


class WrongPasswordError(BadRequestError):
    """The current password that was given is not it. 400, as the token is good: nobody is to be signed out for it."""

    slug = "invalid_credentials"
    message = "The current password is not right"


@dataclass(frozen=True)
class PasswordCheck:
    """A try at a password that is counted already, and the hash to hold it against: None if there is none."""

    mobile_number: str
    password_hash: str | None
    hit: limits.Hit

    def verify(self, password: str) -> bool:
        """Return whether the password is right. It takes as long without a hash as with one."""
        return verify_password(self.password_hash, password)


def begin_check(mobile_number: str) -> PasswordCheck:
    """Count a try at the number's password before it is looked at.

    Raises `RateLimitedError` when there have been too many, whether or not the number is registered.
    """
    hit = limits.take(limits.PASSWORD_TRIES, hash_number(mobile_number))
    query = select(User.password_hash).where(User.mobile_number == mobile_number, *IS_USABLE)
    password_hash = db.session.scalar(query)
    return PasswordCheck(mobile_number, password_hash, hit)


def finish_login(check: PasswordCheck, new_hash: str | None) -> User | None:
    """Uncount a try that was right and return the account, locked, `new_hash` stored if there is one.

    None if the account, or its password, is another one by now.
    """
    limits.give_back(check.hit)
    user = find_verified(check.mobile_number)
    if user is None or user.password_hash != check.password_hash:
        return None
    if new_hash is not None:
        user.password_hash = new_hash
    return user


def renewed_hash(check: PasswordCheck, password: str) -> str | None:
    """Return a new hash of the right password if the stored one was made with other parameters than today's."""
    if check.password_hash is None or not needs_rehash(check.password_hash):
        return None
    return hash_password(password)


def read_account(user_id: UUID) -> User:
    """Return the account of that id. Raises `UnauthorizedError` if it was erased meanwhile."""
    user = db.session.scalars(select(User).where(User.id == user_id)).one_or_none()
    if user is None:
        raise UnauthorizedError
    return user


def replace_password(user_id: UUID, session_id: UUID, old_hash: str | None, new_hash: str) -> bool:
    """Store a new password and end the user's other sessions; False if the password is not the old one any more.

    Raises `UnauthorizedError` if the session has ended while the passwords were hashed.
    """
    user = db.session.scalars(
        select(User).where(User.id == user_id).with_for_update().execution_options(populate_existing=True)
    ).one_or_none()
    # Asked under the user's lock: whatever ends all sessions has it too.
    if user is None or not db.session.scalar(select(exists().where(Session.id == session_id))):
        raise UnauthorizedError
    if user.password_hash != old_hash:
        return False
    user.password_hash = new_hash
    user.updated_at = func.now()
    db.session.flush()
    end_sessions(user_id, but=session_id)
    return True


def reset_password(mobile_number: str, code: str, new_hash: str) -> bool:
    """Store a new password and end all sessions of the number's account, if the code is good.

    False if it is not, or if there is no such account; it must be committed all the same, as the try counts.
    """
    if not claim_code(mobile_number, "password_reset", code):
        return False
    limits.clear(limits.PASSWORD_TRIES, hash_number(mobile_number))
    user = find_verified(mobile_number)
    if user is None:
        return False
    user.password_hash = new_hash
    user.updated_at = func.now()
    db.session.flush()
    end_sessions(user.id)
    return True


def require_good_password(field: str, password: str, mobile_number: str) -> None:
    """Raise `ValidationFailedError` naming `field` if the password is one that others would try first."""
    if fault := fault_of_password(password, mobile_number):
        raise ValidationFailedError(errors={field: [fault]})
