"""Daily usage: how many prompts a number has used today. It is counted where prompts are accepted (`accept_prompt`)."""

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


def limit_reached(used: int, decided_at: datetime) -> DailyLimitReachedError:
    """Return what is answered to a prompt too many, with what there is to know about the limit."""
    resets_at = next_midnight(decided_at)
    limit = current_app.config["BASIC_DAILY_PROMPTS"]
    return DailyLimitReachedError(
        extra={"daily_usage_count": used, "limit": limit, "tier": "basic", "resets_at": rfc3339(resets_at)},
        retry_after=max(1, math.ceil((resets_at - decided_at).total_seconds())),
    )


def next_midnight(now: datetime) -> datetime:
    """Return when the UTC day that `now` is in ends."""
    return now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
