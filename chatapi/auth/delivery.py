"""How a code reaches its owner: echoed in the answer, or posted to an SMS gateway from an outbox."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import requests
import structlog
from cryptography.fernet import Fernet
from flask import current_app
from sqlalchemy import delete, func, select, update

from chatapi.auth.models import OutboxMessage
from chatapi.auth.otp import OTP_TTL_SECONDS, Purpose
from chatapi.broker import ring
from chatapi.extensions import db, in_transaction
from chatapi.ids import uuid7
from chatapi.keys import derived_key

GATEWAY_TIMEOUT_SECONDS = (3, 10)
RETRY_SECONDS = 15
"""When a code that was not delivered is due again: longer than one attempt can take."""

DELIVER_OTP = "deliver_otp"
CHORES_QUEUE = "chores"

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Dispatched:
    """A code that was handed over: to the caller itself (`echo`), or to the outbox row to be rung after commit."""

    echo: str | None = None
    outbox_id: UUID | None = None


def dispatch(mobile_number: str, purpose: Purpose, code: str) -> Dispatched:
    """Hand a code over to the configured delivery, within the caller's transaction."""
    if current_app.config["OTP_DELIVERY"] == "echo":
        return Dispatched(echo=code)
    body = json.dumps({"mobile_number": mobile_number, "purpose": purpose, "otp": code})
    message = OutboxMessage(
        id=uuid7(),
        payload=_cipher().encrypt(body.encode()),
        due_at=func.now() + timedelta(seconds=RETRY_SECONDS),
        expires_at=func.now() + timedelta(seconds=OTP_TTL_SECONDS),
    )
    db.session.add(message)
    return Dispatched(outbox_id=message.id)


def ring_delivery(outbox_id: UUID) -> None:
    """Wake a worker up to deliver an outbox row that is committed."""
    ring(DELIVER_OTP, CHORES_QUEUE, outbox_id)


def deliver_otp(outbox_id: UUID) -> None:
    """Post one code to the gateway. What fails stays in the outbox, where the sweeper finds it when due again.

    Safe to run twice: the gateway sees the same `webhook-id` and can tell. No transaction is open while the
    gateway is waited for.
    """
    payload = in_transaction(lambda: _take(outbox_id))
    if payload is None:
        return
    body = _cipher().decrypt(payload)
    try:
        response = requests.post(
            current_app.config["OTP_WEBHOOK_URL"],
            data=body,
            headers={"Content-Type": "application/json", **_signature_headers(outbox_id, body)},
            timeout=GATEWAY_TIMEOUT_SECONDS,
            allow_redirects=False,
            stream=True,  # What the gateway has to say is not waited for.
        )
        response.close()
    except requests.RequestException as error:
        log.warning("otp_delivery_failed", outbox_id=str(outbox_id), reason=type(error).__name__)
        return
    if response.status_code // 100 != 2:
        log.warning("otp_delivery_failed", outbox_id=str(outbox_id), status=response.status_code)
        return
    in_transaction(lambda: db.session.execute(delete(OutboxMessage).where(OutboxMessage.id == outbox_id)))
    log.info("otp_delivered", outbox_id=str(outbox_id))


def take_due_deliveries(limit: int) -> list[UUID]:
    """Return up to `limit` rows that are due, undelivered and still of use, to be rung after commit."""
    due = (
        select(OutboxMessage.id)
        .where(OutboxMessage.due_at <= func.now(), OutboxMessage.expires_at > func.now())
        .order_by(OutboxMessage.due_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    statement = (
        update(OutboxMessage)
        .where(OutboxMessage.id.in_(due))
        .values(due_at=func.now() + timedelta(seconds=RETRY_SECONDS))
        .returning(OutboxMessage.id)
        .execution_options(synchronize_session=False)
    )
    return list(db.session.scalars(statement))


def _take(outbox_id: UUID) -> bytes | None:
    """Count an attempt; return the encrypted code, or None when it was delivered or is too old."""
    payload: bytes | None = db.session.scalar(
        update(OutboxMessage)
        .where(OutboxMessage.id == outbox_id, OutboxMessage.expires_at > func.now())
        .values(attempts=OutboxMessage.attempts + 1, due_at=func.now() + timedelta(seconds=RETRY_SECONDS))
        .returning(OutboxMessage.payload)
        .execution_options(synchronize_session=False)
    )
    return payload


def _cipher() -> Fernet:
    return Fernet(base64.urlsafe_b64encode(derived_key("otp-outbox")))


def _signature_headers(outbox_id: UUID, body: bytes) -> dict[str, str]:
    """Return the headers of Standard Webhooks 1.0: id, timestamp, and an HMAC over both and the body."""
    secret: str = current_app.config["OTP_WEBHOOK_SECRET"]
    key = base64.b64decode(secret.removeprefix("whsec_")) if secret.startswith("whsec_") else secret.encode()
    timestamp = str(int(time.time()))
    signature = hmac.digest(key, f"{outbox_id}.{timestamp}.".encode() + body, hashlib.sha256)
    return {
        "webhook-id": str(outbox_id),
        "webhook-timestamp": timestamp,
        "webhook-signature": "v1," + base64.b64encode(signature).decode(),
    }
