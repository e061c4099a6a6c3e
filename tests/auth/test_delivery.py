"""Codes on their way to an SMS gateway: signed, encrypted while they wait, tried again, gone afterwards."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
from flask import Flask
from sqlalchemy import text

from chatapi.auth.delivery import deliver_otp, take_due_deliveries
from chatapi.extensions import db, in_transaction
from chatapi.replies.sweeper import clean
from tests.auth.support import Gateway, pass_time, running_gateway

KEY = b"the gateway's own secret"


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with running_gateway() as gateway:
        yield gateway


@pytest.fixture
def app(make_app: Callable[..., Flask], gateway: Gateway) -> Iterator[Flask]:
    """An application that delivers by webhook, and an empty outbox."""
    app = make_app(
        OTP_DELIVERY="webhook",
        OTP_WEBHOOK_URL=gateway.url,
        OTP_WEBHOOK_SECRET="whsec_" + base64.b64encode(KEY).decode(),
    )
    with app.app_context():
        db.session.execute(text("DELETE FROM otp_outbox"))
        db.session.commit()
        yield app


def outbox() -> list[Any]:
    rows = list(db.session.execute(text("SELECT * FROM otp_outbox ORDER BY id")))
    db.session.rollback()
    return rows


def request_code(app: Flask, number: str) -> Any:
    answer = app.test_client().post("/auth/send-otp", json={"mobile_number": number})
    assert answer.status_code == 200
    assert "otp" not in answer.get_json()
    return outbox()[-1]


def test_code_is_delivered_signed_and_then_gone(app: Flask, gateway: Gateway, new_number: Callable[[], str]) -> None:
    number = new_number()
    row = request_code(app, number)

    deliver_otp(row.id)

    ((headers, body),) = gateway.received
    sent = json.loads(body)
    assert (sent["mobile_number"], sent["purpose"]) == (number, "login")
    assert headers["webhook-id"] == str(row.id)
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 5
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.digest(KEY, signed, hashlib.sha256)).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    verify = {"mobile_number": number, "otp": sent["otp"]}
    assert app.test_client().post("/auth/verify-otp", json=verify).status_code == 200
    assert outbox() == []


def test_code_is_delivered_under_the_request_that_asked_for_it(
    app: Flask, gateway: Gateway, new_number: Callable[[], str], caplog: pytest.LogCaptureFixture
) -> None:
    gateway.statuses = [503]
    asked = app.test_client().post(
        "/auth/send-otp", json={"mobile_number": new_number()}, headers={"X-Request-ID": "wants-a-code"}
    )
    assert asked.headers["X-Request-ID"] == "wants-a-code"
    (row,) = outbox()

    for _ in range(2):
        structlog.contextvars.clear_contextvars()
        deliver_otp(row.id)
    structlog.contextvars.clear_contextvars()

    assert [headers["x-request-id"] for headers, _ in gateway.received] == ["wants-a-code"] * 2
    said = [record.msg for record in caplog.records if "outbox_id" in record.msg]
    assert [(line["event"], line["request_id"]) for line in said if isinstance(line, dict)] == [
        ("otp_delivery_failed", "wants-a-code"),
        ("otp_delivered", "wants-a-code"),
    ]


def test_code_and_number_are_encrypted_while_they_wait(
    app: Flask, gateway: Gateway, new_number: Callable[[], str]
) -> None:
    number = new_number()
    row = request_code(app, number)

    stored = bytes(row.payload)
    deliver_otp(row.id)

    otp = json.loads(gateway.received[0][1])["otp"]
    assert otp.encode() not in stored
    assert number.encode() not in stored


@pytest.mark.parametrize("status", [500, 503, 404, 302])
def test_code_is_tried_again_when_the_gateway_refuses_it(
    app: Flask, gateway: Gateway, new_number: Callable[[], str], status: int
) -> None:
    gateway.statuses = [status]
    row = request_code(app, new_number())

    deliver_otp(row.id)
    assert [each.attempts for each in outbox()] == [1]
    deliver_otp(row.id)

    assert len(gateway.received) == 2
    assert gateway.received[0][0]["webhook-id"] == gateway.received[1][0]["webhook-id"]
    assert outbox() == []


def test_code_is_due_again_when_it_was_not_delivered(app: Flask, new_number: Callable[[], str]) -> None:
    row = request_code(app, new_number())
    assert in_transaction(lambda: take_due_deliveries(10)) == []
    db.session.execute(text("UPDATE otp_outbox SET due_at = now()"))
    db.session.commit()

    assert in_transaction(lambda: take_due_deliveries(10)) == [row.id]
    assert in_transaction(lambda: take_due_deliveries(10)) == []


def test_code_is_dropped_when_its_life_is_over(app: Flask, gateway: Gateway, new_number: Callable[[], str]) -> None:
    row = request_code(app, new_number())
    db.session.execute(text("UPDATE otp_outbox SET expires_at = now() - interval '1 s', due_at = now()"))
    db.session.commit()

    deliver_otp(row.id)
    assert in_transaction(lambda: take_due_deliveries(10)) == []
    clean()

    assert gateway.received == []
    assert outbox() == []


def test_code_that_was_superseded_is_not_sent(app: Flask, gateway: Gateway, new_number: Callable[[], str]) -> None:
    number = new_number()
    gateway.statuses = [503]
    first = request_code(app, number)
    deliver_otp(first.id)
    pass_time(app, 60)
    second = request_code(app, number)

    for row in (first, second):
        deliver_otp(row.id)

    assert [headers["webhook-id"] for headers, _ in gateway.received] == [str(first.id), str(second.id)]
    assert outbox() == []


def test_codes_of_other_purposes_and_numbers_are_sent_all_the_same(app: Flask, new_number: Callable[[], str]) -> None:
    number = new_number()
    for body in ({"mobile_number": number}, {"mobile_number": number, "purpose": "verification"}):
        assert app.test_client().post("/auth/send-otp", json=body).status_code == 200
    request_code(app, new_number())

    assert len(outbox()) == 3
