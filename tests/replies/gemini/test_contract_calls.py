"""How a call to the model ends before its answer does: by its deadline or by being cancelled."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog

from chatapi.dev.gemini_faults import Fault
from chatapi.dev.gemini_standin import GeminiStandin
from chatapi.replies.gemini.base import GeminiCancelled, GeminiClient, GeminiRetryable
from chatapi.upstream.calls import UpstreamCall
from tests.replies.gemini.support import Way, assert_tells_no_secret, make_client, prompt, wait_until

ROOT = Path(__file__).resolve().parents[3]


def cancelled_within(seconds: float, ask: Callable[[UpstreamCall], object], begun: Callable[[], bool]) -> None:
    """Cancel a call once it has `begun`, and check that it ends within `seconds` of that."""
    call = UpstreamCall(20)
    cancelled_at: list[float] = []

    def cancel() -> None:
        assert wait_until(begun, 5)
        time.sleep(0.1)
        cancelled_at.append(time.monotonic())
        call.cancel()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    with pytest.raises(GeminiCancelled) as caught:
        ask(call)
    ended_at = time.monotonic()
    canceller.join()
    assert ended_at - cancelled_at[0] < seconds
    assert_tells_no_secret(caught.value)


@pytest.mark.parametrize("fault", [Fault("hang"), Fault("drip"), Fault("hang_in_stream"), Fault(latency_ms=9000)])
def test_call_ends_and_its_connection_closes_when_it_is_cancelled(
    way: Way, client: GeminiClient, standin: GeminiStandin, fault: Fault
) -> None:
    standin.add_fault(fault)

    cancelled_within(0.2, lambda call: way.ask(client, call=call), lambda: bool(standin.requests))

    assert wait_until(lambda: standin.requests[0].was_left)
    standin.clear()
    assert way.ask(client).text


def test_call_sends_nothing_when_it_was_cancelled_before(
    way: Way, client: GeminiClient, standin: GeminiStandin
) -> None:
    call = UpstreamCall(5)
    call.cancel()

    with pytest.raises(GeminiCancelled):
        way.ask(client, call=call)

    assert standin.requests == []


def test_no_text_comes_any_more_when_the_reader_cancels(streaming: GeminiClient, standin: GeminiStandin) -> None:
    standin.add_fault(Fault(words=100))
    call = UpstreamCall(5)
    texts: list[str] = []

    def take(text: str) -> None:
        texts.append(text)
        call.cancel()

    with pytest.raises(GeminiCancelled):
        streaming.stream(prompt("hi"), call, take)

    assert len(texts) == 1


def test_call_ends_when_it_is_cancelled_while_connecting(way: Way) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        # Whoever connects after these waits for ever.
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        client = make_client(way.sdk, f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=10)

        cancelled_within(0.2, lambda call: way.ask(client, call=call), lambda: True)

        client.close()
        for one in waiting:
            one.close()


def test_call_times_out_when_one_wait_takes_longer_than_allowed(way: Way, standin: GeminiStandin) -> None:
    standin.add_fault(Fault("hang_in_stream"))
    client = make_client(way.sdk, standin.url, timeout=0.3)
    started_at = time.monotonic()

    with pytest.raises(GeminiRetryable) as caught:
        way.ask(client, call=UpstreamCall(20))

    assert caught.value.timed_out
    assert time.monotonic() - started_at < 1
    client.close()


def test_call_times_out_when_no_wait_is_long_but_all_together_are(
    streaming: GeminiClient, standin: GeminiStandin
) -> None:
    standin.add_fault(Fault(words=1000, chunk_ms=50))
    started_at = time.monotonic()

    with pytest.raises(GeminiRetryable) as caught:
        streaming.stream(prompt("hi"), UpstreamCall(0.5), lambda _: None)

    assert caught.value.timed_out
    assert 0.4 < time.monotonic() - started_at < 0.8
    assert wait_until(lambda: standin.requests[0].was_left)


def test_next_call_is_not_cut_when_an_earlier_one_on_its_connection_is_cancelled_late(
    way: Way, client: GeminiClient, standin: GeminiStandin
) -> None:
    earlier = UpstreamCall(0.3)
    way.ask(client, call=earlier)
    standin.add_fault(Fault(latency_ms=600))
    threading.Timer(0.1, earlier.cancel).start()

    assert way.ask(client, call=UpstreamCall(5)).text


def test_one_thread_watches_all_calls_when_there_are_many() -> None:
    shut: list[float] = []
    started_at = time.monotonic()
    calls = [UpstreamCall(0.1 + (number % 5) * 0.05) for number in range(50)]

    def make(call: UpstreamCall) -> None:
        with call:
            call.watch(lambda: shut.append(time.monotonic() - started_at - call.seconds))
            wait_until(lambda: call.is_over)

    threads = [threading.Thread(target=make, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    watchers = [thread for thread in threading.enumerate() if thread.name == "upstream-deadlines"]
    for thread in threads:
        thread.join()

    assert len(watchers) == 1
    assert len(shut) == 50
    assert all(-0.01 < late < 0.3 for late in shut)


def test_deadlines_hold_when_the_process_was_forked_from_one_that_had_calls() -> None:
    code = """
import os, sys, time
from chatapi.upstream.calls import UpstreamCall

def is_ended():
    with UpstreamCall(0.1) as call:
        time.sleep(0.5)
        return call.is_expired

assert is_ended()
child = os.fork()
if child == 0:
    os._exit(0 if is_ended() else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT, timeout=20).returncode == 0


def test_call_names_the_request_that_it_is_made_for_and_the_next_does_not(
    way: Way, client: GeminiClient, standin: GeminiStandin
) -> None:
    with structlog.contextvars.bound_contextvars(request_id="asked-for-this"):
        way.ask(client)
    with structlog.contextvars.bound_contextvars(request_id=None):
        way.ask(client)

    assert [each.headers.get("x-request-id") for each in standin.requests] == ["asked-for-this", None]
