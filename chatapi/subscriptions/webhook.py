"""Taking in what Stripe sends: verified on its raw bytes, stored once, sorted, and rung for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID

import structlog
from flask import current_app
from sqlalchemy import select, text

from chatapi.broker import BILLING_QUEUE, ring
from chatapi.errors import BadRequestError
from chatapi.extensions import db, in_transaction
from chatapi.ids import uuid7
from chatapi.request_ids import current_request_id
from chatapi.subscriptions.events import HANDLE_EVENT
from chatapi.subscriptions.gateway import BillingNotConfiguredError, verify_message
from chatapi.subscriptions.models import Subscription
from config_billing import is_live

WATCHED = ("customer.subscription.", "invoice.", "checkout.session.", "customer.deleted")
"""How the types of events begin that can change a tier."""

RING_GRACE_SECONDS = 10
"""How long the sweeper leaves a fresh event alone: the ring after commit is normally enough."""

MAX_ID_LENGTH = 255

log = structlog.get_logger(__name__)

_STORE = text("""
    INSERT INTO stripe_events (
        id, event_id, type, customer_id, status, reason, due_at, stripe_created_at, closed_at, request_id
    ) VALUES (
        :id, :event_id, :type, :customer_id, :status, :reason,
        CASE WHEN :status = 'received' THEN now() + make_interval(secs => :grace) END, :created_at,
        CASE WHEN :status = 'received' THEN NULL ELSE now() END, :request_id
    )
    ON CONFLICT (event_id) DO NOTHING RETURNING id
""")


@dataclass(frozen=True)
class Sorted:
    """Whom an event is about, and why nothing needs to be done about it, if so."""

    customer_id: str | None
    ignored_because: str | None = None


def receive(payload: bytes, signature: str | None) -> None:
    """Take in a message. It is stored when this returns, or was before.

    Raises `InvalidSignatureError`, `BadRequestError`, `BillingNotConfiguredError`; nothing is stored then.
    """
    secrets = current_app.config["STRIPE_WEBHOOK_SECRET"]
    if not secrets:
        raise BillingNotConfiguredError
    event = verify_message(payload, signature, secrets)
    row_id = in_transaction(lambda: _store(event))
    if row_id is not None:
        ring(HANDLE_EVENT, BILLING_QUEUE, row_id)


def _store(event: Mapping[str, Any]) -> UUID | None:
    """Store an event; its row's id if there is something to be done about it that nobody knew of."""
    event_id, kind = _word(event, "id"), _word(event, "type")
    found = _sort(event, kind)
    status = "ignored" if found.ignored_because else "received"
    row = {
        "id": uuid7(),
        "event_id": event_id,
        "type": kind,
        "customer_id": found.customer_id,
        "status": status,
        "reason": found.ignored_because,
        "grace": RING_GRACE_SECONDS,
        "created_at": _created_at(event),
        "request_id": current_request_id(),
    }
    row_id: UUID | None = db.session.scalar(_STORE, row)
    log.info(
        "stripe_event_received",
        stripe_event=event_id,
        type=kind,
        status=status if row_id else "known",
        reason=found.ignored_because,
    )
    return row_id if status == "received" else None


def _word(event: Mapping[str, Any], name: str) -> str:
    word = event.get(name)
    if not _is_word(word):
        raise BadRequestError(f"The event has no {name}")
    return cast("str", word)


def _created_at(event: Mapping[str, Any]) -> datetime:
    try:
        return datetime.fromtimestamp(event["created"], UTC)
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        raise BadRequestError("The event has no time") from None


def _sort(event: Mapping[str, Any], kind: str) -> Sorted:
    data = event.get("data")
    about = data.get("object") if isinstance(data, dict) else None
    if not isinstance(about, dict):
        raise BadRequestError("The event is about nothing")
    customer_id = _id_of(about if about.get("object") == "customer" else about.get("customer"))
    if event.get("livemode") is not is_live(current_app.config["STRIPE_SECRET_KEY"]):
        return Sorted(customer_id, "wrong_livemode")
    if not kind.startswith(WATCHED):
        return Sorted(customer_id, "not_watched")
    if customer_id is None:
        return Sorted(None, "no_customer")
    return Sorted(customer_id, _not_ours(about))


def _not_ours(about: Mapping[str, Any]) -> str | None:
    """Return why an object is no business of ours: the Stripe account may sell other things as well."""
    kind = about.get("object")
    if kind == "checkout.session" and not _is_our_checkout(about):
        return "foreign_checkout"
    if kind == "invoice" and _subscription_of_invoice(about) is None:
        return "not_a_subscription"
    if kind != "subscription":
        return None
    prices = {_id_of(item.get("price")) for item in _items(about)}
    if prices & set(current_app.config["STRIPE_PRICE_ID"]) or _is_known(_id_of(about)):
        return None
    return "foreign_price"


def _is_our_checkout(session: Mapping[str, Any]) -> bool:
    metadata = session.get("metadata")
    return session.get("mode") == "subscription" and isinstance(metadata, dict) and "user_id" in metadata


def _subscription_of_invoice(invoice: Mapping[str, Any]) -> str | None:
    parent = invoice.get("parent")
    details = parent.get("subscription_details") if isinstance(parent, dict) else None
    return _id_of(details.get("subscription")) if isinstance(details, dict) else None


def _items(subscription: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    items = subscription.get("items")
    data = items.get("data") if isinstance(items, dict) else None
    yield from (item for item in (data if isinstance(data, list) else ()) if isinstance(item, dict))


def _is_known(subscription_id: str | None) -> bool:
    query = select(Subscription.id).where(Subscription.stripe_subscription_id == subscription_id)
    return db.session.scalar(query) is not None


def _id_of(found: Any) -> str | None:
    """Return the id of what is an object, or its id already."""
    if isinstance(found, dict):
        found = found.get("id")
    return cast("str", found) if _is_word(found) else None


def _is_word(found: Any) -> bool:
    """Return whether it is text as ids and types are: short, and nothing that PostgreSQL does not store."""
    return isinstance(found, str) and 0 < len(found) <= MAX_ID_LENGTH and found.isascii() and "\0" not in found
