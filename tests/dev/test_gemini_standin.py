"""The Gemini stand-in as a client sees it on the wire."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from chatapi.dev.gemini_faults import KINDS, Fault
from chatapi.dev.gemini_standin import MAX_RECORDED_REQUESTS, GeminiStandin

ROOT = Path(__file__).resolve().parents[2]
GENERATE = "/v1beta/models/some-model:generateContent"
STREAM = "/v1beta/models/some-model:streamGenerateContent"
AS_INTS = "?%24alt=json%3Benum-encoding%3Dint"


class Client:
    """One keep-alive connection."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self.connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=5)

    def ask_raw(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        self.connection.request(method, path, body=data)
        response = self.connection.getresponse()
        return response.status, response.read()

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        status, raw = self.ask_raw(method, path, body)
        return status, json.loads(raw)


@pytest.fixture
def standin() -> Iterator[GeminiStandin]:
    with GeminiStandin() as running:
        yield running


@pytest.fixture
def client(standin: GeminiStandin) -> Iterator[Client]:
    made = Client(standin.url)
    yield made
    made.connection.close()


def body(*texts: str, system: str | None = None) -> dict[str, Any]:
    roles = ("user", "model")
    contents = [{"role": roles[index % 2], "parts": [{"text": text}]} for index, text in enumerate(texts)]
    return {"contents": contents} | ({"systemInstruction": {"parts": [{"text": system}]}} if system else {})


def text_of(answer: dict[str, Any]) -> str:
    return "".join(part["text"] for part in answer["candidates"][0].get("content", {}).get("parts", []))


def test_reply_tells_what_arrived_when_there_is_history(client: Client) -> None:
    status, answer = client.ask("POST", GENERATE, body("one", "two", "three", system="Be brief."))

    assert status == 200
    assert text_of(answer) == (
        '[Gemini stand-in, model some-model] You said: "three". Earlier turns I was given (2): user: "one"; '
        'model: "two". System instruction: "Be brief.".'
    )
    assert answer["candidates"][0]["finishReason"] == "STOP"
    usage = answer["usageMetadata"]
    assert usage["totalTokenCount"] == usage["promptTokenCount"] + usage["candidatesTokenCount"]
    assert answer["modelVersion"] == "some-model"
    assert answer["responseId"]


def test_reply_says_none_when_nothing_came_before(client: Client) -> None:
    _, answer = client.ask("POST", GENERATE, body("hi"))

    assert text_of(answer).endswith('You said: "hi". Earlier turns I was given: none. System instruction: none.')


def test_reply_shortens_quotes_but_counts_truly_when_there_is_much(client: Client) -> None:
    texts = [f"turn {number} " + "x" * 600 for number in range(21)]

    _, answer = client.ask("POST", GENERATE, body(*texts, system="s" * 600))

    text = text_of(answer)
    assert "Earlier turns I was given (20): …; user:" in text
    assert text.count("turn ") == 7
    assert "turn 20 " + "x" * 480 in text
    assert len(text) < 500 + 7 * 100 + 200


def test_enums_are_numbers_when_the_client_asks_for_that(client: Client) -> None:
    _, answer = client.ask("POST", GENERATE + AS_INTS, body("hi"))

    [candidate] = answer["candidates"]
    assert candidate["finishReason"] == 1
    assert [rating["category"] for rating in candidate["safetyRatings"]] == [7, 8, 9, 10]


def test_stream_is_one_json_array_when_nothing_else_is_asked(client: Client) -> None:
    _, raw = client.ask_raw("POST", STREAM, body("hi"))

    pieces = json.loads(raw)
    assert raw.endswith(b"]")
    assert len(pieces) > 2
    assert "".join(map(text_of, pieces)).endswith("System instruction: none.")
    assert ["finishReason" in piece["candidates"][0] for piece in pieces].index(True) == len(pieces) - 1


def test_stream_is_sse_when_asked(client: Client) -> None:
    _, raw = client.ask_raw("POST", STREAM + "?alt=sse", body("hi"))

    events = raw.decode().split("\r\n\r\n")
    assert events.pop() == ""
    pieces = [json.loads(event.removeprefix("data: ")) for event in events]
    assert "".join(map(text_of, pieces)).startswith("[Gemini stand-in")


def test_stream_pauses_between_pieces_when_told(client: Client) -> None:
    started_at = time.monotonic()

    _, raw = client.ask_raw("POST", STREAM, body("hi [[chunk_ms=50]]"))

    assert time.monotonic() - started_at >= 0.05 * (len(json.loads(raw)) - 1)


def test_tokens_are_counted_when_asked(client: Client) -> None:
    path = "/v1beta/models/some-model:countTokens"

    assert client.ask("POST", path, body("12345678")) == (200, {"totalTokens": 3})
    assert client.ask("POST", path, {"generateContentRequest": body("12345678")}) == (200, {"totalTokens": 3})


def test_models_are_listed_and_described_when_asked(client: Client) -> None:
    _, listed = client.ask("GET", "/v1beta/models")
    status, described = client.ask("GET", "/v1beta/models/some-model")

    assert listed["models"][0]["supportedGenerationMethods"]
    assert (status, described["name"]) == (200, "models/some-model")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1beta/models/unknown-model:generateContent"),
        ("POST", "/v1beta/models/gone-model:streamGenerateContent"),
        ("GET", "/v1beta/models/unknown-model"),
        ("POST", "/v1beta/models/some-model:fly"),
        ("POST", "/elsewhere"),
        ("GET", "/"),
        ("DELETE", "/_control/nothing"),
    ],
)
def test_answer_is_404_when_model_or_path_is_unknown(client: Client, method: str, path: str) -> None:
    status, answer = client.ask(method, path, body("hi") if method == "POST" else None)

    assert (status, answer["error"]["code"], answer["error"]["status"]) == (404, 404, "NOT_FOUND")


@pytest.mark.parametrize(
    "request_body",
    [
        b"{",
        b"",
        b"\xff",
        pytest.param(b"[" * 100_000, id="deep"),
        [],
        {},
        {"contents": []},
        {"contents": "hi"},
        {"contents": [5]},
        {"contents": [{"role": "user"}]},
        {"contents": [{"role": "user", "parts": []}]},
        {"contents": [{"role": "system", "parts": [{"text": "hi"}]}]},
        {"contents": [{"role": "model", "parts": [{"text": "hi"}]}]},
    ],
)
def test_answer_is_400_when_the_request_is_none_that_google_takes(client: Client, request_body: Any) -> None:
    status, answer = client.ask("POST", GENERATE, request_body)

    assert (status, answer["error"]["status"]) == (400, "INVALID_ARGUMENT")
    assert client.ask("POST", GENERATE, body("the connection still works"))[0] == 200


@pytest.mark.parametrize("head", [b"Transfer-Encoding: chunked", b"Content-Length: 9999999999", b"Content-Length: x"])
def test_connection_ends_with_400_when_the_body_cannot_be_drained(standin: GeminiStandin, head: bytes) -> None:
    address = urlsplit(standin.url)
    with socket.create_connection((address.hostname, address.port), timeout=5) as connection:
        connection.sendall(b"POST " + GENERATE.encode() + b" HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))

    assert answer.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    ("kind", "status", "name"),
    [
        ("400", 400, "INVALID_ARGUMENT"),
        ("401", 401, "UNAUTHENTICATED"),
        ("403", 403, "PERMISSION_DENIED"),
        ("404", 404, "NOT_FOUND"),
        ("429", 429, "RESOURCE_EXHAUSTED"),
        ("500", 500, "INTERNAL"),
        ("503", 503, "UNAVAILABLE"),
        ("504", 504, "DEADLINE_EXCEEDED"),
        ("too_long", 400, "INVALID_ARGUMENT"),
    ],
)
def test_error_is_in_googles_shape_when_a_status_is_asked_for(
    client: Client, standin: GeminiStandin, kind: str, status: int, name: str
) -> None:
    standin.add_fault(Fault(kind))

    answered, answer = client.ask("POST", GENERATE, body("hi"))

    assert (answered, answer["error"]["code"], answer["error"]["status"]) == (status, status, name)
    assert answer["error"]["message"]


def test_error_names_its_delay_and_its_reason_when_google_would(client: Client, standin: GeminiStandin) -> None:
    standin.add_fault(Fault("429", times=1, retry_after_ms=1500))
    standin.add_fault(Fault("400", times=1))

    _, too_many = client.ask("POST", GENERATE, body("hi"))
    _, wrong_key = client.ask("POST", GENERATE, body("hi"))

    assert {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "1.5s"} in too_many["error"]["details"]
    assert wrong_key["error"]["details"][0]["reason"] == "API_KEY_INVALID"


def test_answer_lacks_what_it_should_when_a_bad_answer_is_asked_for(client: Client, standin: GeminiStandin) -> None:
    answers = {}
    for kind in ("empty", "blocked", "empty_text", "safety", "max_tokens", "no_finish", "error_in_stream"):
        standin.clear()
        standin.add_fault(Fault(kind))
        answers[kind] = client.ask("POST", GENERATE, body("hi"))[1]

    assert "candidates" not in answers["empty"]
    assert answers["blocked"]["promptFeedback"]["blockReason"] == "SAFETY"
    assert (text_of(answers["empty_text"]), answers["empty_text"]["candidates"][0]["finishReason"]) == ("", "STOP")
    assert answers["safety"]["candidates"][0]["finishReason"] == "SAFETY"
    assert answers["max_tokens"]["candidates"][0]["finishReason"] == "MAX_TOKENS"
    assert text_of(answers["max_tokens"])
    assert text_of(answers["no_finish"])
    assert "finishReason" not in answers["no_finish"]["candidates"][0]
    assert answers["error_in_stream"]["error"]["code"] == 503


@pytest.mark.parametrize("kind", ["empty", "blocked", "empty_text", "safety", "max_tokens", "no_finish"])
def test_stream_stays_an_array_when_a_bad_answer_is_asked_for(
    client: Client, standin: GeminiStandin, kind: str
) -> None:
    standin.add_fault(Fault(kind))

    _, pieces = client.ask("POST", STREAM, body("hi"))

    last = pieces[-1].get("candidates", [{}])[0].get("finishReason")
    assert last == {"safety": "SAFETY", "max_tokens": "MAX_TOKENS", "empty_text": "STOP"}.get(kind)


def test_stream_holds_the_error_second_when_error_in_stream_is_asked_for(
    client: Client, standin: GeminiStandin
) -> None:
    standin.add_fault(Fault("error_in_stream"))

    status, pieces = client.ask("POST", STREAM, body("hi"))

    assert status == 200
    assert [next(iter(piece)) for piece in pieces] == ["candidates", "error"]


@pytest.mark.parametrize("path", [GENERATE, STREAM])
def test_json_is_broken_when_bad_json_is_asked_for(client: Client, standin: GeminiStandin, path: str) -> None:
    standin.add_fault(Fault("bad_json"))

    status, raw = client.ask_raw("POST", path, body("hi"))

    assert status == 200
    with pytest.raises(json.JSONDecodeError):
        json.loads(raw)


@pytest.mark.parametrize("path", [GENERATE, STREAM])
def test_connection_ends_within_the_body_when_cut_is_asked_for(
    client: Client, standin: GeminiStandin, path: str
) -> None:
    standin.add_fault(Fault("cut"))

    with pytest.raises(http.client.IncompleteRead):
        client.ask("POST", path, body("hi"))


def test_no_byte_comes_when_hang_is_asked_for_and_its_thread_ends_when_the_client_leaves(
    standin: GeminiStandin,
) -> None:
    standin.add_fault(Fault("hang"))
    before = threading.active_count()
    client = Client(standin.url)
    client.connection.timeout = 0.3

    with pytest.raises(TimeoutError):
        client.ask("POST", GENERATE, body("hi"))
    assert threading.active_count() == before + 1
    client.connection.close()

    deadline = time.monotonic() + 2
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_bytes_keep_coming_when_drip_is_asked_for(client: Client, standin: GeminiStandin) -> None:
    standin.add_fault(Fault("drip"))

    client.connection.request("POST", GENERATE, body=json.dumps(body("hi")))
    with client.connection.getresponse() as response:
        assert [response.read(1) for _ in range(4)] == [b" "] * 4
    client.connection.close()


def test_answer_is_late_when_latency_is_asked_for(client: Client, standin: GeminiStandin) -> None:
    standin.add_fault(Fault(latency_ms=200))
    started_at = time.monotonic()

    assert client.ask("POST", GENERATE, body("hi"))[0] == 200
    assert time.monotonic() - started_at >= 0.2


def test_faults_apply_in_order_and_as_often_as_said_when_several_were_added(
    client: Client, standin: GeminiStandin
) -> None:
    standin.add_fault(Fault("503", times=2))
    standin.add_fault(Fault("429", times=1, match="please"))

    statuses = [client.ask("POST", GENERATE, body(text))[0] for text in ("a", "b", "c", "please", "please")]

    assert statuses == [503, 503, 200, 429, 200]


def test_times_hold_when_many_threads_ask_at_once(standin: GeminiStandin) -> None:
    standin.add_fault(Fault("503", times=10))
    statuses = []

    def ask() -> None:
        client = Client(standin.url)
        statuses.append(client.ask("POST", GENERATE, body("hi"))[0])
        client.connection.close()

    threads = [threading.Thread(target=ask) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (statuses.count(503), statuses.count(200)) == (10, 30)


def test_directive_counts_per_prompt_when_it_says_how_often(client: Client) -> None:
    texts = ["a [[fault=503 times=1]]", "b [[fault=503 times=1]]"]

    statuses = [client.ask("POST", GENERATE, body(text))[0] for text in texts * 2]

    assert statuses == [503, 503, 200, 200]


def test_directive_holds_for_the_last_prompt_only_when_history_has_one(client: Client) -> None:
    assert client.ask("POST", GENERATE, body("[[fault=503]]", "no", "again"))[0] == 200


@pytest.mark.parametrize(
    "text", ["[[a wiki link]]", "[[fault=nonsense]]", "[[times=x]]", "[[]]", "[[ ]]", "[[times=٣]]", "[[fault=503"]
)
def test_text_in_brackets_is_ordinary_when_it_is_no_directive(client: Client, text: str) -> None:
    status, answer = client.ask("POST", GENERATE, body(text))

    assert status == 200
    assert f'You said: "{text}"' in text_of(answer)


def test_every_kind_can_be_asked_for_when_it_comes_as_a_directive(client: Client) -> None:
    for kind in sorted(KINDS - {"hang", "hang_in_stream", "drip", "cut", "bad_json"}):
        status, answer = client.ask("POST", GENERATE, body(f"[[fault={kind}]]"))
        ordinary = answer.get("candidates", [{}])[0].get("finishReason") == "STOP" and text_of(answer)
        assert status != 200 or not ordinary


def test_faults_are_controlled_over_http_when_the_server_is_another_process(client: Client) -> None:
    assert client.ask("POST", "/_control/faults", {"kind": "503", "match": "x"}) == (200, {})
    assert client.ask("POST", GENERATE, body("x"))[0] == 503

    assert client.ask("DELETE", "/_control/faults") == (200, {})
    assert client.ask("POST", GENERATE, body("x"))[0] == 200


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "nonsense"},
        {"kind": 503},
        {"surprise": 1},
        {"times": -1},
        {"latency_ms": "1"},
        [],
        5,
        {"kind": ["503"]},
        {"match": 5},
        {"chunk_ms": None},
        {"times": True},
    ],
)
def test_fault_is_refused_when_its_fields_make_no_sense(client: Client, fields: Any) -> None:
    assert client.ask("POST", "/_control/faults", fields)[0] == 400
    assert client.ask("POST", GENERATE, body("hi"))[0] == 200


def test_requests_are_listed_without_the_key_when_asked_for(client: Client, standin: GeminiStandin) -> None:
    client.connection.request("POST", GENERATE, json.dumps(body("hi")), {"x-goog-api-key": "sesame"})
    client.connection.getresponse().read()

    status, requests = client.ask("GET", "/_control/requests")

    assert status == 200
    assert requests[0]["body"] == body("hi")
    assert requests[0]["headers"]["x-goog-api-key"] == "(sent)"
    assert "sesame" not in json.dumps(requests)
    assert client.ask("DELETE", "/_control/requests")[0] == 200
    assert standin.requests == []


def test_requests_are_bounded_when_many_came(client: Client, standin: GeminiStandin) -> None:
    for number in range(MAX_RECORDED_REQUESTS + 5):
        client.ask("POST", "/v1beta/models/some-model:countTokens", body(str(number)))

    assert len(standin.requests) == MAX_RECORDED_REQUESTS
    assert standin.requests[-1].body == body(str(MAX_RECORDED_REQUESTS + 4))


def test_stop_cuts_whoever_waits_and_frees_the_port_when_called() -> None:
    standin = GeminiStandin()
    standin.start()
    standin.add_fault(Fault("hang"))
    client = Client(standin.url)
    client.connection.request("POST", GENERATE, body=json.dumps(body("hi")))
    started_at = time.monotonic()

    standin.stop()

    assert time.monotonic() - started_at < 2
    with pytest.raises(ConnectionError):
        client.connection.getresponse()
    client.connection.close()
    with GeminiStandin(urlsplit(standin.url).port or 0) as again:
        assert again.url == standin.url


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_process_ends_cleanly_when_signalled(number: int) -> None:
    command = [sys.executable, "-m", "chatapi.dev.gemini_standin", "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        url = process.stderr.readline().split()[-1]
        client = Client(url)
        assert client.ask("POST", GENERATE, body("hi"))[0] == 200

        os.kill(process.pid, number)

        assert process.wait(timeout=5) == 0
        assert process.stderr.read() == ""
        client.connection.close()
