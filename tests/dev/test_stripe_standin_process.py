"""The Stripe stand-in as a process: its controls over HTTP, and what outlives it."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import stripe

from chatapi.dev.stripe.controls import CONTROLS, Controls
from chatapi.dev.stripe.standin import StripeStandin
from tests.dev.stripe_support import Receiver, Shop, open_shop, sdk
from tests.support import race, wait_for

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def shop() -> Iterator[Shop]:
    with open_shop() as opened:
        yield opened


def control(url: str, method: str, name: str, body: Any = None) -> tuple[int, Any]:
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{url}/_control/{name}", data, method=method)  # noqa: S310 - the stand-in's.
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - as above.
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def test_controls_work_over_http_when_it_is_a_process_of_its_own(shop: Shop) -> None:
    url, customer = shop.standin.url, shop.customer()
    session = shop.session(customer=customer.id)

    def call(name: str, **arguments: Any) -> Any:
        status, answer = control(url, "POST", name, arguments)
        assert status == 200, answer
        return answer["result"]

    assert control(url, "GET", "health") == (200, {"status": "ok"})
    subscription_id = call("pay", session_id=session.id)["subscription"]
    assert call("fail_payment", subscription_id=subscription_id)["status"] == "past_due"
    assert call("pay_open_invoice", subscription_id=subscription_id)["status"] == "active"
    second = call("subscribe", customer_id=customer.id, price_id=shop.price.id, metadata={"from": "dashboard"})
    assert second["metadata"] == {"from": "dashboard"}
    assert call("cancel_now", subscription_id=second["id"])["status"] == "canceled"
    assert call("advance", seconds=86400) == call("now")
    assert call("add_webhook", url="http://127.0.0.1:9/", secret="whsec_x") == "whsec_x"
    assert [event["type"] for event in call("events", type="checkout.session.completed")] == [
        "checkout.session.completed"
    ]


def test_faults_and_requests_work_over_http_when_it_is_a_process_of_its_own(shop: Shop) -> None:
    url = shop.standin.url
    assert control(url, "DELETE", "requests") == (200, {})
    assert control(url, "POST", "faults", {"kind": "503", "path": "/v1/customers"}) == (200, {})
    with pytest.raises(stripe.APIError):
        shop.customer()
    assert control(url, "DELETE", "faults") == (200, {})
    shop.customer()

    _, requests = control(url, "GET", "requests")
    assert [request["path"] for request in requests] == ["/v1/customers"] * 2
    assert control(url, "GET", "deliveries") == (200, [])


@pytest.mark.parametrize(
    ("method", "name", "body", "status"),
    [
        ("POST", "nothing", {}, 404),
        ("POST", "load", {}, 404),
        ("GET", "pay", None, 404),
        ("POST", "pay", {}, 400),
        ("POST", "pay", {"session_id": "cs_x"}, 404),
        ("POST", "pay", {"session_id": "cs_x", "more": 1}, 400),
        ("POST", "pay", ["cs_x"], 400),
        ("POST", "pay", b"{", 400),
        ("POST", "advance", {"seconds": "x"}, 400),
        ("POST", "faults", {"kind": "418"}, 400),
        ("POST", "set_card", {"customer_id": "cus_x", "card": "stolen"}, 400),
    ],
)
def test_control_is_refused_when_it_is_wrong(shop: Shop, method: str, name: str, body: Any, status: int) -> None:
    answered, answer = control(shop.standin.url, method, name, body)

    assert answered == status
    assert answer["error"]["message"]


def test_every_control_is_one_of_the_methods_when_listed() -> None:
    assert all(callable(getattr(Controls, name)) for name in CONTROLS)


def test_nothing_is_lost_when_many_pay_at_once(shop: Shop) -> None:
    sessions = [shop.session(customer=shop.customer().id) for _ in range(50)]

    subscriptions = race(50, lambda index: shop.standin.pay(sessions[index].id)["subscription"])

    assert len(set(subscriptions)) == 50
    assert len(list(shop.v1.subscriptions.list({"limit": 100}).auto_paging_iter())) == 50
    assert len(shop.standin.events("checkout.session.completed")) == 50


def test_one_subscription_begins_when_many_pay_one_session_at_once(shop: Shop) -> None:
    session = shop.session(customer=shop.customer().id)

    def pay(_: int) -> bool:
        return control(shop.standin.url, "POST", "pay", {"session_id": session.id})[0] == 200

    assert race(20, pay).count(True) == 1
    assert len(shop.v1.subscriptions.list().data) == 1


def test_everything_is_still_there_when_it_was_restarted_with_a_state_file(tmp_path: Path) -> None:
    state_file = tmp_path / "stripe.json"
    receiver = Receiver()
    receiver.stop()
    with open_shop(state_file=state_file) as shop:
        shop.standin.add_webhook(receiver.url, "whsec_x")
        session = shop.session(customer=shop.customer().id)
        left_open = shop.session()
        shop.v1.customers.create({"name": "Ada"}, {"idempotency_key": "k"})
        subscription_id = shop.standin.pay(session.id)["subscription"]
        portal = shop.v1.billing_portal.sessions.create({"customer": session.customer})
        now = shop.standin.advance(3600)
    assert stat.S_IMODE(state_file.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["stripe.json"]

    with StripeStandin(state_file=state_file) as again, sdk(again.url) as client:
        assert again.now() >= now
        assert client.v1.subscriptions.retrieve(subscription_id).status == "active"
        replayed = client.v1.customers.create({"name": "Ada"}, {"idempotency_key": "k"})
        assert replayed.last_response is not None
        assert replayed.last_response.headers["Idempotent-Replayed"] == "true"
        assert client.v1.checkout.sessions.retrieve(left_open.id).url == f"{again.url}/checkout/{left_open.id}"
        with urllib.request.urlopen(again.url + "/portal/" + portal.url.rpartition("/")[2], timeout=5) as page:  # noqa: S310 - as above.
            assert subscription_id in page.read().decode()
        assert not again.wait_until_delivered(0.1)
        assert again.renew(subscription_id)["status"] == "active"


def test_what_was_answered_is_saved_when_many_change_something_at_once(tmp_path: Path) -> None:
    state_file = tmp_path / "state"
    with open_shop(state_file=state_file) as shop:

        def create(index: int) -> bool:
            made = shop.v1.customers.create({"name": f"customer {index}"})
            return made.id in json.loads(state_file.read_text())["kinds"]["customer"]

        assert race(20, create) == [True] * 20


def test_waiting_events_arrive_when_it_was_restarted(tmp_path: Path) -> None:
    receiver = Receiver()
    with open_shop(state_file=tmp_path / "state") as shop:
        secret = shop.standin.add_webhook(receiver.url)
        shop.standin.hold_deliveries()
        shop.customer()

    with StripeStandin(state_file=tmp_path / "state") as again:
        assert again.wait_until_delivered()
    receiver.stop()
    assert [event.type for event in receiver.events(secret)] == ["customer.created"]


def test_what_fell_due_meanwhile_happens_when_it_was_restarted(tmp_path: Path) -> None:
    state_file = tmp_path / "state"
    with open_shop(state_file=state_file) as shop:
        session = shop.session()
    state = json.loads(state_file.read_text())
    state["offset"] += 86400  # As if it had been away for a day.
    state_file.write_text(json.dumps(state))

    with StripeStandin(state_file=state_file) as again, sdk(again.url) as client:
        wait_for(lambda: client.v1.checkout.sessions.retrieve(session.id).status == "expired", seconds=5)


@contextmanager
def running(*arguments: str) -> Iterator[str]:
    """Run the stand-in as `make run` does; yield its address. It must end well when told to."""
    command = [sys.executable, "-m", "chatapi.dev.stripe.standin", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env={**os.environ}) as process:
        assert process.stderr is not None
        found = re.search(r"http://127\.0\.0\.1:\d+", process.stderr.readline())
        assert found
        try:
            yield found[0]
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0


def test_process_keeps_its_state_and_ends_when_told_to(tmp_path: Path) -> None:
    state_file = tmp_path / "data" / "stripe.json"
    with running("--state", str(state_file)) as url, sdk(url) as client:
        customer = client.v1.customers.create({"name": "Ada"})
        pages = client.v1.billing_portal.sessions.create({"customer": customer.id}).url

    with (
        running("--state", str(state_file), "--public-url", "http://pages.example/") as url,
        sdk(url) as client,
    ):
        assert client.v1.customers.retrieve(customer.id).name == "Ada"
        assert pages.startswith("http://127.0.0.1:")
        portal = client.v1.billing_portal.sessions.create({"customer": customer.id})
        assert portal.url.startswith("http://pages.example/portal/")
