"""Everything held about a user, as one JSON document, written piece by piece."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import select

from chatapi.auth import audit
from chatapi.auth.models import AuthLimit, OtpCode, Session, User
from chatapi.chatrooms.models import Chatroom, IdempotencyKey, Message, is_owned
from chatapi.extensions import Base, db, in_transaction
from chatapi.keys import hash_number
from chatapi.quota import DailyUsage
from chatapi.schemas import rfc3339
from chatapi.subscriptions.models import BillingCustomer, StripeEvent, Subscription

ROOMS_AT_ONCE = 50
MESSAGES_AT_ONCE = 200
SUBSCRIPTION_FIELDS = (
    "id",
    "stripe_subscription_id",
    "status",
    "price_id",
    "cancel_at_period_end",
    "started_at",
    "ended_at",
    "current_period_end",
    "pro_until",
    "created_at",
)
STRIPE_EVENT_FIELDS = ("event_id", "type", "status", "reason", "stripe_created_at", "received_at", "closed_at")


def write_account(account: dict[str, Any], user: User) -> Iterator[str]:
    """Yield the document as it is read: `account` as the API shows it, and all that hangs on `user`.

    Each part is read in a short transaction of its own: no connection is held while a slow client reads. So it is
    of no single moment; what is deleted meanwhile is missing.
    """
    head = {
        "exported_at": rfc3339(datetime.now(UTC)),
        "user": {**account, "has_password": user.password_hash is not None, "verified_at": _plain(user.verified_at)},
        **in_transaction(lambda: _belongings(user)),
    }
    yield json.dumps(head, ensure_ascii=False)[:-1] + ', "chatrooms": ['
    for index, room in enumerate(_rooms(user.id)):
        yield ("," if index else "") + _dump(room)[:-1] + ', "messages": ['
        for page_index, page in enumerate(_message_pages(room.id)):
            yield ("," if page_index else "") + ",".join(map(_dump, page))
        yield "]}"
    yield "]}"


def _belongings(user: User) -> dict[str, Any]:
    """Return what there is little of: sessions, usage, codes, limits, keys, what operators did, subscriptions."""
    number_hash = hash_number(user.mobile_number)
    sessions = db.session.scalars(select(Session).where(Session.user_id == user.id).order_by(Session.id)).all()
    # A number changes hands: what was counted and done before this account is not its owner's to see.
    since = user.created_at.astimezone(UTC)
    usage = db.session.scalars(
        select(DailyUsage)
        .where(DailyUsage.number_hash == user.number_hash, DailyUsage.day >= since.date())
        .order_by(DailyUsage.day)
    ).all()
    codes = db.session.scalars(select(OtpCode).where(OtpCode.number_hash == number_hash)).all()
    limits = db.session.scalars(select(AuthLimit).where(AuthLimit.subject == number_hash)).all()
    keys = db.session.scalars(select(IdempotencyKey).where(IdempotencyKey.user_id == user.id)).all()
    customers = db.session.scalars(select(BillingCustomer).where(BillingCustomer.user_id == user.id)).all()
    subscriptions = db.session.scalars(select(Subscription).where(Subscription.user_id == user.id)).all()
    told = db.session.scalars(
        select(StripeEvent)
        .where(StripeEvent.customer_id.in_([each.stripe_customer_id for each in customers]))
        .order_by(StripeEvent.id)
    ).all()
    events = [event for event in audit.list_events(number_hash) if event.created_at >= since]
    return {
        "sessions": [_fields(each, "id", "created_at", "refreshed_at", "expires_at") for each in sessions],
        "daily_usage": [_fields(each, "day", "used") for each in usage],
        "codes": [_fields(each, "purpose", "created_at", "expires_at", "used_at") for each in codes],
        "sign_in_limits": [{"name": each.name, "counted_at": [rfc3339(hit) for hit in each.hits]} for each in limits],
        "idempotency_keys": [_fields(each, "key", "created_at") for each in keys],
        "audit": [_fields(each, "action", "created_at") for each in events],
        "billing": [_fields(each, "stripe_customer_id", "checkout_session_id", "created_at") for each in customers],
        "subscriptions": [_fields(each, *SUBSCRIPTION_FIELDS) for each in subscriptions],
        "stripe_events": [_fields(each, *STRIPE_EVENT_FIELDS) for each in told],
    }


_HIDDEN = {"user_id", "former_user_id", "room_id", "text_token"}
"""What says only how we store it."""


def _shown(model: type[Base]) -> list[Any]:
    return [column for column in model.__table__.columns if column.key not in _HIDDEN]


def _rooms(user_id: UUID) -> Iterator[Any]:
    last: UUID | None = None
    while True:
        query = select(*_shown(Chatroom)).where(Chatroom.user_id == user_id).order_by(Chatroom.id).limit(ROOMS_AT_ONCE)
        rooms = _read(query if last is None else query.where(Chatroom.id > last))
        yield from rooms
        if len(rooms) < ROOMS_AT_ONCE:
            return
        last = rooms[-1].id


def _message_pages(room_id: UUID) -> Iterator[Sequence[Any]]:
    last = 0
    while True:
        query = select(*_shown(Message)).where(Message.room_id == room_id, Message.seq > last, is_owned(room_id))
        page = _read(query.order_by(Message.seq).limit(MESSAGES_AT_ONCE))
        if page:
            yield page
        if len(page) < MESSAGES_AT_ONCE:
            return
        last = page[-1].seq


def _read(query: Any) -> Sequence[Any]:
    return in_transaction(lambda: db.session.execute(query).all())


def _dump(row: Any) -> str:
    return json.dumps({name: _plain(value) for name, value in row._mapping.items()}, ensure_ascii=False)  # noqa: SLF001 - SQLAlchemy's name for it


def _fields(row: Any, *names: str) -> dict[str, Any]:
    return {name: _plain(getattr(row, name)) for name in names}


def _plain(value: Any) -> Any:
    """Return `value` as JSON has it: times as RFC 3339, ids and days as text."""
    if isinstance(value, datetime):
        return rfc3339(value)
    return value if isinstance(value, str | int | bool | None) else str(value)
