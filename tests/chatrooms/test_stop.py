"""Stopping replies: whoever works on them, or nobody, they end within seconds, once, with the text so far."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import redis
from flask import Flask

from chatapi.chatrooms.endings import Ending, conclude
from chatapi.dev.gemini_standin import Fault, GeminiStandin
from chatapi.replies.gemini.base import Answer, GeminiCancelled, GeminiRetryable, Prompt
from chatapi.upstream.calls import UpstreamCall
from tests.chatrooms.support import beside, ids, send, stop, stopped, take, write
from tests.support import Account, Services, race, wait_for

JOB = "SELECT * FROM reply_jobs WHERE message_id = :id"
STORED = "SELECT status, content, text_token FROM messages WHERE id = :id"


class Hanging:
    """A model that says something and hangs until it is cancelled, or told to fail or to finish."""

    def __init__(self, text: str = "So far") -> None:
        self._text = text
        self.is_reached = threading.Event()
        self.fails = threading.Event()
        self.finishes = threading.Event()

    def stream(self, prompt: Prompt, call: UpstreamCall, on_text: Callable[[str], None]) -> Answer:
        on_text(self._text)
        self.is_reached.set()
        while not call.is_cancelled:
            time.sleep(0.01)
            if self.fails.is_set():
                raise GeminiRetryable("Unavailable")
            if self.finishes.is_set():
                return Answer(self._text, prompt.model, None, None)
        raise GeminiCancelled("Cancelled")


class Deaf(Hanging):
    """A model whose call cannot be cancelled."""

    def stream(self, prompt: Prompt, _call: UpstreamCall, on_text: Callable[[str], None]) -> Answer:
        on_text(self._text)
        self.is_reached.set()
        self.finishes.wait(20)
        on_text(", and more")
        return Answer(self._text, prompt.model, None, None)


@pytest.fixture
def work(attempt: Callable[..., None]) -> Iterator[Callable[[str, Any], Future[None]]]:
    """Return what begins an attempt at a reply in a thread, as a worker does, and returns when the model is asked."""
    with ThreadPoolExecutor() as pool:

        def work(reply_id: str, model: Hanging) -> Future[None]:
            attempted = pool.submit(attempt, reply_id, model)
            assert model.is_reached.wait(10)
            return attempted

        yield work


def test_reply_that_nobody_began_is_stopped_at_once_and_given_back(
    account: Account, attempt: Callable[..., None], gemini: GeminiStandin, sql: Callable[..., Any]
) -> None:
    room_id = account.open_room()
    reply_id = account.prompt(room_id, "hello")
    begun = time.monotonic()

    message = stopped(stop(account, room_id, reply_id))

    assert time.monotonic() - begun < 1
    assert message["content"] == ""
    assert account.read(room_id, reply_id) == message
    assert account.daily_usage() == 0
    assert sql(JOB, id=reply_id) is None
    attempt(reply_id)
    assert gemini.requests == []


def test_stopping_again_changes_nothing(account: Account) -> None:
    room_id = account.open_room()
    account.prompt(account.open_room(), "hello")
    reply_id = account.prompt(room_id, "hello")
    first = stopped(stop(account, room_id, reply_id))

    assert stopped(stop(account, room_id, reply_id)) == first
    assert account.daily_usage() == 1


def test_prompt_is_given_back_once_when_twenty_stop_it_at_once(
    app: Flask, account: Account, sql: Callable[..., Any]
) -> None:
    room_id = account.open_room()
    account.prompt(account.open_room(), "hello")
    reply_id = account.prompt(room_id, "hello")
    begun = time.monotonic()

    answers = race(20, lambda _: stop(beside(app, account), room_id, reply_id))

    assert time.monotonic() - begun < 5
    assert {stopped(answer)["updated_at"] for answer in answers} == {account.read(room_id, reply_id)["updated_at"]}
    assert account.daily_usage() == 1
    assert sql(JOB, id=reply_id) is None


def test_reply_of_a_dead_worker_has_one_end_when_twenty_stop_it_at_once(
    app: Flask, account: Account, sql: Callable[..., Any]
) -> None:
    room_id = account.open_room()
    reply_id = account.prompt(room_id, "hello")
    write(app, take(app, reply_id), (0, "So far"))
    begun = time.monotonic()

    answers = race(20, lambda _: stop(beside(app, account), room_id, reply_id))

    assert time.monotonic() - begun < 6
    assert {stopped(answer)["content"] for answer in answers} == {"So far"}
    assert len({answer.get_json()["message"]["updated_at"] for answer in answers}) == 1
    assert sql(JOB, id=reply_id) is None


def test_reply_that_waits_for_its_next_attempt_is_stopped_and_not_given_back(
    account: Account, gemini: GeminiStandin, attempt: Callable[..., None], sql: Callable[..., Any]
) -> None:
    gemini.add_fault(Fault("503", times=1))
    room_id = account.open_room()
    reply_id = account.prompt(room_id, "hello")
    attempt(reply_id)
    begun = time.monotonic()

    message = stopped(stop(account, room_id, reply_id))

    assert time.monotonic() - begun < 1
    assert message["content"] == ""
    assert account.daily_usage() == 1
    assert sql(JOB, id=reply_id) is None


def test_reply_stopped_between_attempts_keeps_what_the_last_one_wrote(
    account: Account, work: Callable[..., Future[None]]
) -> None:
    room_id = account.open_room()
    reply_id = account.prompt(room_id, "hello")
    model = Hanging()
    attempted = work(reply_id, model)
    time.sleep(0.3)  # What was said is published by then.
    model.fails.set()
    attempted.result()

    assert stopped(stop(account, room_id, reply_id))["content"] == "So far"


def test_worker_ends_its_call_when_the_reply_is_stopped(
    account: Account, work: Callable[..., Future[None]], sql: Callable[..., Any]
) -> None:
    room_id = account.open_room()
    reply_id = account.prompt(room_id, "hello")
    attempted = work(reply_id, Hanging("Grüße 🙂"))
    token = sql(JOB, id=reply_id).lease_token
    begun = time.monotonic()

    message = stopped(stop(account, room_id, reply_id))

    assert time.monotonic() - begun < 1.9  # The worker did it, or the token would be another.
    assert message["content"] == "Grüße 🙂"
    assert message["model"] == "gemini-3.5-flash"
    assert tuple(sql(STORED, id=reply_id)) == ("stopped", "Grüße 🙂", token)
    attempted.result(timeout=5)
    assert account.daily_usage() == 1
    assert sql(JOB, id=reply_id) is None


def test_reply_is_stopped_through_a_process_without_redis(
    make_app: Callable[..., Flask], account: Account, work: Callable[..., Future[None]]
) -> None:
    room_id = account.open_room()
    reply_id = account.prompt(room_id, "hello")
    attempted = work(reply_id, Hanging())
    other = make_app(REDIS_URL="redis://127.0.0.1:1/0")
    begun = time.monotonic()

    message = stopped(stop(beside(other, account), room_id, reply_id))

    assert time.monotonic() - begun < 4
    assert message["content"] == "So far"
    attempted.result(timeout=5)


def test_reply_is_stopped_by_the_request_when_the_workers_call_cannot_be_ended(
    account: Account, work: Callable[..., Future[None]]
) -> None:
    room_id = account.open_room()
    reply_id = account.prompt(room_id, "hello")
    model = Deaf()
    attempted = work(reply_id, model)
    begun = time.monotonic()

    message = stopped(stop(account, room_id, reply_id))

    assert time.monotonic() - begun < 4
    assert message["content"] == "So far"
    model.finishes.set()
    attempted.result(timeout=5)
    assert account.read(room_id, reply_id) == message
    assert account.daily_usage() == 1


def test_attempt_that_fails_while_it_is_to_be_stopped_is_the_last(
    app: Flask, account: Account, work: Callable[..., Future[None]], sql: Callable[..., Any]
) -> None:
    room_id = account.open_room()
    reply_id = account.prompt(room_id, "hello")
    model = Hanging()
    attempted = work(reply_id, model)

    def act(index: int) -> Any:
        if index == 0:
            return stop(beside(app, account), room_id, reply_id)
        wait_for(lambda: sql(JOB, id=reply_id).stop_requested_at, every=0.01)
        return model.fails.set()

    answer, _ = race(2, act)

    assert stopped(answer)["content"] == "So far"
    attempted.result(timeout=5)
    assert sql(JOB, id=reply_id) is None


@pytest.mark.slow
def test_reply_of_a_dead_worker_is_ended_with_what_it_streamed(
    app: Flask, account: Account, sql: Callable[..., Any]
) -> None:
    room_id = account.open_room()
    reply_id = account.prompt(room_id, "hello")
    lease = take(app, reply_id)
    write(app, lease, (0, "Grüße 🙂"), (7, " und "), (6, "🙂 und mehr"))
    begun = time.monotonic()

    message = stopped(stop(account, room_id, reply_id))

    assert 1.5 < time.monotonic() - begun < 4
    assert message["content"] == "Grüße 🙂 und mehr"
    assert sql(STORED, id=reply_id).text_token == lease.token
    assert account.daily_usage() == 1
    with app.app_context():
        assert not conclude(lease, Ending("completed", content="late", text_token=lease.token))
        assert not conclude(lease, Ending("failed", error="timed_out", gives_prompt_back=True))
    assert account.read(room_id, reply_id) == message
    assert account.daily_usage() == 1


@pytest.mark.slow
def test_only_the_newest_attempts_text_is_kept(app: Flask, account: Account, sql: Callable[..., Any]) -> None:
    room_id = account.open_room()
    reply_id = account.prompt(room_id, "hello")
    dead = take(app, reply_id)
    write(app, dead, (0, "a longer text of the first attempt"))
    sql("UPDATE reply_jobs SET lease_expires_at = now() WHERE message_id = :id", id=reply_id)
    newer = take(app, reply_id)
    write(app, newer, (0, "short"))
    write(app, dead, (34, " goes on"))

    assert stopped(stop(account, room_id, reply_id))["content"] == "short"
    assert sql(STORED, id=reply_id).text_token == newer.token


@pytest.mark.slow
def test_text_with_a_gap_is_nobodys(app: Flask, account: Account, sql: Callable[..., Any]) -> None:
    room_id = account.open_room()
    reply_id = account.prompt(room_id, "hello")
    write(app, take(app, reply_id), (0, "one"), (7, "three"))

    message = stopped(stop(account, room_id, reply_id))

    assert message["content"] == "one"
    assert sql(STORED, id=reply_id).text_token is None


@pytest.mark.parametrize(("fault", "ending"), [("", "completed"), ("[[fault=400]]", "failed")])
def test_finished_reply_stays_as_it_ended(
    account: Account, attempt: Callable[..., None], fault: str, ending: str
) -> None:
    room_id = account.open_room()
    reply_id = account.prompt(room_id, "hello" + fault)
    attempt(reply_id)
    before, used = account.read(room_id, reply_id), account.daily_usage()

    answer = stop(account, room_id, reply_id)

    assert before["status"] == ending
    assert (answer.status_code, answer.get_json()["message"]) == (200, before)
    assert account.daily_usage() == used


def test_prompt_is_not_a_reply(account: Account) -> None:
    room_id = account.open_room()
    prompt_id, reply_id = ids(send(account, room_id, "hello"))

    answer = stop(account, room_id, prompt_id)

    assert (answer.status_code, answer.get_json()["error"]) == (409, "not_a_reply")
    assert account.read(room_id, reply_id)["status"] == "pending"


def test_reply_of_somebody_else_or_of_another_room_is_not_found(
    account: Account, sign_in: Callable[..., Account], sql: Callable[..., Any]
) -> None:
    other = sign_in()
    room_id = account.open_room()
    reply_id = account.prompt(room_id, "hello")

    answers = [
        stop(other, room_id, reply_id),
        stop(other, other.open_room(), reply_id),
        stop(account, account.open_room(), reply_id),
    ]

    assert [answer.status_code for answer in answers] == [404] * 3
    assert sql(JOB, id=reply_id).stop_requested_at is None


def test_next_of_the_room_is_rung_for_and_runs(
    services: Services, account: Account, attempt: Callable[..., None], gemini: GeminiStandin
) -> None:
    room_id = account.open_room()
    first, second = account.prompt(room_id, "one"), account.prompt(room_id, "two")
    with redis.Redis.from_url(services.environ["REDIS_URL"]) as queue:
        queue.delete("{dramatiq}:replies", "{dramatiq}:replies.msgs")

        stop(account, room_id, first)

        (message,) = queue.hvals("{dramatiq}:replies.msgs")
    assert second.encode() in message
    attempt(second)
    assert account.read(room_id, second)["status"] == "completed"


def test_waiting_reply_is_stopped_before_its_turn(
    account: Account, attempt: Callable[..., None], gemini: GeminiStandin
) -> None:
    room_id = account.open_room()
    first, second, third = (account.prompt(room_id, content) for content in ("one", "two", "three"))

    stopped(stop(account, room_id, second))

    for reply_id in (first, third):
        attempt(reply_id)
        assert account.read(room_id, reply_id)["status"] == "completed"
    assert account.daily_usage() == 2


def test_reply_has_one_end_when_stop_and_completion_race(
    app: Flask,
    pro_account: Account,
    attempt: Callable[..., None],
    gemini: GeminiStandin,
    sql: Callable[..., Any],
) -> None:
    room_id = pro_account.open_room()
    for delay in range(12):
        reply_id = pro_account.prompt(room_id, "hello")

        def act(index: int, reply_id: str = reply_id, delay: float = delay * 0.004) -> Any:
            if index:
                return attempt(reply_id)
            time.sleep(delay)
            return stop(beside(app, pro_account), room_id, reply_id).get_json()["message"]

        message, _ = race(2, act)

        assert pro_account.read(room_id, reply_id) == message
        assert message["status"] in {"stopped", "completed"}
        assert ('You said: "hello"' in message["content"]) or message["status"] == "stopped"
        assert sql(JOB, id=reply_id) is None


def test_room_that_is_deleted_meanwhile_is_not_found(app: Flask, account: Account, sql: Callable[..., Any]) -> None:
    room_id = account.open_room()
    reply_id = account.prompt(room_id, "hello")
    take(app, reply_id)

    def act(index: int) -> Any:
        if index == 0:
            return stop(beside(app, account), room_id, reply_id)
        wait_for(lambda: sql(JOB, id=reply_id).stop_requested_at, every=0.01)
        return account.call("DELETE", f"/chatroom/{room_id}")

    answer, deleted = race(2, act)

    assert (answer.status_code, deleted.status_code) == (404, 200)
