"""The caller's own account."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, update

from chatapi import quota
from chatapi.auth.models import User
from chatapi.chatrooms.models import Chatroom
from chatapi.errors import UnauthorizedError
from chatapi.extensions import db
from chatapi.subscriptions.service import current_subscription


@dataclass(frozen=True)
class Profile:
    """An account, what it holds, and the prompts it has used this UTC day."""

    user: User
    chatroom_count: int
    message_count: int
    daily_usage_count: int
    subscription_status: str | None


def read_profile(user_id: UUID) -> Profile:
    """Return the account of that id with its counts. Raises `UnauthorizedError` if it was erased meanwhile."""
    user = db.session.scalars(select(User).where(User.id == user_id)).one_or_none()
    if user is None:
        raise UnauthorizedError
    rooms, messages = db.session.execute(
        select(func.count(), func.coalesce(func.sum(Chatroom.message_count), 0)).where(Chatroom.user_id == user_id)
    ).one()
    subscription = current_subscription(user_id)
    status = None if subscription is None else subscription.status
    return Profile(user, rooms, messages, quota.used_today(user_id), status)


def update_profile(user_id: UUID, fields: dict[str, Any]) -> Profile:
    """Change what `fields` names and return the account."""
    db.session.execute(update(User).where(User.id == user_id).values(**fields, updated_at=func.now()))
    return read_profile(user_id)
