"""The running system's logs in production at their most talkative: JSON throughout, and nothing secret in them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import redis
import requests

from chatapi.dev.stripe.faults import Fault
from chatapi.dev.system import health
from tests.auth.support import Gateway, running_gateway
from tests.leaks import LeakSearch
from tests.support import Account, wait_for
from tests.system.support import System, finish, wait_all_ended

pytestmark = pytest.mark.slow

PASSWORD = "correct-horse-7-battery"
PROMPT = "my grandmother keeps xylophones in the orchard"
TITLE = "plans for the burglary"
SECRETS = {
    "JWT_SECRET": "Zm9yLXRlc3RzLW9ubHktand0LXNlY3JldC0xMjM0NTY3ODkw",
    "GEMINI_API_KEY": "AIzaSyTests-only-0123456789abcdefghijk",
    "STRIPE_SECRET_KEY": "sk_test_onlyForTheLogs4711",
    "OTP_WEBHOOK_SECRET": "webhook-secret-of-the-logs",
    "METRICS_TOKEN": "metrics-token-of-the-logs",
}
DATABASE_PASSWORD = "pa55word-of-postgres"
REDIS_PASSWORD = "pa55word-of-valkey"

PROCESSES = ("web", "worker", "chores", "billing", "sweeper")


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with running_gateway() as gateway:
        yield gateway


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs") / "made" / "by itself"


@pytest.fixture
def talkative(running_system: System, gateway: Gateway, folder: Path) -> Iterator[System]:
    """The system in production with every secret set, and all that it logs from now on in `folder`."""
    system = running_system
    system.mend()
    settings = {
        **SECRETS,
        "APP_ENV": "production",
        "HOST": "127.0.0.1",
        "OTP_DELIVERY": "webhook",
        "OTP_WEBHOOK_URL": gateway.url,
        "DATABASE_URL": system.services.postgres.url.replace("postgres@", f"postgres:{DATABASE_PASSWORD}@"),
        "REDIS_URL": system.services.valkey.url.replace("://", f"://:{REDIS_PASSWORD}@"),
        "LOG_LEVEL": "debug",
        "LOG_DIR": str(folder),
    }
    for process in PROCESSES:
        with suppress(FileNotFoundError):
            os.truncate(system.logs / f"{process}.log", 0)
    with closing(redis.Redis.from_url(system.services.valkey.url)) as valkey:
        valkey.config_set("requirepass", REDIS_PASSWORD)
        valkey.auth(REDIS_PASSWORD)
        try:
            system.use(settings)
            yield system
        finally:
            valkey.config_set("requirepass", "")
            system.use({})


def objects(text: str) -> list[dict[str, Any]]:
    """Return the lines, each of which is to be a JSON object."""
    found = [json.loads(line) for line in text.split("\n") if line]
    assert all(isinstance(each, dict) and {"timestamp", "level", "event"} <= each.keys() for each in found)
    return found


def sign_in(system: System, gateway: Gateway, number: str) -> Account:
    """Sign in with a code that came as a text message; set a password too."""
    system.client.post("/auth/send-otp", json={"mobile_number": number})
    (message,) = wait_for(lambda: [json.loads(body) for _, body in gateway.received if number.encode() in body])
    body = {"mobile_number": number, "otp": message["otp"]}
    answer = system.client.post("/auth/verify-otp", json=body).get_json()
    account = Account(answer["user"]["id"], number, answer["token"], system.client)  # type: ignore[arg-type]
    assert account.call("POST", "/auth/change-password", {"new_password": PASSWORD}).status_code == 200
    return account


def misbehave(system: System, account: Account, number: str) -> None:
    """Ask for what is refused, with secrets in every place where a library might repeat them."""
    client, headers = system.client, account.headers
    client.get(f"/no/such/{number}?otp=123987&mobile_number={number}", headers=headers)
    client.post("/auth/send-otp", json={"mobile_number": f"{number}x", "otp": PASSWORD})
    client.post("/auth/login", json={"mobile_number": number, "password": f"{PASSWORD}x"})
    client.get("/user/me", headers={"Authorization": f"Bearer {account.token}x"})
    client.post("/webhook/stripe", json={"id": PROMPT}, headers={"Stripe-Signature": f"t=1,v1={PASSWORD}"})
    client.get("/metrics", headers={"Authorization": f"Bearer {SECRETS['METRICS_TOKEN']}"})
    url = f"http://127.0.0.1:{system.port}/auth/login"
    requests.post(
        url, data=f'{{"{number}": "{PROMPT}'.encode() + b"\xff", headers={"Content-Type": "application/json"}, timeout=9
    )


def test_everything_is_logged_as_json_and_nothing_secret_with_it(
    talkative: System, gateway: Gateway, folder: Path, new_number: Callable[[], str]
) -> None:
    system, number, search = talkative, new_number(), LeakSearch()
    account = sign_in(system, gateway, number)
    room_id = account.open_room(title=TITLE, system_instruction=PROMPT)
    for fault in ("", "[[fault=500 times=1]] ", "[[fault=bad_json times=1]] ", "[[fault=blocked]] "):
        finish(account, room_id, account.prompt(room_id, fault + PROMPT))
    account.call("GET", "/chatroom?q=burglary")
    account.call("GET", f"/chatroom/{room_id}/export")
    system.services.stripe.add_fault(Fault("400"))
    account.call("POST", "/subscribe/pro")
    system.services.stripe.clear()
    session = account.call("POST", "/subscribe/pro").get_json()
    system.services.stripe.pay(session["session_id"])
    wait_for(lambda: account.call("GET", "/subscription/status").get_json()["subscription"]["tier"] == "pro")
    misbehave(system, account, number)
    with system.frozen("worker"):
        lost = account.prompt(room_id, PROMPT)
        os.kill(system.services.postgres_process.pid or 0, signal.SIGKILL)
        wait_for(lambda: not system.services.postgres_process.is_running())
        account.send(room_id, PROMPT)
    system.services.postgres_process.restart()
    wait_for(lambda: (health(system.port) or {}).get("status") == "ok")
    finish(account, room_id, lost)
    wait_all_ended(system, seconds=60)

    printed = {process: objects(system.log_of(process)) for process in PROCESSES}
    combined, errors = ((folder / name).read_text() for name in ("combined.log", "error.log"))
    kept = objects(combined)
    assert all(each["level"] in ("error", "critical") for each in objects(errors))
    everything = combined + errors + "".join(system.log_of(process) for process in PROCESSES)
    for secret in (
        *SECRETS.values(),
        DATABASE_PASSWORD,
        REDIS_PASSWORD,
        PASSWORD,
        "xylophone",
        "burglary",
        "otp=123987",
    ):
        assert secret not in everything, f"{secret[:6]}…"
    search.note_secrets([{"mobile_number": number, "token": account.token}])
    search.note_secrets([json.loads(body) for _, body in gateway.received])
    search.note_log("combined.log", everything.splitlines())
    assert search.findings() == []

    for process, lines in printed.items():
        assert {each["event"] for each in lines} & {"sql", "request", "swept"}, process
    assert any(each["event"] == "stream_ended" for each in kept)
    of_request = next(each for each in kept if each["event"] == "request" and each["route"] == "/subscribe/pro")
    assert of_request["user_id"] == account.id
    asked_for = [each["event"] for each in kept if each.get("request_id") == of_request["request_id"]]
    assert {"sql", "request"} <= set(asked_for)
    assert any(each["event"] == "redis" for each in printed["web"])
    assert len(kept) >= max(map(len, printed.values()))
