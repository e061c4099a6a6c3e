"""Daily usage: how many prompts a number has used today. The tier is given to it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from http import HTTPStatus
from uuid import UUID

from flask import current_app
from sqlalchemy import Date, LargeBinary, text
from sqlalchemy.orm import Mapped, mapped_column

from chatapi.errors import ChatAPIError
from chatapi.extensions import Base, db
from chatapi.schemas import rfc3339


class DailyUsage(Base):
    """Prompts that a number has used on a UTC day. It hangs on the number's hash, so it outlives the account."""

    __tablename__ = "daily_usage"

    number_hash: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    day: Mapped[date] = mapped_column(Date, primary_key=True)
    used: Mapped[int]


@dataclass(frozen=True)
class Usage:
    """What is used of a UTC day, read at a time within it by the database's clock."""

    used: int
    read_at: datetime
    resets_at: datetime


class DailyLimitReachedError(ChatAPIError):
    """All prompts of the day are used."""

    status = HTTPStatus.TOO_MANY_REQUESTS
    slug = "daily_limit_reached"
    message = "The daily prompts are used up; more from midnight UTC, or with Pro"


# One statement decides and counts: of any number at once, exactly as many pass as are left. The SELECT yields no
# row for a limit of 0, which ON CONFLICT alone would let through once a day.
_CONSUME = text("""
    INSERT INTO daily_usage AS usage (number_hash, day, used)
    SELECT :number_hash, (now() AT TIME ZONE 'UTC')::date, 1 WHERE :daily_limit > 0
    ON CONFLICT (number_hash, day) DO UPDATE SET used = usage.used + 1 WHERE usage.used < :daily_limit
    RETURNING day
""")

_REFUND = text("""
    UPDATE daily_usage SET used = used - 1
    WHERE number_hash = (SELECT number_hash FROM users WHERE id = :user_id) AND day = :day AND used > 0
""")

_LOCK_CHARGE = text("""
    SELECT FROM daily_usage
    WHERE (number_hash, day) = (
        SELECT account.number_hash, message.charged_day
        FROM messages AS message
        JOIN chatrooms AS room ON room.id = message.room_id JOIN users AS account ON account.id = room.user_id
        WHERE message.id = :message_id
    )
    FOR UPDATE
""")

_USED_TODAY = text("""
    SELECT coalesce((
        SELECT used FROM daily_usage
        WHERE number_hash = (SELECT number_hash FROM users WHERE id = :user_id)
          AND day = (now() AT TIME ZONE 'UTC')::date
    ), 0) AS used, now() AS now
""")


def consume(user_id: UUID, number_hash: bytes) -> date:
    """Count one prompt of a Basic user and return the day it was charged to, by the database's clock.

    Raises `DailyLimitReachedError` when none is left.
    """
    limit = current_app.config["BASIC_DAILY_PROMPTS"]
    day: date | None = db.session.scalar(_CONSUME, {"number_hash": number_hash, "daily_limit": limit})
    if day is None:
        raise _limit_reached(user_id, limit)
    return day


def refund(user_id: UUID, day: date) -> None:
    """Give one prompt back to the day it was taken from. The caller sees to it that it happens once."""
    db.session.execute(_REFUND, {"user_id": user_id, "day": day})


def lock_charge(message_id: UUID) -> None:
    """Lock the usage that a message was charged to, if any, before what comes after it in the order of locks."""
    db.session.execute(_LOCK_CHARGE, {"message_id": message_id})


def used_today(user_id: UUID) -> int:
    """Return how many prompts the user has used this UTC day."""
    return read_usage(user_id).used


def read_usage(user_id: UUID) -> Usage:
    """Return how many prompts the user has used this UTC day, and when that ends."""
    row = db.session.execute(_USED_TODAY, {"user_id": user_id}).one()
    return Usage(row.used, row.now, next_midnight(row.now))


def _limit_reached(user_id: UUID, limit: int) -> DailyLimitReachedError:
    usage = read_usage(user_id)
    resets_at = rfc3339(usage.resets_at)
    return DailyLimitReachedError(
        extra={"daily_usage_count": usage.used, "limit": limit, "tier": "basic", "resets_at": resets_at},
        retry_after=max(1, math.ceil((usage.resets_at - usage.read_at).total_seconds())),
    )


def next_midnight(now: datetime) -> datetime:
    """Return when the UTC day that `now` is in ends."""
    return now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
