"""What every Gemini client makes of answers that Google would not send."""

from __future__ import annotations

import contextlib
import json
import time

import pytest

from chatapi.replies.gemini.base import GeminiError, GeminiRejected, GeminiRetryable
from tests.replies.gemini.support import TIMEOUT_SECONDS, Way, asked, assert_tells_no_secret, http

SLOW_ANSWERS = {
    "within the head": [b"HTTP/1.1 200 OK\r\nX-Slow: ", *[b"a"] * 60],
    "within a body of known length": [b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", *[b" "] * 60],
    "after a body that ends with the connection": [b"HTTP/1.1 200 OK\r\n\r\nGOOD", *[b" "] * 60],
    "within the length of a chunk": [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", *[b"0"] * 60],
}


@pytest.mark.slow
@pytest.mark.parametrize("pieces", SLOW_ANSWERS.values(), ids=SLOW_ANSWERS)
def test_call_times_out_when_bytes_keep_dripping(way: Way, pieces: list[bytes]) -> None:
    pieces = [piece.replace(b"GOOD", way.body(way.element())) for piece in pieces]
    with asked(way, pieces, pause_seconds=0.1) as ask:
        started_at = time.monotonic()
        with pytest.raises(GeminiRetryable) as caught:
            ask()
        took = time.monotonic() - started_at

    assert caught.value.timed_out
    assert took < TIMEOUT_SECONDS + 0.5


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"[{}]",
        b"null",
        b"5",
        b'"text"',
        b"\xff\xfe",
        b"<html>reply</html>",
        b" \r\n ",
        pytest.param(b"[" * 100_000, id="deep"),
        b'{"candidates":5}',
        b'{"candidates":[null]}',
        b'{"candidates":[{"content":5}]}',
        b'{"error":{"code":503}}',
        b'{"error":5}',
        b'data: {"error":{"code":"x"}}\r\n\r\n',
        b"data: 5\r\n\r\n",
        b'[{"error":5}]',
        b'[{"error":{"code":true}}]',
    ],
)
def test_call_is_retryable_when_the_answer_makes_no_sense(way: Way, body: bytes) -> None:
    with asked(way, [http(body)]) as ask, pytest.raises(GeminiRetryable) as caught:
        ask()

    assert not caught.value.timed_out
    assert_tells_no_secret(caught.value, "html", "candidates")


@pytest.mark.parametrize("text", ["\ud800", " \n", "", "\x00"])
@pytest.mark.parametrize("finish", ["STOP", "MAX_TOKENS", "OTHER"])
def test_call_is_retryable_when_the_reply_is_no_text(way: Way, text: str, finish: str) -> None:
    body = way.body(way.element("GOOD", finish).replace(b'"GOOD"', json.dumps(text).encode()))
    with asked(way, [http(body)]) as ask, pytest.raises(GeminiRetryable) as caught:
        ask()

    assert not caught.value.timed_out


@pytest.mark.parametrize("finish", [b'"SOMETHING_NEW"', b"null", b"{}"])
@pytest.mark.filterwarnings("ignore:.*is not a valid FinishReason")
def test_call_has_one_of_its_outcomes_when_the_finish_is_of_another_shape(way: Way, finish: bytes) -> None:
    element = b'{"candidates":[{"content":{"parts":[{"text":"well"}]},"finishReason":%s}]}' % finish
    with asked(way, [http(way.body(element))]) as ask, contextlib.suppress(GeminiRetryable):
        assert ask().text == "well"


@pytest.mark.parametrize("finish", ["STOP", "MAX_TOKENS", "OTHER", "LANGUAGE", "INVENTED_LATER"])
@pytest.mark.filterwarnings("ignore:INVENTED_LATER is not a valid FinishReason")
def test_answer_comes_when_the_finish_is_ordinary_or_unknown_and_there_is_text(way: Way, finish: str) -> None:
    with asked(way, [http(way.body(way.element(finish=finish)))]) as ask:
        assert ask().text == "well"


@pytest.mark.parametrize("finish", ["SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII"])
def test_call_is_rejected_when_the_finish_is_a_block_although_there_is_text(way: Way, finish: str) -> None:
    body = way.body(way.element(finish=finish))
    with asked(way, [http(body)]) as ask, pytest.raises(GeminiRejected) as caught:
        ask()

    assert caught.value.reason == "safety_blocked"


def test_nul_is_dropped_when_the_reply_holds_it(way: Way) -> None:
    with asked(way, [http(way.body(way.element("we\x00ll")))]) as ask:
        assert ask().text == "well"


@pytest.mark.parametrize(
    "error",
    [
        "a proxy's",
        5,
        {"message": 5, "details": 5},
        {"details": [5, {"@type": 5}]},
        [],
        None,
        {"details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "soon"}]},
    ],
)
@pytest.mark.parametrize("status", ["400 Bad Request", "503 Service Unavailable"])
def test_call_goes_by_the_status_when_the_error_is_not_in_googles_shape(way: Way, status: str, error: object) -> None:
    body = json.dumps({"error": error}).encode()
    kind = GeminiRejected if status.startswith("400") else GeminiRetryable
    with asked(way, [http(body, status)]) as ask, pytest.raises(kind) as caught:
        ask()

    assert getattr(caught.value, "retry_after", None) is None


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("302 Found", GeminiRejected),
        ("418 Teapot", GeminiRejected),
        ("409 Conflict", GeminiRetryable),
        ("499 Cancelled", GeminiRetryable),
        ("529 Overloaded", GeminiRetryable),
    ],
)
def test_call_goes_by_the_status_when_it_is_a_rare_one(way: Way, status: str, kind: type[GeminiError]) -> None:
    answer = http(b"<html>", f"{status}\r\nLocation: /elsewhere")
    with asked(way, [answer]) as ask, pytest.raises(kind) as caught:
        ask()

    assert caught.value.status == int(status[:3])


@pytest.mark.parametrize("is_wrapped", [True, False])
def test_delay_is_read_when_the_error_is_wrapped_in_a_list_or_not(way: Way, is_wrapped: bool) -> None:
    details = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "37.5s"}]
    error = {"error": {"code": 429, "details": details}}
    body = json.dumps([error] if is_wrapped else error).encode()
    with asked(way, [http(body, "429 Too Many Requests")]) as ask, pytest.raises(GeminiRetryable) as caught:
        ask()

    assert caught.value.retry_after == 37.5


@pytest.mark.parametrize(
    "message",
    [
        "The input token count is 900 but model only supports up to 800.",
        "Request payload size exceeds the limit: 20971520 bytes.",
    ],
)
def test_call_is_too_long_when_google_says_it_in_other_words(way: Way, message: str) -> None:
    body = json.dumps({"error": {"code": 400, "message": message}}).encode()
    with asked(way, [http(body, "400 Bad Request")]) as ask, pytest.raises(GeminiRejected) as caught:
        ask()

    assert caught.value.reason == "context_too_long"
