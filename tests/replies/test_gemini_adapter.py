"""The google-generativeai adapter against servers that speak Gemini's wire, well and badly."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from chatapi.dev.gemini_faults import KINDS, Fault
from chatapi.dev.gemini_standin import GeminiStandin
from chatapi.replies.gemini.base import GeminiError, GeminiRejected, GeminiRetryable, Prompt, Turn
from chatapi.replies.gemini.generativeai import GenerativeAIClient

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_SECONDS = 1.0
PROMPT_TEXT = "a prompt that must not be logged"
API_KEY = "a-key-that-must-not-be-logged"


@pytest.fixture
def standin() -> Iterator[GeminiStandin]:
    with GeminiStandin() as running:
        yield running


@pytest.fixture
def client(standin: GeminiStandin) -> Iterator[GenerativeAIClient]:
    made = GenerativeAIClient(API_KEY, standin.url, TIMEOUT_SECONDS)
    yield made
    made.close()


def prompt(text: str = PROMPT_TEXT, model: str = "some-model") -> Prompt:
    return Prompt(model, [Turn("user", text)], None)


def test_generate_sends_history_and_instruction_when_given(client: GenerativeAIClient, standin: GeminiStandin) -> None:
    turns = [Turn("user", "one"), Turn("model", "two"), Turn("user", "three")]

    answer = client.generate(Prompt("some-model", turns, "Be brief."))

    [request] = standin.requests
    assert request.body["contents"] == [{"role": turn.role, "parts": [{"text": turn.text}]} for turn in turns]
    assert request.body["systemInstruction"]["parts"] == [{"text": "Be brief."}]
    assert (request.model, request.method) == ("some-model", "generateContent")
    assert 'You said: "three"' in answer.text
    assert answer.model == "some-model"
    assert answer.prompt_tokens
    assert answer.output_tokens


@pytest.mark.parametrize("instruction", [None, ""])
def test_generate_sends_no_instruction_when_there_is_none(
    client: GenerativeAIClient, standin: GeminiStandin, instruction: str | None
) -> None:
    client.generate(Prompt("some-model", [Turn("user", "hi")], instruction))

    assert "systemInstruction" not in standin.requests[0].body


def test_generate_answers_without_key_when_endpoint_is_given(
    standin: GeminiStandin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    monkeypatch.delenv("GOOGLE_API_KEY", raising=False)
    client = GenerativeAIClient(None, standin.url + "/", TIMEOUT_SECONDS)

    assert client.generate(prompt("hi")).text
    client.close()


def test_client_is_refused_when_it_has_neither_key_nor_endpoint() -> None:
    with pytest.raises(ValueError, match="key or an endpoint"):
        GenerativeAIClient(None, None, TIMEOUT_SECONDS)


def test_generate_keeps_whole_text_when_it_is_right_to_left_or_beyond_the_bmp(client: GenerativeAIClient) -> None:
    assert "שלום 🙂" in client.generate(prompt("שלום 🙂")).text


RETRYABLE = {
    "429": {"status": 429},
    "500": {"status": 500},
    "503": {"status": 503},
    "504": {"status": 504, "timed_out": True},
    "hang": {"timed_out": True},
    "drip": {"timed_out": True},
    "cut": {},
    "empty": {"status": 200},
    "empty_text": {"status": 200},
    "no_finish": {"status": 200},
    "bad_json": {"status": 200},
    "error_in_stream": {"status": 200},
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
def test_generate_is_retryable_when_upstream_fails(
    client: GenerativeAIClient, standin: GeminiStandin, kind: str
) -> None:
    standin.add_fault(Fault(kind))
    started_at = time.monotonic()

    with pytest.raises(GeminiRetryable) as caught:
        client.generate(prompt())

    expected = {"status": None, "timed_out": False, "retry_after": None, **RETRYABLE[kind]}
    assert vars(caught.value) == expected
    assert_tells_no_secret(caught.value)
    assert time.monotonic() - started_at < TIMEOUT_SECONDS + 0.5
    assert len(standin.requests) == 1, "The attempts are counted by whoever calls, not hidden here."


@pytest.mark.parametrize("kind", REJECTED)
def test_generate_is_rejected_when_the_same_prompt_would_fail_again(
    client: GenerativeAIClient, standin: GeminiStandin, kind: str
) -> None:
    standin.add_fault(Fault(kind))

    with pytest.raises(GeminiRejected) as caught:
        client.generate(prompt())

    assert (caught.value.status, caught.value.reason) == REJECTED[kind]
    assert_tells_no_secret(caught.value)
    assert len(standin.requests) == 1


@pytest.mark.parametrize(("milliseconds", "seconds"), [(1500, 1.5), (37_000, 37.0), (1, 0.001)])
@pytest.mark.parametrize("kind", ["429", "503"])
def test_generate_tells_the_delay_when_upstream_names_one(
    client: GenerativeAIClient, standin: GeminiStandin, kind: str, milliseconds: int, seconds: float
) -> None:
    standin.add_fault(Fault(kind, retry_after_ms=milliseconds))

    with pytest.raises(GeminiRetryable) as caught:
        client.generate(prompt())

    assert caught.value.retry_after == seconds


def test_generate_answers_with_what_there_is_when_tokens_ran_out(
    client: GenerativeAIClient, standin: GeminiStandin
) -> None:
    standin.add_fault(Fault("max_tokens"))

    assert client.generate(prompt()).text.startswith("[Gemini stand-in")


def test_generate_answers_when_upstream_is_slow_but_within_time(
    client: GenerativeAIClient, standin: GeminiStandin
) -> None:
    standin.add_fault(Fault(latency_ms=400))

    assert client.generate(prompt()).text


def test_generate_answers_on_the_same_client_when_upstream_recovers(
    client: GenerativeAIClient, standin: GeminiStandin
) -> None:
    for kind in ("cut", "hang", "503"):
        standin.add_fault(Fault(kind, times=1))
        with pytest.raises(GeminiRetryable):
            client.generate(prompt())

    assert client.generate(prompt()).text


def test_generate_is_retryable_when_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    client = GenerativeAIClient(API_KEY, f"http://127.0.0.1:{port}", TIMEOUT_SECONDS)

    with pytest.raises(GeminiRetryable) as caught:
        client.generate(prompt())

    assert not caught.value.timed_out
    assert_tells_no_secret(caught.value)
    client.close()


def test_generate_raises_as_it_is_when_the_prompt_is_our_own_mistake(client: GenerativeAIClient) -> None:
    with pytest.raises(TypeError):
        client.generate(Prompt("some-model", [], None))
    with pytest.raises(UnicodeEncodeError):
        client.generate(prompt("\ud800"))


def test_generate_gives_each_thread_its_own_answer_when_many_call_at_once(
    client: GenerativeAIClient, standin: GeminiStandin
) -> None:
    standin.add_fault(Fault("503", match="-7-"))
    standin.add_fault(Fault("cut", match="-8-"))

    def ask(number: int) -> str:
        try:
            return client.generate(prompt(f"-{number}-")).text
        except GeminiRetryable:
            return "failed"

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(ask, [number % 20 for number in range(200)]))

    for index, answer in enumerate(answers):
        number = index % 20
        assert (answer == "failed") if number in {7, 8} else (f'You said: "-{number}-"' in answer)


def test_generate_keeps_the_connections_of_all_threads_when_there_are_more_than_ten() -> None:
    accepted: list[socket.socket] = []
    all_at_once = threading.Barrier(20)
    with serve(lambda connection: answer_forever(connection, accepted, all_at_once)) as url:
        client = GenerativeAIClient(API_KEY, url, TIMEOUT_SECONDS * 5, pool_size=20)
        with ThreadPoolExecutor(20) as pool:
            list(pool.map(lambda _: client.generate(prompt()), range(100)))
        client.close()

    assert len(accepted) <= 20


def answer(body: bytes, status: str = "200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


GOOD = b'{"candidates":[{"content":{"parts":[{"text":"well"}]},"finishReason":%s}]}'

SLOW_ANSWERS = {
    "within the head": [b"HTTP/1.1 200 OK\r\nX-Slow: "] + [b"a"] * 60,
    "within a body of known length": [b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"] + [b" "] * 60,
    "after a body that ends with the connection": [b"HTTP/1.1 200 OK\r\n\r\n" + GOOD % b"1"] + [b" "] * 60,
    "within the length of a chunk": [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"] + [b"0"] * 60,
}


@pytest.mark.parametrize("pieces", SLOW_ANSWERS.values(), ids=SLOW_ANSWERS)
def test_generate_times_out_when_bytes_keep_dripping(pieces: list[bytes]) -> None:
    started_at = time.monotonic()
    with asked(pieces, pause_seconds=0.1) as ask, pytest.raises(GeminiRetryable) as caught:
        ask()

    assert caught.value.timed_out
    assert time.monotonic() - started_at < TIMEOUT_SECONDS + 0.5


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b"5",
        b"\xff\xfe",
        pytest.param(b"[" * 100_000, id="deep"),
        b'{"candidates":5}',
        b'{"candidates":[null]}',
        b'{"candidates":[{"content":5}]}',
        b'{"error":{"code":503}}',
        GOOD.replace(b"well", b"\\ud800") % b"1",
        GOOD.replace(b"well", b" \\n") % b"1",
        GOOD % b'"SOMETHING_NEW"',
        GOOD.replace(b"well", b"") % b"2",
        GOOD.replace(b"well", b"") % b"99",
    ],
)
def test_generate_is_retryable_when_the_answer_makes_no_sense(body: bytes) -> None:
    with asked([answer(body)]) as ask, pytest.raises(GeminiRetryable) as caught:
        ask()

    assert not caught.value.timed_out


@pytest.mark.parametrize("finish", [1, 2, 5, 6, 99])
def test_generate_answers_when_the_finish_is_ordinary_or_unknown_and_there_is_text(finish: int) -> None:
    with asked([answer(GOOD % str(finish).encode())]) as ask:
        assert ask() == "well"


@pytest.mark.parametrize("finish", [3, 4, 7, 8, 9])
def test_generate_is_rejected_when_the_finish_is_a_block_although_there_is_text(finish: int) -> None:
    with asked([answer(GOOD % str(finish).encode())]) as ask, pytest.raises(GeminiRejected) as caught:
        ask()

    assert caught.value.reason == "safety_blocked"


def test_generate_drops_nul_when_the_reply_holds_it() -> None:
    with asked([answer(GOOD.replace(b"well", b"we\\u0000ll") % b"1")]) as ask:
        assert ask() == "well"


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
def test_generate_goes_by_the_status_when_the_error_is_not_in_googles_shape(status: str, error: object) -> None:
    body = json.dumps({"error": error}).encode()
    kind = GeminiRejected if status.startswith("400") else GeminiRetryable
    with asked([answer(body, status)]) as ask, pytest.raises(kind) as caught:
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
def test_generate_goes_by_the_status_when_it_is_a_rare_one(status: str, kind: type[GeminiError]) -> None:
    with asked([answer(b"<html>", f"{status}\r\nLocation: /elsewhere")]) as ask, pytest.raises(kind):
        ask()


def test_generate_reads_the_error_when_it_is_wrapped_in_a_list() -> None:
    details = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "37.5s"}]
    body = json.dumps([{"error": {"code": 429, "details": details}}]).encode()
    with asked([answer(body, "429 Too Many Requests")]) as ask, pytest.raises(GeminiRetryable) as caught:
        ask()

    assert caught.value.retry_after == 37.5


@pytest.mark.parametrize(
    "message",
    [
        "The input token count is 900 but model only supports up to 800.",
        "Request payload size exceeds the limit: 20971520 bytes.",
    ],
)
def test_generate_says_too_long_when_google_says_it_in_other_words(message: str) -> None:
    body = json.dumps({"error": {"code": 400, "message": message}}).encode()
    with asked([answer(body, "400 Bad Request")]) as ask, pytest.raises(GeminiRejected) as caught:
        ask()

    assert caught.value.reason == "context_too_long"


def test_base_leaves_the_sdk_alone_when_the_web_process_imports_it() -> None:
    code = "import sys, chatapi.replies.gemini.base; sys.exit('google.generativeai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0


def test_adapter_is_silent_when_imported_with_warnings_as_errors() -> None:
    command = [sys.executable, "-W", "error", "-c", "import chatapi.replies.gemini.generativeai"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def assert_tells_no_secret(error: BaseException) -> None:
    """Check everything that a traceback would print."""
    chain: BaseException | None = error
    while chain is not None:
        assert PROMPT_TEXT not in str(chain)
        assert API_KEY not in str(chain)
        chain = chain.__cause__ or (None if chain.__suppress_context__ else chain.__context__)


@contextmanager
def serve(handle: Callable[[socket.socket], None]) -> Iterator[str]:
    """Serve raw bytes: what no well-made server would send."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        threads = []

        def run(connection: socket.socket) -> None:
            with connection:
                try:
                    handle(connection)
                except OSError:
                    return

        def accept() -> None:
            while True:
                connection, _ = listener.accept()
                if is_over.is_set():
                    connection.close()
                    return
                threads.append(threading.Thread(target=run, args=(connection,)))
                threads[-1].start()

        is_over = threading.Event()
        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            is_over.set()
            socket.create_connection(listener.getsockname()).close()
            for thread in [accepting, *threads]:
                thread.join()


def receive_request(connection: socket.socket) -> bool:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65_536)
        if not piece:
            return False
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    [length] = [int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    while len(body) < length:
        body += connection.recv(65_536)
    return True


def answer_forever(connection: socket.socket, accepted: list[socket.socket], all_at_once: threading.Barrier) -> None:
    accepted.append(connection)
    while receive_request(connection):
        all_at_once.wait(timeout=10)
        connection.sendall(answer(GOOD % b"1"))


@contextmanager
def asked(pieces: list[bytes], pause_seconds: float = 0) -> Iterator[Callable[[], str]]:
    """Give a function that asks a server which answers with `pieces`, pausing after each."""

    def handle(connection: socket.socket) -> None:
        receive_request(connection)
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(pause_seconds)

    with serve(handle) as url:
        client = GenerativeAIClient(API_KEY, url, TIMEOUT_SECONDS)
        try:
            yield lambda: client.generate(prompt()).text
        finally:
            client.close()
