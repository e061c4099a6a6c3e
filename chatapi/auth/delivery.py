"""How a code reaches its owner: echoed in the answer, or through an outbox by the configured gateway."""

from __future__ import annotations

import base64
import json
import traceback
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import structlog
from cryptography.fernet import Fernet
from flask import current_app
from sqlalchemy import Row, delete, func, update

from chatapi.auth.gateways import DeliveryFailedError, OtpMessage, configured_gateway
from chatapi.auth.models import OutboxMessage
from chatapi.auth.otp import OTP_TTL_SECONDS, Purpose
from chatapi.broker import CHORES_QUEUE, ring
from chatapi.extensions import db, delete_some, in_transaction, take_due
from chatapi.ids import uuid7
from chatapi.keys import derived_key, hash_number
from chatapi.request_ids import continue_request, current_request_id

RETRY_SECONDS = 15
"""When a code that was not delivered is due again: longer than one attempt can take."""

DELIVER_OTP = "deliver_otp"

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
    number_hash = hash_number(mobile_number)
    forget_deliveries(number_hash, purpose)
    message = OutboxMessage(
        id=uuid7(),
        number_hash=number_hash,
        purpose=purpose,
        payload=_seal(mobile_number, purpose, code),
        due_at=func.now() + timedelta(seconds=RETRY_SECONDS),
        expires_at=func.now() + timedelta(seconds=OTP_TTL_SECONDS),
        request_id=current_request_id(),
    )
    db.session.add(message)
    return Dispatched(outbox_id=message.id)


def ring_delivery(outbox_id: UUID) -> None:
    """Wake a worker up to deliver an outbox row that is committed."""
    ring(DELIVER_OTP, CHORES_QUEUE, outbox_id)


def deliver_otp(outbox_id: UUID) -> None:
    """Hand one code to the gateway. What fails stays in the outbox, where the sweeper finds it when due again.

    Safe to run twice: the gateway is given the same `message_id` and can tell. No transaction is open while the
    gateway is waited for.
    """
    taken = in_transaction(lambda: _take(outbox_id))
    if taken is None:
        return
    continue_request(taken.request_id)
    try:
        configured_gateway().send(_open(outbox_id, taken.payload))
    except DeliveryFailedError as error:
        log.warning("otp_delivery_failed", outbox_id=str(outbox_id), reason=error.reason, status=error.status)
        return
    except Exception as error:  # noqa: BLE001 - Dramatiq would log its text, which may quote the number or the code.
        where = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]
        log.error("otp_delivery_broken", outbox_id=str(outbox_id), reason=type(error).__name__, where=where)  # noqa: TRY400
        return
    in_transaction(lambda: db.session.execute(delete(OutboxMessage).where(OutboxMessage.id == outbox_id)))
    log.info("otp_delivered", outbox_id=str(outbox_id))


def take_due_deliveries(limit: int) -> list[UUID]:
    """Return up to `limit` rows that are due, undelivered and still of use, to be rung after commit."""
    return take_due(OutboxMessage, limit, RETRY_SECONDS, OutboxMessage.expires_at > func.now())


def forget_deliveries(number_hash: bytes, purpose: Purpose | None = None) -> None:
    """Delete what waits to be delivered to a number, of one purpose or all: codes that are void are not sent."""
    statement = delete(OutboxMessage).where(OutboxMessage.number_hash == number_hash)
    if purpose is not None:
        statement = statement.where(OutboxMessage.purpose == purpose)
    db.session.execute(statement.execution_options(synchronize_session=False))


def prune_outbox() -> int:
    """Delete some codes that were not delivered within their life; return how many."""
    return delete_some(OutboxMessage, OutboxMessage.expires_at < func.now())


def _take(outbox_id: UUID) -> Row[bytes, str | None] | None:
    """Count an attempt; return the encrypted code and who asked for it, None when it was delivered or is too old."""
    return db.session.execute(
        update(OutboxMessage)
        .where(OutboxMessage.id == outbox_id, OutboxMessage.expires_at > func.now())
        .values(attempts=OutboxMessage.attempts + 1, due_at=func.now() + timedelta(seconds=RETRY_SECONDS))
        .returning(OutboxMessage.payload, OutboxMessage.request_id)
        .execution_options(synchronize_session=False)
    ).one_or_none()


def _seal(mobile_number: str, purpose: Purpose, code: str) -> bytes:
    content = {"mobile_number": mobile_number, "purpose": purpose, "otp": code}
    return _cipher().encrypt(json.dumps(content).encode())


def _open(outbox_id: UUID, payload: bytes) -> OtpMessage:
    content = json.loads(_cipher().decrypt(payload))
    return OtpMessage(outbox_id, content["mobile_number"], content["purpose"], content["otp"])


def _cipher() -> Fernet:
    return Fernet(base64.urlsafe_b64encode(derived_key("otp-outbox")))
