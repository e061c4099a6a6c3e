"""Gateways: docs/sms-delivery.md held to its word, by its own code; and what becomes of a code that none takes."""

from __future__ import annotations

import base64
import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import parse_qs
from uuid import UUID

import pytest
from flask import Flask
from sqlalchemy import text

from chatapi.auth import gateways
from chatapi.auth.delivery import RETRY_SECONDS, deliver_otp, take_due_deliveries
from chatapi.auth.gateways import GATEWAYS, Gateway, OtpMessage, sms_text
from chatapi.auth.otp import OTP_TTL_SECONDS
from chatapi.dev.embedded import free_port
from chatapi.dev.standin_http import StandinHandler, StandinServer
from chatapi.extensions import db, in_transaction
from config import OTP_DELIVERIES, ROOT

DOCS = (ROOT / "docs" / "sms-delivery.md").read_text()
VERIFIER, TWILIO_CLASS, TWILIO_ENTRY, TWILIO_DELIVERY, TWILIO_FIELDS = re.findall(
    r"```python\n(.*?)```", DOCS, re.DOTALL
)

SECRET = "whsec_" + base64.b64encode(b"the gateway's own secret").decode()
TWILIO = {
    "TWILIO_ACCOUNT_SID": "AC" + "0a" * 16,
    "TWILIO_AUTH_TOKEN": "a token of Twilio's",
    "TWILIO_FROM": "+15550001111",
}


class SmsServer(StandinServer):
    """What takes codes: it answers by `faults` first, then by `answer`, and keeps all that came in."""

    def __init__(self, answer: Callable[[str, dict[str, str], bytes], tuple[int, object]]) -> None:
        super().__init__(0, SmsHandler)
        self.answer = answer
        self.faults: list[int | str] = []
        self.received: list[tuple[dict[str, str], bytes]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()
        self.cut_connections()


class SmsHandler(StandinHandler):
    server: SmsServer

    def do_POST(self) -> None:  # noqa: N802 - the base class looks it up by this name.
        body = self.read_body()
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.received.append((headers, body))
        fault = self.server.faults.pop(0) if self.server.faults else None
        if fault == "hang":
            self.wait(60)
        elif fault == "redirect":
            self.send_response(307)
            self.send_header("Location", f"{self.server.url}/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif fault == "hang in the body":
            self.start_answer(200, "text/plain", length=100)
            self.wfile.flush()
            self.wait(60)
        elif fault == "drip in the head":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Filler: ")
            while not self.wait(0.1):
                self.wfile.write(b"x")
                self.wfile.flush()
        elif isinstance(fault, int):
            self.send_json(fault, {"code": 20000 + fault, "message": "Not now", "status": fault})
        else:
            self.send_json(*self.server.answer(self.url_path(), headers, body))


def answer_as_twilio(path: str, headers: dict[str, str], body: bytes) -> tuple[int, object]:
    """Answer as `POST /2010-04-01/Accounts/{AccountSid}/Messages.json` does."""
    account, token = TWILIO["TWILIO_ACCOUNT_SID"], TWILIO["TWILIO_AUTH_TOKEN"]
    if path != f"/2010-04-01/Accounts/{account}/Messages.json":
        return 404, {"code": 20404, "message": "The requested resource was not found", "status": 404}
    if headers.get("authorization") != "Basic " + base64.b64encode(f"{account}:{token}".encode()).decode():
        return 401, {"code": 20003, "message": "Authenticate", "status": 401}
    form = form_of(body) if headers["content-type"] == "application/x-www-form-urlencoded" else {}
    if not re.fullmatch(r"\+[1-9][0-9]{1,14}", form.get("To", "")):
        return 400, {"code": 21211, "message": "Invalid 'To' Phone Number", "status": 400}
    if ("From" in form) == ("MessagingServiceSid" in form):
        return 400, {"code": 21603, "message": "A 'From' phone number is required", "status": 400}
    if not re.fullmatch("MG[0-9a-f]{32}", form.get("MessagingServiceSid", "MG" + "0" * 32)):
        return 400, {"code": 21701, "message": "The Messaging Service does not exist", "status": 400}
    if not 0 < len(form.get("Body", "")) <= 1600:
        return 400, {"code": 21602, "message": "Message body is required", "status": 400}
    if not 1 <= int(form.get("ValidityPeriod", "36000")) <= 36000:
        return 400, {"code": 90007, "message": "Invalid validity period value", "status": 400}
    return 201, {"sid": "SM" + "1b" * 16, "account_sid": account, "status": "queued", "error_code": None}


def form_of(body: bytes) -> dict[str, str]:
    return {name: value for name, (value,) in parse_qs(body.decode(), strict_parsing=True).items()}


def edited_settings() -> ModuleType:
    """Return config.py as it is once the page's two edits to it are made."""
    source = (ROOT / "config.py").read_text()
    for anchor, addition in (
        (r'^    "webhook": \(.*\),\n', TWILIO_DELIVERY),
        (r"^    OTP_WEBHOOK_SECRET = .*\n", TWILIO_FIELDS),
    ):
        (line,) = re.findall(anchor, source, re.MULTILINE)
        source = source.replace(line, line + addition)
    module = ModuleType("config_with_twilio")
    module.__file__ = str(ROOT / "config.py")
    exec(compile(source, "config_with_twilio", "exec"), module.__dict__)  # noqa: S102 - the page's own code.
    return module


def documented_gateway(api: str) -> Gateway:
    """Return the page's gateway as its class and its entry in `GATEWAYS` make it, but sending to `api`."""
    namespace = dict(vars(gateways))
    exec(compile(TWILIO_CLASS, "docs/sms-delivery.md", "exec"), namespace)  # noqa: S102 - the page's own code.
    entries = eval("{" + TWILIO_ENTRY + "}", namespace)  # noqa: S307 - as above.
    assert list(entries) == ["twilio"]
    assert entries["twilio"].api == "https://api.twilio.com/2010-04-01"
    entries["twilio"].api = api
    gateway: Gateway = entries["twilio"]
    return gateway


def verifier() -> Callable[[str, dict[str, str], bytes], bool]:
    namespace: dict[str, Any] = {}
    exec(compile(VERIFIER, "docs/sms-delivery.md", "exec"), namespace)  # noqa: S102 - the page's own code.
    is_genuine: Callable[[str, dict[str, str], bytes], bool] = namespace["is_genuine"]
    return is_genuine


def outbox() -> list[Any]:
    rows = list(db.session.execute(text("SELECT * FROM otp_outbox ORDER BY id")))
    db.session.rollback()
    return rows


def empty_outbox() -> None:
    db.session.execute(text("DELETE FROM otp_outbox"))
    db.session.commit()


def request_code(app: Flask, number: str) -> UUID:
    """Ask for a code; return the id of the outbox row that it waits in."""
    answer = app.test_client().post("/auth/send-otp", json={"mobile_number": number})
    assert answer.status_code == 200
    assert "otp" not in answer.get_json()
    outbox_id: UUID = outbox()[-1].id
    return outbox_id


def deliver_when_due() -> None:
    """Let the retry's time come, and deliver what the sweeper would ring for."""
    assert in_transaction(lambda: take_due_deliveries(10)) == []
    db.session.execute(text("UPDATE otp_outbox SET due_at = now()"))
    db.session.commit()
    for outbox_id in in_transaction(lambda: take_due_deliveries(10)):
        deliver_otp(outbox_id)


@pytest.fixture
def twilio() -> Iterator[SmsServer]:
    server = SmsServer(answer_as_twilio)
    yield server
    server.stop()


@pytest.fixture
def twilio_settings(monkeypatch: pytest.MonkeyPatch, twilio: SmsServer) -> None:
    """Have the application read its settings, and find its gateway, as if the page's edits were made."""
    monkeypatch.setattr("chatapi.app.load_settings", edited_settings().load_settings)
    monkeypatch.setitem(GATEWAYS, "twilio", documented_gateway(f"{twilio.url}/2010-04-01"))


@pytest.fixture
def twilio_app(make_app: Callable[..., Flask], twilio_settings: None) -> Iterator[Flask]:
    app = make_app(OTP_DELIVERY="twilio", **TWILIO)
    with app.app_context():
        empty_outbox()
        yield app


@pytest.fixture
def webhook() -> Iterator[SmsServer]:
    server = SmsServer(lambda _path, _headers, _body: (200, {}))
    yield server
    server.stop()


@pytest.fixture
def app(make_app: Callable[..., Flask], webhook: SmsServer) -> Iterator[Flask]:
    """An application that delivers by webhook."""
    app = make_app(OTP_DELIVERY="webhook", OTP_WEBHOOK_URL=f"{webhook.url}/send", OTP_WEBHOOK_SECRET=SECRET)
    with app.app_context():
        empty_outbox()
        yield app


def test_documented_twilio_class_delivers_a_code_that_signs_in(
    twilio_app: Flask, twilio: SmsServer, new_number: Callable[[], str]
) -> None:
    number = new_number()

    deliver_otp(request_code(twilio_app, number))

    ((_, body),) = twilio.received
    form = form_of(body)
    assert form.keys() == {"To", "From", "Body", "ValidityPeriod"}
    assert (form["To"], form["From"], form["ValidityPeriod"]) == (number, TWILIO["TWILIO_FROM"], str(OTP_TTL_SECONDS))
    assert outbox() == []
    (code,) = re.findall(r"\b[0-9]{6}\b", form["Body"])
    signed_in = twilio_app.test_client().post("/auth/verify-otp", json={"mobile_number": number, "otp": code})
    assert signed_in.status_code == 200


@pytest.mark.parametrize("status", [429, 500, 503])
def test_documented_twilio_class_leaves_the_code_for_a_retry_when_twilio_does_not_take_it(
    twilio_app: Flask, twilio: SmsServer, new_number: Callable[[], str], status: int
) -> None:
    twilio.faults = [status]

    deliver_otp(request_code(twilio_app, new_number()))

    assert [row.attempts for row in outbox()] == [1]
    deliver_when_due()
    assert outbox() == []
    (_, first), (_, second) = twilio.received
    assert first == second


def test_documented_twilio_class_leaves_the_code_when_its_token_is_wrong(
    twilio_app: Flask, twilio: SmsServer, new_number: Callable[[], str], caplog: pytest.LogCaptureFixture
) -> None:
    twilio_app.config["TWILIO_AUTH_TOKEN"] = "another one"

    deliver_otp(request_code(twilio_app, new_number()))

    assert len(outbox()) == 1
    assert "'status': 401" in caplog.text
    assert "Authenticate" not in caplog.text


def test_documented_twilio_class_names_the_messaging_service_when_that_is_the_sender(
    twilio_app: Flask, twilio: SmsServer, new_number: Callable[[], str]
) -> None:
    twilio_app.config["TWILIO_FROM"] = "MG" + "0c" * 16

    deliver_otp(request_code(twilio_app, new_number()))

    assert form_of(twilio.received[0][1])["MessagingServiceSid"] == "MG" + "0c" * 16
    assert outbox() == []


@pytest.mark.parametrize("name", list(TWILIO))
def test_start_is_refused_when_a_documented_setting_is_missing(name: str) -> None:
    edited = edited_settings()

    with pytest.raises(edited.ConfigError) as caught:
        edited.load_settings({"APP_ENV": "development", "OTP_DELIVERY": "twilio", **TWILIO, name: ""})

    assert caught.value.faults == [f"{name} is not set, but OTP_DELIVERY is twilio."]


def test_documented_verifier_takes_what_the_webhook_gets_and_nothing_else(
    app: Flask, webhook: SmsServer, new_number: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    is_genuine = verifier()
    deliver_otp(request_code(app, new_number()))
    ((headers, body),) = webhook.received

    assert is_genuine(SECRET, headers, body)
    of_two_keys = {**headers, "webhook-signature": f"v1,AAAA {headers['webhook-signature']}"}
    assert is_genuine(SECRET, of_two_keys, body)

    assert not is_genuine(SECRET, headers, body.replace(b"login", b"logan"))
    assert not is_genuine("whsec_" + base64.b64encode(b"another secret").decode(), headers, body)
    assert not is_genuine(SECRET, {**headers, "webhook-id": str(UUID(int=0))}, body)
    later = str(int(headers["webhook-timestamp"]) + 1)
    assert not is_genuine(SECRET, {**headers, "webhook-timestamp": later}, body)
    assert not is_genuine(SECRET, {**headers, "webhook-timestamp": "now"}, body)
    for name in ("webhook-id", "webhook-timestamp", "webhook-signature"):
        assert not is_genuine(SECRET, {key: value for key, value in headers.items() if key != name}, body)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 310)
    assert not is_genuine(SECRET, headers, body)


def test_documented_verifier_takes_what_is_signed_with_a_plain_secret(
    app: Flask, webhook: SmsServer, new_number: Callable[[], str]
) -> None:
    app.config["OTP_WEBHOOK_SECRET"] = "a secret that is plain text"

    deliver_otp(request_code(app, new_number()))

    assert verifier()("a secret that is plain text", *webhook.received[0])


def test_documented_example_is_what_the_webhook_gets(
    app: Flask, webhook: SmsServer, new_number: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ((head, body),) = re.findall(r"```http\nPOST .*\n((?:.+\n)+)\n(.*)\n```", DOCS)
    headers = dict(line.split(": ", 1) for line in head.splitlines())
    (secret,) = re.findall(r"signed with `(whsec_[^`]+)`", DOCS)

    deliver_otp(request_code(app, new_number()))
    ((sent_headers, sent_body),) = webhook.received

    of_the_client = {"user-agent", "accept", "accept-encoding", "connection", "content-length"}
    assert {name.lower() for name in headers} == sent_headers.keys() - of_the_client
    assert headers["Content-Type"] == sent_headers["content-type"]
    assert list(json.loads(body)) == list(json.loads(sent_body))
    monkeypatch.setattr(time, "time", lambda: float(headers["webhook-timestamp"]))
    assert verifier()(secret, headers, body.encode())


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("hang", "ReadTimeout"), ("drip in the head", "ReadTimeout"), ("refuse", "ConnectionError")],
)
def test_code_is_kept_and_tried_again_when_the_gateway_does_not_answer(
    app: Flask,
    webhook: SmsServer,
    new_number: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: str,
    reason: str,
) -> None:
    monkeypatch.setattr(gateways, "GATEWAY_TIMEOUT_SECONDS", (0.5, 0.5))
    monkeypatch.setattr(gateways, "GATEWAY_SECONDS", 1)
    working_url = app.config["OTP_WEBHOOK_URL"]
    if fault == "refuse":
        app.config["OTP_WEBHOOK_URL"] = f"http://127.0.0.1:{free_port()}/send"
    else:
        webhook.faults = [fault]
    number = new_number()

    deliver_otp(request_code(app, number))

    assert [row.attempts for row in outbox()] == [1]
    assert f"'reason': '{reason}'" in caplog.text
    app.config["OTP_WEBHOOK_URL"] = working_url
    deliver_when_due()
    assert outbox() == []
    otp = json.loads(webhook.received[-1][1])["otp"]
    assert otp not in caplog.text
    assert number not in caplog.text
    assert number.removeprefix("+") not in caplog.text


def test_code_is_delivered_when_the_body_of_the_answer_does_not_end(
    app: Flask, webhook: SmsServer, new_number: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateways, "GATEWAY_TIMEOUT_SECONDS", (0.5, 0.5))
    webhook.faults = ["hang in the body"]

    deliver_otp(request_code(app, new_number()))

    assert outbox() == []


def test_code_goes_nowhere_else_when_the_gateway_redirects(
    app: Flask, webhook: SmsServer, new_number: Callable[[], str], caplog: pytest.LogCaptureFixture
) -> None:
    webhook.faults = ["redirect"]

    deliver_otp(request_code(app, new_number()))

    assert len(webhook.received) == 1
    assert [row.attempts for row in outbox()] == [1]
    assert "'status': 307" in caplog.text


def test_no_row_is_locked_while_a_gateway_is_waited_for(
    app: Flask, new_number: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[UUID, bool]] = []

    class Probe:
        def send(self, message: OtpMessage) -> None:
            with db.engine.connect() as another:
                locking = text("SELECT id FROM otp_outbox WHERE id = :id FOR UPDATE NOWAIT")
                found = another.execute(locking, {"id": message.message_id}).scalar_one()
            seen.append((found, db.session().in_transaction()))

    monkeypatch.setitem(GATEWAYS, "webhook", Probe())
    outbox_id = request_code(app, new_number())

    deliver_otp(outbox_id)

    assert seen == [(outbox_id, False)]
    assert outbox() == []


def test_code_is_kept_and_nothing_of_it_logged_when_a_gateway_raises_something_of_its_own(
    app: Flask, new_number: Callable[[], str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    messages: list[OtpMessage] = []

    class Broken:
        def send(self, message: OtpMessage) -> None:
            messages.append(message)
            raise LookupError(f"{message.mobile_number} has no route for {message.code}")

    monkeypatch.setitem(GATEWAYS, "webhook", Broken())

    with caplog.at_level(logging.DEBUG):
        deliver_otp(request_code(app, new_number()))

    (message,) = messages
    assert [row.attempts for row in outbox()] == [1]
    assert "LookupError" in caplog.text
    assert Path(__file__).name in caplog.text
    for secret in (message.mobile_number, message.code):
        assert secret not in caplog.text
        assert secret not in repr(message)


def test_code_is_kept_when_its_delivery_is_no_longer_configured(
    app: Flask, new_number: Callable[[], str], caplog: pytest.LogCaptureFixture
) -> None:
    outbox_id = request_code(app, new_number())
    app.config["OTP_DELIVERY"] = "echo"

    deliver_otp(outbox_id)

    assert [row.attempts for row in outbox()] == [1]
    assert "'reason': 'no_gateway'" in caplog.text


def test_every_delivery_but_echo_has_a_gateway() -> None:
    assert OTP_DELIVERIES.keys() == {"echo", *GATEWAYS}


@pytest.mark.parametrize(
    ("purpose", "name"),
    [
        ("login", "sign-in code"),
        ("verification", "verification code"),
        ("password_reset", "code to set a new password"),
    ],
)
def test_text_for_people_fits_one_sms(purpose: Any, name: str) -> None:
    said = sms_text(OtpMessage(UUID(int=1), "+15551234567", purpose, "042917"))

    assert said.startswith(f"042917 is your {name}, good for {OTP_TTL_SECONDS // 60} minutes")
    assert said.isascii()
    assert len(said) <= 160


def test_page_states_the_times_that_hold() -> None:
    connect, read = gateways.GATEWAY_TIMEOUT_SECONDS
    for stated in (
        f"rings again {RETRY_SECONDS} s after",
        f"some {OTP_TTL_SECONDS // RETRY_SECONDS} tries in the code's life of {OTP_TTL_SECONDS} s",
        f"no connection within {connect} s or no answer within {read} s",
        f"not whole within {gateways.GATEWAY_SECONDS} s",
    ):
        assert stated in " ".join(DOCS.split())
