"""Erasing an account."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

from sqlalchemy import delete, select

from chatapi.auth.delivery import forget_deliveries
from chatapi.auth.models import OtpCode, User
from chatapi.database_waits import patient_statements
from chatapi.extensions import db
from chatapi.keys import hash_number
from chatapi.subscriptions.closures import close_account

ERASE_TIMEOUT_SECONDS = 120
"""An account may hold very many messages, and nothing of it may be left."""

BEFORE_ERASE: tuple[Callable[[User], None], ...] = (close_account,)
"""Called with the account, its row locked, before it goes, in the transaction that erases it. Here a feature notes
what it must still do elsewhere afterwards, in a row that does not hang on the account, such as a subscription to be
cancelled at the payment provider. What it raises keeps the account."""


def erase_account(user_id: UUID) -> bool:
    """Delete an account with its sessions, sign-ups, codes, rooms and messages; False if there is none.

    What outlives it names nobody, being keyed by a hash of the number: today's prompt count and the limits of
    sign-in, so that deleting an account buys nothing, and the audit log.
    """
    with patient_statements(ERASE_TIMEOUT_SECONDS):
        return _erase(user_id)


def _erase(user_id: UUID) -> bool:
    # Codes before the user, as signing in locks them.
    mobile_number = db.session.scalar(select(User.mobile_number).where(User.id == user_id))
    if mobile_number is not None:
        number_hash = hash_number(mobile_number)
        db.session.execute(delete(OtpCode).where(OtpCode.number_hash == number_hash))
        forget_deliveries(number_hash)
    user = db.session.scalars(
        select(User).where(User.id == user_id).with_for_update().execution_options(populate_existing=True)
    ).one_or_none()
    if user is None:
        return False
    for hook in BEFORE_ERASE:
        hook(user)
    db.session.flush()
    db.session.execute(delete(User).where(User.id == user_id).execution_options(synchronize_session=False))
    return True
