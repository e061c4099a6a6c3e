"""Who takes a code to its owner's phone: the gateways, by the values of `OTP_DELIVERY` that need one."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol
from uuid import UUID

import requests
from flask import current_app

from chatapi.auth.otp import OTP_TTL_SECONDS, Purpose
from chatapi.upstream.adapter import UpstreamAdapter, session_by
from chatapi.upstream.calls import UpstreamCall

GATEWAY_TIMEOUT_SECONDS = (3, 10)
"""To connect, and from one sign of life to the next."""
GATEWAY_SECONDS = 14
"""For all of it, less than until the next try."""

_CODE_NAMES: dict[Purpose, str] = {
    "login": "sign-in code",
    "verification": "verification code",
    "password_reset": "code to set a new password",
}


@dataclass(frozen=True)
class OtpMessage:
    """A code for a number. `message_id` is the same on every try, so a gateway can tell a repetition."""

    message_id: UUID
    mobile_number: str = field(repr=False)
    purpose: Purpose
    code: str = field(repr=False)


class DeliveryFailedError(Exception):
    """The gateway did not take the message; it is tried again while the code is good.

    `reason` goes to logs: a constant text or the type of an error, never a number, a code or an error's own text.
    `status` is the gateway's HTTP status, or None when there was no answer.
    """

    def __init__(self, reason: str, *, status: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status


class Gateway(Protocol):
    """Something that takes codes to phones; called from many threads at once, with no transaction open."""

    def send(self, message: OtpMessage) -> None:
        """Hand `message` over, or raise `DeliveryFailedError`.

        The same message may come again, even one that was taken: a worker can die before it notes that.
        """
        ...


class WebhookGateway:
    """Posts a code to `OTP_WEBHOOK_URL`, signed with `OTP_WEBHOOK_SECRET`."""

    def send(self, message: OtpMessage) -> None:
        """Post `message` as JSON under the headers of Standard Webhooks."""
        content = {"mobile_number": message.mobile_number, "purpose": message.purpose, "otp": message.code}
        body = json.dumps(content).encode()
        headers = {"Content-Type": "application/json", **_signature_headers(message.message_id, body)}
        post_to_gateway(current_app.config["OTP_WEBHOOK_URL"], data=body, headers=headers)


GATEWAYS: dict[str, Gateway] = {
    "webhook": WebhookGateway(),
}
"""By the value of `OTP_DELIVERY`. `echo` needs none."""


def configured_gateway() -> Gateway:
    """Return the gateway that `OTP_DELIVERY` names.

    Raises `DeliveryFailedError` if it names none: a code may have been left by a delivery that was configured before.
    """
    gateway = GATEWAYS.get(current_app.config["OTP_DELIVERY"])
    if gateway is None:
        raise DeliveryFailedError("no_gateway")
    return gateway


def post_to_gateway(
    url: str,
    *,
    data: bytes | Mapping[str, str],
    headers: Mapping[str, str] | None = None,
    auth: tuple[str, str] | None = None,
) -> None:
    """POST `data`, a mapping as a form; any answer but a 2xx, and none in time, raises `DeliveryFailedError`.

    No redirect is followed: it would take number and code to where nobody configured it. `X-Request-ID` names the
    request that asked for the code.
    """
    call = UpstreamCall(GATEWAY_SECONDS)
    try:
        with call, session_by(UpstreamAdapter()) as session:
            response = session.post(
                url,
                data=data,
                headers=headers,
                auth=auth,
                timeout=GATEWAY_TIMEOUT_SECONDS,
                allow_redirects=False,
                stream=True,  # What the gateway has to say is not waited for.
            )
            response.close()
    except requests.RequestException as error:
        raise DeliveryFailedError(type(error).__name__) from None
    if call.is_expired:  # What came of its head looks whole when the connection was shut.
        raise DeliveryFailedError("ReadTimeout")
    if response.status_code // 100 != 2:
        raise DeliveryFailedError("refused", status=response.status_code)


def sms_text(message: OtpMessage) -> str:
    """Return what a person reads: plain ASCII and shorter than the 160 characters that one SMS holds (GSM 03.38)."""
    name, minutes = _CODE_NAMES[message.purpose], OTP_TTL_SECONDS // 60
    return f"{message.code} is your {name}, good for {minutes} minutes from when you asked. Never tell it to anybody."


def _signature_headers(message_id: UUID, body: bytes) -> dict[str, str]:
    """Return the headers of Standard Webhooks 1.0: id, timestamp, and an HMAC over both and the body."""
    secret: str = current_app.config["OTP_WEBHOOK_SECRET"]
    key = base64.b64decode(secret.removeprefix("whsec_")) if secret.startswith("whsec_") else secret.encode()
    timestamp = str(int(time.time()))
    signature = hmac.digest(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256)
    return {
        "webhook-id": str(message_id),
        "webhook-timestamp": timestamp,
        "webhook-signature": "v1," + base64.b64encode(signature).decode(),
    }
