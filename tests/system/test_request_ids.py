"""A request's id, followed through every process to the providers, whatever happened on the way."""

from __future__ import annotations

from collections.abc import Callable
from uuid import uuid4

import pytest
import redis

from tests.auth.support import Gateway
from tests.support import Account, wait_for
from tests.system.support import System, finish, is_title, send


@pytest.fixture
def request_id() -> str:
    return f"followed-{uuid4().hex}"


def ask(someone: Account, room_id: str, content: str, request_id: str) -> str:
    """Send a prompt under an id of the client's own; return the id of its reply."""
    answer = send(someone, room_id, content, X_Request_ID=request_id)
    assert answer.status_code == 201, answer.get_json()
    assert answer.headers["X-Request-ID"] == request_id
    reply_id: str = answer.get_json()["ai_message"]["id"]
    return reply_id


def lines(system: System, process: str, word: str) -> list[str]:
    return [line for line in system.log_of(process).splitlines() if word in line]


def named_in(found: list[str], request_id: str) -> bool:
    """Return whether there are lines, and each names the request."""
    return bool(found) and all(f" request_id={request_id} " in f"{line} " for line in found)


def ids_sent(system: System, content: str) -> list[str | None]:
    """Return which request each question to the model for a prompt was asked for."""
    return [asked.headers.get("x-request-id") for asked in system.asked(content)]


def test_prompt_is_followed_from_the_web_to_the_worker_and_the_model(
    system: System, someone: Account, request_id: str
) -> None:
    room_id = someone.open_room()

    reply_id = ask(someone, room_id, "[[fault=503 times=1]] follow me", request_id)
    finish(someone, room_id, reply_id)
    wait_for(lambda: [each for each in system.services.gemini.requests if is_title(each)])

    assert "reply_accepted" in "".join(lines(system, "web", request_id))
    of_worker = lines(system, "worker", reply_id)
    assert system.events_of("worker", reply_id) >= {"reply_attempt_began", "reply_attempt_failed", "reply_ended"}
    assert named_in(of_worker, request_id)
    assert ids_sent(system, "follow me") == [request_id] * 2
    assert [each.headers.get("x-request-id") for each in system.services.gemini.requests] == [request_id] * 3


def test_reply_made_again_is_followed_by_the_request_that_asked_for_it(
    system: System, someone: Account, request_id: str
) -> None:
    room_id = someone.open_room(title="again")
    first = ask(someone, room_id, "once more", "the-first-time")
    finish(someone, room_id, first)

    path = f"/chatroom/{room_id}/message/{first}/regenerate"
    answer = someone.client.post(path, headers={**someone.headers, "X-Request-ID": request_id})
    reply_id = answer.get_json()["ai_message"]["id"]
    finish(someone, room_id, reply_id)

    assert ids_sent(system, "once more") == ["the-first-time", request_id]
    assert named_in(lines(system, "worker", reply_id), request_id)


def test_reply_is_found_by_both_requests_when_another_stops_it(
    system: System, someone: Account, request_id: str
) -> None:
    room_id = someone.open_room(title="stopped")
    with system.frozen("worker"):
        reply_id = ask(someone, room_id, "not begun", request_id)
        path = f"/chatroom/{room_id}/message/{reply_id}/stop"
        stopped = someone.client.post(path, headers={**someone.headers, "X-Request-ID": "who-stops"})

    assert stopped.get_json()["message"]["status"] == "stopped"
    (end,) = [line for line in lines(system, "web", reply_id) if "reply_ended" in line]
    assert f"prompt_request_id={request_id}" in end
    assert " request_id=who-stops" in end


@pytest.mark.slow
def test_prompt_is_followed_when_its_worker_was_killed_and_the_sweeper_took_it_up(
    system: System, someone: Account, request_id: str
) -> None:
    room_id = someone.open_room(title="killed")
    reply_id = ask(someone, room_id, "[[fault=hang times=1]] survives", request_id)
    wait_for(lambda: system.asked("survives"))
    system.kill("worker")
    system.rows(
        "UPDATE reply_jobs SET lease_expires_at = clock_timestamp(), ring_at = clock_timestamp(), rings = 0 "
        "WHERE message_id = %s RETURNING message_id",
        reply_id,
    )

    system["worker"].start()

    assert finish(someone, room_id, reply_id)["status"] == "completed"
    assert ids_sent(system, "survives") == [request_id] * 2
    assert len(lines(system, "worker", "reply_attempt_began")) >= 2
    assert named_in(lines(system, "worker", reply_id), request_id)


@pytest.mark.slow
def test_prompt_is_followed_when_redis_has_forgotten_it(system: System, someone: Account, request_id: str) -> None:
    room_id = someone.open_room(title="forgotten")
    system.kill("worker")
    reply_id = ask(someone, room_id, "forgotten by the doorbell", request_id)
    with redis.Redis.from_url(system.services.valkey.url) as queue:
        queue.flushall()

    system["worker"].start()

    assert finish(someone, room_id, reply_id)["status"] == "completed"
    assert ids_sent(system, "forgotten by the doorbell") == [request_id]
    assert named_in(lines(system, "worker", reply_id), request_id)


def test_payment_is_followed_from_the_request_to_stripe_and_from_stripe_to_billing(
    system: System, someone: Account, request_id: str
) -> None:
    stripe = system.services.stripe
    stripe.forget_requests()
    headers = {**someone.headers, "X-Request-ID": request_id}
    session_id = someone.client.post("/subscribe/pro", headers=headers).get_json()["session_id"]
    assert stripe.requests
    assert {each.headers.get("x-request-id") for each in stripe.requests} == {request_id}

    stripe.forget_requests()
    stripe.pay(session_id)
    assert stripe.wait_until_delivered(30)

    event = stripe.events("customer.subscription.created")[-1]["id"]
    (row,) = wait_for(
        lambda: system.rows(
            "SELECT request_id FROM stripe_events WHERE event_id = %s AND closed_at IS NOT NULL", event
        ),
        seconds=15,
    )
    assert named_in(lines(system, "web", event), row.request_id)
    assert named_in(lines(system, "billing", event), row.request_id)
    told_by = {found.request_id for found in system.rows("SELECT request_id FROM stripe_events")}
    assert {each.headers.get("x-request-id") for each in stripe.requests} <= told_by - {None}


@pytest.mark.slow
@pytest.mark.parametrize("is_forgotten", [False, True], ids=["rung for", "forgotten by redis"])
def test_code_is_followed_to_the_sms_gateway(
    system: System, gateway: Gateway, new_number: Callable[[], str], request_id: str, *, is_forgotten: bool
) -> None:
    if is_forgotten:
        system.kill("chores")
    sent = system.client.post(
        "/auth/send-otp", json={"mobile_number": new_number()}, headers={"X-Request-ID": request_id}
    )
    assert sent.status_code == 200
    if is_forgotten:
        with redis.Redis.from_url(system.services.valkey.url) as queue:
            queue.flushall()
        system["chores"].start()

    wait_for(lambda: gateway.received, seconds=40)
    ((headers, _),) = gateway.received
    assert headers["x-request-id"] == request_id
    wait_for(lambda: named_in(lines(system, "chores", headers["webhook-id"]), request_id))
