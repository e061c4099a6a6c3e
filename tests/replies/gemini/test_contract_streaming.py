"""What every Gemini client holds to when it streams."""

from __future__ import annotations

import json
import socket
import time

import pytest

from chatapi.dev.gemini_faults import Fault
from chatapi.dev.gemini_standin import GeminiStandin
from chatapi.replies.gemini.base import GeminiClient, GeminiRejected, GeminiRetryable
from chatapi.upstream.calls import UpstreamCall
from tests.replies.gemini.support import Way, asked, make_client, prompt, receive_request, serve, wait_until

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def test_text_comes_as_it_is_written_when_upstream_takes_its_time(
    streaming: GeminiClient, standin: GeminiStandin
) -> None:
    standin.add_fault(Fault(words=100, chunk_ms=20))
    came_at: list[float] = []
    started_at = time.monotonic()

    streaming.stream(prompt("hi"), UpstreamCall(10), lambda _: came_at.append(time.monotonic() - started_at))

    total = time.monotonic() - started_at
    assert len(came_at) > 15
    assert came_at[0] < total / 3
    # Each comes when it is written, and not when the next one is.
    assert came_at[-2] < total - 0.01
    assert came_at[len(came_at) // 2] < total * 0.75


def test_first_text_comes_when_the_second_is_never_written(streaming: GeminiClient, standin: GeminiStandin) -> None:
    standin.add_fault(Fault("hang_in_stream", chunks=1))
    texts: list[str] = []

    with pytest.raises(GeminiRetryable) as caught:
        streaming.stream(prompt("hi"), UpstreamCall(0.5), texts.append)

    assert caught.value.timed_out
    assert len(texts) == 1


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_text_is_whole_when_characters_are_split_among_packets(sdk: str, size: int) -> None:
    way = Way(sdk, "stream")
    text = 'a\\"{}[], \n שלום 🙂 "[{'
    body = way.body(way.element(text, None), way.element(" ", None), way.element(text))
    if sdk == "google-generativeai":
        # Blanks may stand around a JSON array.
        body = b"\r\n" + body + b"\r\n \n"
    pieces = [chunk(body[start : start + size]) for start in range(0, len(body), size)]
    with asked(way, [CHUNKED, *pieces, chunk(b"")], pause_seconds=0.0005) as ask:
        assert ask().text == f"{text} {text}"


def test_usage_and_model_are_the_last_told_when_elements_differ(sdk: str) -> None:
    way = Way(sdk, "stream")
    first = json.dumps({"candidates": [{"content": {"parts": [{"text": "a"}]}}], "modelVersion": "old"}).encode()
    usage = {"promptTokenCount": 7, "candidatesTokenCount": 9}
    last = json.dumps({**json.loads(way.element("b")), "usageMetadata": usage, "modelVersion": "new"}).encode()
    with asked(way, [CHUNKED, chunk(way.body(first, last)), chunk(b"")]) as ask:
        answer = ask()

    assert (answer.text, answer.model, answer.prompt_tokens, answer.output_tokens) == ("ab", "new", 7, 9)


@pytest.mark.parametrize(
    ("code", "kind", "status"),
    [(503, GeminiRetryable, 503), (429, GeminiRetryable, 429), (400, GeminiRejected, 400), (0, GeminiRetryable, 200)],
)
def test_call_goes_by_the_code_when_an_error_comes_within_the_stream(
    sdk: str, code: int, kind: type[GeminiRetryable | GeminiRejected], status: int
) -> None:
    way = Way(sdk, "stream")
    error = json.dumps({"error": {"code": code, "message": 'of {"error": 5}'}}).encode()
    # The reply quotes one too, which is text and nothing else.
    quoting = way.element('{"error": {"code": 403}}', None)
    with asked(way, [CHUNKED, chunk(way.body(quoting, error)), chunk(b"")]) as ask, pytest.raises(kind) as caught:
        ask()

    assert caught.value.status == status


def test_delay_is_told_when_an_error_within_the_stream_names_one(sdk: str) -> None:
    way = Way(sdk, "stream")
    details = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "2s"}]
    error = json.dumps({"error": {"code": 429, "details": details}}, indent=2).replace("\n", "").encode()
    body = way.body(way.element("a", None), error)
    with asked(way, [CHUNKED, chunk(body), chunk(b"")]) as ask, pytest.raises(GeminiRetryable) as caught:
        ask()

    assert caught.value.retry_after == 2


def test_call_is_retryable_when_the_stream_ends_cleanly_without_a_finish(sdk: str) -> None:
    way = Way(sdk, "stream")
    body = way.body(way.element("a", None), way.element("b", None))
    with asked(way, [CHUNKED, chunk(body), chunk(b"")]) as ask, pytest.raises(GeminiRetryable) as caught:
        ask()

    assert not caught.value.timed_out


def test_error_is_the_readers_when_taking_a_text_fails(streaming: GeminiClient, standin: GeminiStandin) -> None:
    standin.add_fault(Fault(words=100, chunk_ms=50))

    def fail(_: str) -> None:
        raise ConnectionError("the reader's own")

    with pytest.raises(ConnectionError, match="the reader's own"):
        streaming.stream(prompt("hi"), UpstreamCall(10), fail)

    assert wait_until(lambda: standin.requests[0].was_left)


def test_connection_is_not_used_again_when_its_stream_was_left_half_way(sdk: str) -> None:
    way = Way(sdk, "stream")
    accepted: list[socket.socket] = []

    def handle(connection: socket.socket) -> None:
        accepted.append(connection)
        receive_request(connection)
        if len(accepted) == 1:
            connection.sendall(CHUNKED + chunk(way.body(way.element("old", None), way.element("old"))[:-40]))
            connection.recv(1)
        else:
            connection.sendall(CHUNKED + chunk(way.body(way.element("new"))) + chunk(b""))

    with serve(handle) as url:
        client = make_client(sdk, url)
        with pytest.raises(GeminiRetryable):
            way.ask(client, call=UpstreamCall(0.2))
        assert way.ask(client).text == "new"
        client.close()

    assert len(accepted) == 2
