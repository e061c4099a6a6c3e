"""What every Gemini client holds to, asked either way, against the stand-in."""

from __future__ import annotations

import logging
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from chatapi.dev.gemini_faults import KINDS, Fault
from chatapi.dev.gemini_standin import GeminiStandin
from chatapi.replies.gemini.base import GeminiClient, GeminiRejected, GeminiRetryable, Prompt, Turn
from chatapi.upstream.calls import UpstreamCall
from tests.replies.gemini.support import (
    API_KEY,
    PROMPT_TEXT,
    TIMEOUT_SECONDS,
    Way,
    assert_tells_no_secret,
    http,
    make_client,
    prompt,
    receive_request,
    serve,
)


def test_request_holds_history_instruction_and_bound_when_given(
    way: Way, client: GeminiClient, standin: GeminiStandin
) -> None:
    turns = [Turn("user", "one"), Turn("model", "two"), Turn("user", "three")]

    answer = way.ask(client, Prompt("some-model", turns, "Be brief.", max_output_tokens=1000))

    [request] = standin.requests
    contents = [(content["role"], content["parts"]) for content in request.body["contents"]]
    assert contents == [(turn.role, [{"text": turn.text}]) for turn in turns]
    assert request.body["systemInstruction"]["parts"] == [{"text": "Be brief."}]
    assert request.body["generationConfig"] == {"maxOutputTokens": 1000}
    assert (request.model, request.method) == (
        "some-model",
        {"generate": "generateContent", "stream": "streamGenerateContent"}[way.method],
    )
    assert 'You said: "three"' in answer.text
    assert answer.model == "some-model"
    assert answer.prompt_tokens
    assert answer.output_tokens


@pytest.mark.parametrize("instruction", [None, ""])
def test_request_holds_no_instruction_when_there_is_none(
    way: Way, client: GeminiClient, standin: GeminiStandin, instruction: str | None
) -> None:
    way.ask(client, Prompt("some-model", [Turn("user", "hi")], instruction))

    assert "systemInstruction" not in standin.requests[0].body


def test_answer_comes_without_key_when_endpoint_is_given(
    way: Way, standin: GeminiStandin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    monkeypatch.delenv("GOOGLE_API_KEY", raising=False)
    client = make_client(way.sdk, standin.url + "/", key=None)

    assert way.ask(client, prompt("hi")).text
    client.close()


def test_client_is_refused_when_it_has_neither_key_nor_endpoint(sdk: str) -> None:
    with pytest.raises(ValueError, match="key or an endpoint"):
        make_client(sdk, None, key=None)


def test_text_is_whole_when_it_is_right_to_left_or_beyond_the_bmp(way: Way, client: GeminiClient) -> None:
    assert "שלום 🙂" in way.ask(client, prompt("שלום 🙂")).text


RETRYABLE = {
    "429": {"status": 429},
    "500": {"status": 500},
    "503": {"status": 503},
    "504": {"status": 504, "timed_out": True},
    "hang": {"timed_out": True},
    "hang_in_stream": {"timed_out": True},
    "drip": {"timed_out": True},
    "cut": {},
    "empty": {"status": 200},
    "empty_text": {"status": 200},
    "no_finish": {"status": 200},
    "bad_json": {"status": 200},
    "error_in_stream": {"status": 503},
}
REJECTED = {
    "400": (400, "upstream_rejected"),
    "401": (401, "upstream_rejected"),
    "403": (403, "upstream_rejected"),
    "404": (404, "upstream_rejected"),
    "too_long": (400, "context_too_long"),
    "blocked": (200, "safety_blocked"),
    "safety": (200, "safety_blocked"),
}


def test_every_fault_of_the_standin_has_its_outcome_here() -> None:
    assert RETRYABLE.keys() | REJECTED.keys() | {"max_tokens"} == KINDS


@pytest.mark.parametrize("kind", RETRYABLE)
def test_call_is_retryable_when_upstream_fails(
    way: Way, client: GeminiClient, standin: GeminiStandin, kind: str
) -> None:
    standin.add_fault(Fault(kind))
    started_at = time.monotonic()

    with pytest.raises(GeminiRetryable) as caught:
        way.ask(client)

    expected = {"status": None, "timed_out": False, "retry_after": None, **RETRYABLE[kind]}
    if (kind, way.method) == ("error_in_stream", "generate"):
        expected["status"] = 200
    assert vars(caught.value) == expected
    assert_tells_no_secret(caught.value)
    assert time.monotonic() - started_at < TIMEOUT_SECONDS + 0.5
    assert len(standin.requests) == 1, "The attempts are counted by whoever calls, not hidden here."


@pytest.mark.parametrize("kind", REJECTED)
def test_call_is_rejected_when_the_same_prompt_would_fail_again(
    way: Way, client: GeminiClient, standin: GeminiStandin, kind: str
) -> None:
    standin.add_fault(Fault(kind))

    with pytest.raises(GeminiRejected) as caught:
        way.ask(client)

    assert (caught.value.status, caught.value.reason) == REJECTED[kind]
    assert_tells_no_secret(caught.value)
    assert len(standin.requests) == 1


def test_call_is_rejected_when_the_model_is_gone(way: Way, client: GeminiClient) -> None:
    with pytest.raises(GeminiRejected) as caught:
        way.ask(client, prompt(model="gone-model"))

    assert caught.value.status == 404


@pytest.mark.parametrize(("milliseconds", "seconds"), [(1500, 1.5), (37_000, 37.0), (1, 0.001)])
@pytest.mark.parametrize("kind", ["429", "503"])
def test_delay_is_told_when_upstream_names_one(
    way: Way, client: GeminiClient, standin: GeminiStandin, kind: str, milliseconds: int, seconds: float
) -> None:
    standin.add_fault(Fault(kind, retry_after_ms=milliseconds))

    with pytest.raises(GeminiRetryable) as caught:
        way.ask(client)

    assert caught.value.retry_after == seconds


def test_answer_is_what_there_is_when_tokens_ran_out(way: Way, client: GeminiClient, standin: GeminiStandin) -> None:
    standin.add_fault(Fault("max_tokens"))

    assert way.ask(client).text.startswith("[Gemini stand-in")


def test_answer_is_cut_when_the_prompt_bounds_its_tokens(way: Way, client: GeminiClient) -> None:
    assert way.ask(client, Prompt("some-model", [Turn("user", "hi")], None, max_output_tokens=4)).text == (
        "[Gemini stand-i"
    )


def test_answer_comes_when_upstream_is_slow_but_within_time(
    way: Way, client: GeminiClient, standin: GeminiStandin
) -> None:
    standin.add_fault(Fault(latency_ms=400))

    assert way.ask(client).text


def test_answer_comes_on_the_same_client_when_upstream_recovers(
    way: Way, client: GeminiClient, standin: GeminiStandin
) -> None:
    for kind in ("cut", "hang", "hang_in_stream", "503", "bad_json"):
        standin.add_fault(Fault(kind, times=1))
        with pytest.raises(GeminiRetryable):
            way.ask(client, call=UpstreamCall(0.2))

    assert way.ask(client).text


def test_call_is_retryable_when_nobody_listens(way: Way) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    client = make_client(way.sdk, f"http://127.0.0.1:{port}")

    with pytest.raises(GeminiRetryable) as caught:
        way.ask(client)

    assert not caught.value.timed_out
    assert_tells_no_secret(caught.value)
    client.close()


def test_error_is_as_it_is_when_the_prompt_is_our_own_mistake(
    way: Way, client: GeminiClient, standin: GeminiStandin
) -> None:
    with pytest.raises(ValueError, match="at least one turn"):
        way.ask(client, Prompt("some-model", [], None))
    with pytest.raises(UnicodeEncodeError):
        way.ask(client, prompt("\ud800"))

    assert standin.requests == []


def test_nothing_secret_is_logged_when_calls_fail(
    way: Way, client: GeminiClient, standin: GeminiStandin, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("urllib3", "google"):
        # As `chatapi.logs` has them.
        caplog.set_level(logging.WARNING, name)
    for kind in (None, "503", "bad_json", "cut", "error_in_stream", "401"):
        standin.clear()
        standin.add_fault(Fault(kind))
        try:
            way.ask(client)
        except (GeminiRetryable, GeminiRejected):
            continue

    for secret in (PROMPT_TEXT, API_KEY, standin.url, "stand-in"):
        assert secret not in caplog.text


def test_each_thread_gets_its_own_answer_when_many_call_at_once(
    way: Way, client: GeminiClient, standin: GeminiStandin
) -> None:
    standin.add_fault(Fault("503", match="-7-"))
    standin.add_fault(Fault("cut", match="-8-"))

    def ask(number: int) -> str:
        try:
            return way.ask(client, prompt(f"-{number}-"), UpstreamCall(20)).text
        except GeminiRetryable:
            return "failed"

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(ask, [number % 20 for number in range(200)]))

    for index, answer in enumerate(answers):
        number = index % 20
        assert (answer == "failed") if number in {7, 8} else (f'You said: "-{number}-"' in answer)


def test_connections_of_all_threads_are_kept_when_there_are_more_than_ten(way: Way) -> None:
    accepted: list[socket.socket] = []
    all_at_once = threading.Barrier(20)

    def answer_forever(connection: socket.socket) -> None:
        accepted.append(connection)
        while receive_request(connection):
            all_at_once.wait(timeout=10)
            body = way.body(way.element())
            # In chunks, as streams come: the connection is kept only if they are read to their end.
            head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            connection.sendall(head + b"%x\r\n%s\r\n" % (len(body), body))
            connection.sendall(b"0\r\n\r\n")

    with serve(answer_forever) as url:
        client = make_client(way.sdk, url, timeout=10, pool_size=20)
        with ThreadPoolExecutor(20) as pool:
            list(pool.map(lambda _: way.ask(client, call=UpstreamCall(20)), range(100)))
        client.close()

    assert len(accepted) == 20


def test_connection_is_kept_when_an_answer_was_a_refusal(way: Way) -> None:
    accepted: list[socket.socket] = []

    def refuse_forever(connection: socket.socket) -> None:
        accepted.append(connection)
        while receive_request(connection):
            connection.sendall(http(b"{}", "503 Service Unavailable"))

    with serve(refuse_forever) as url:
        client = make_client(way.sdk, url)
        for _ in range(3):
            with pytest.raises(GeminiRetryable):
                way.ask(client)
        client.close()

    assert len(accepted) == 1
