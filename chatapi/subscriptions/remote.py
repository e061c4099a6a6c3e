"""What Stripe has, as our own small objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any


@dataclass(frozen=True)
class RemoteCustomer:
    """A customer. `user_id` is what we have noted with it: whose it is."""

    id: str
    is_deleted: bool
    user_id: str | None

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> RemoteCustomer:
        """Return what is in Stripe's object."""
        user_id = (found.get("metadata") or {}).get("user_id")
        return cls(found["id"], bool(found.get("deleted")), user_id)


@dataclass(frozen=True)
class RemoteCheckout:
    """A checkout session; `status` is open, complete or expired."""

    id: str
    status: str
    url: str | None
    expires_at: datetime

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> RemoteCheckout:
        """Return what is in Stripe's object."""
        return cls(found["id"], found["status"], found.get("url"), datetime.fromtimestamp(found["expires_at"], UTC))


@dataclass(frozen=True)
class RemoteSubscription:
    """A subscription; `status` is Stripe's word. `ends_at` is when it will end, if it is to."""

    id: str
    customer_id: str
    status: str
    price_ids: tuple[str, ...]
    started_at: datetime | None
    ended_at: datetime | None
    current_period_start: datetime | None
    current_period_end: datetime | None
    cancels_at_period_end: bool
    ends_at: datetime | None

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> RemoteSubscription:
        """Return what is in Stripe's object."""
        items = found["items"]["data"]
        starts = [item["current_period_start"] for item in items if item.get("current_period_start")]
        ends = [item["current_period_end"] for item in items if item.get("current_period_end")]
        period_end = max(ends, default=None)
        cancel_at = found.get("cancel_at") or (period_end if found.get("cancel_at_period_end") else None)
        return cls(
            id=found["id"],
            customer_id=found["customer"],
            status=found["status"],
            price_ids=tuple(item["price"]["id"] for item in items),
            started_at=time_of(found.get("start_date")),
            ended_at=time_of(found.get("ended_at")),
            current_period_start=time_of(min(starts, default=None)),
            current_period_end=time_of(period_end),
            cancels_at_period_end=bool(found.get("cancel_at_period_end")),
            ends_at=time_of(cancel_at),
        )

    @property
    def has_end(self) -> bool:
        """Whether it runs, and is to end some day."""
        return self.ends_at is not None and self.ended_at is None

    @property
    def ends_with_period(self) -> bool:
        """Whether it runs, and nothing more will be paid for it."""
        if self.ends_at is None or self.ended_at is not None:
            return False
        return self.current_period_end is None or self.ends_at <= self.current_period_end


def time_of(seconds: int | None) -> datetime | None:
    """Return Stripe's time, which is in seconds since 1970."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
