"""A server that speaks Gemini's REST wire, for `make run` without a key and for tests.

It answers generateContent, streamGenerateContent (a JSON array, or SSE with `alt=sse`), countTokens and the list of
models. The reply tells what arrived. A model whose name begins with `unknown` or `gone` is not found, one that begins
with `embedding` answers no prompts, and a key that begins with `invalid` is refused; any other will do.

A fault (`chatapi.dev.gemini_faults.Fault` has the fields) can be asked for
- in the process: `standin.add_fault(Fault("503", times=2))`, `standin.clear()`;
- over HTTP: `POST /_control/faults` with the fields as JSON, `DELETE /_control/faults`; what arrived is at
  `GET /_control/requests`, forgotten by `DELETE /_control/requests`;
- within the prompt: `[[fault=503 times=2 retry_after_ms=1500]]`, `[[latency_ms=2000]]`; `times` then counts per
  identical prompt, and once used up, what was added otherwise applies.

`[[words=200 chunk_ms=50]]` makes a reply of 200 words, which streams in many pieces. It keeps to maxOutputTokens, and
answers a system instruction that begins with "Write a title" by the first words of the user's text.

Kinds: 400 401 403 404 429 500 503 504; hang (no answer), hang_in_stream (no more after `chunks` elements; unary, after
the head), drip (a blank now and then, for ever), cut (closes within the body, a stream after `chunks` elements),
empty (no candidate), empty_text (a candidate without parts), blocked (the prompt), safety (the reply), max_tokens,
no_finish (no finishReason), bad_json, error_in_stream, too_long.

A recorded request has `was_left` from the moment its client closes the connection while the answer is under way, and
`is_open` until it is answered.

Run it with `python -m chatapi.dev.gemini_standin --port N`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import re
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from chatapi.dev import gemini_wire as wire
from chatapi.dev.gemini_faults import STATUS_KINDS, Fault, FaultBook
from chatapi.dev.standin_http import MAX_BODY_BYTES, BodyRefusedError, StandinHandler, StandinServer

logger = logging.getLogger(__name__)

MAX_RECORDED_REQUESTS = 200
MAX_HANG_SECONDS = 600
DRIP_SECONDS = 0.2
RECORDED_HEADERS = ("content-type", "user-agent", "x-goog-api-client", "x-request-id")
JSON_TYPE = "application/json; charset=UTF-8"
MODEL_METHOD = re.compile(
    r"/v1beta/models/(?P<model>[^/:]+):(?P<method>generateContent|streamGenerateContent|countTokens)"
)


@dataclass
class RecordedRequest:
    """A request as it arrived. Of the key only that there was one: it may be a real one, sent here by mistake."""

    path: str
    model: str
    method: str
    body: Any
    headers: dict[str, str]
    was_left: bool = False
    is_open: bool = True


class GeminiStandin:
    """The server; `url` is where it listens from the moment it is made, `start` has it answer."""

    def __init__(self, port: int = 0) -> None:
        self._lock = threading.Lock()
        self._requests: deque[RecordedRequest] = deque(maxlen=MAX_RECORDED_REQUESTS)
        self.faults = FaultBook()
        self._server = _Server(port, self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def start(self) -> None:
        """Serve in a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Stop listening and cut every connection, as a server that dies does."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()
        self._server.cut_connections()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def requests(self) -> list[RecordedRequest]:
        """The newest requests, oldest first."""
        with self._lock:
            return list(self._requests)

    def record(self, request: RecordedRequest) -> None:
        """Remember `request`."""
        with self._lock:
            self._requests.append(request)

    def forget_requests(self) -> None:
        """Forget what arrived so far."""
        with self._lock:
            self._requests.clear()

    def add_fault(self, fault: Fault) -> None:
        """Show `fault` to the prompts it applies to."""
        self.faults.add(fault)

    def clear(self) -> None:
        """Behave well again."""
        self.faults.clear()


class _Server(StandinServer):
    def __init__(self, port: int, standin: GeminiStandin) -> None:
        self.standin = standin
        super().__init__(port, _Handler)


class _Handler(StandinHandler):
    server: _Server

    def do_GET(self) -> None:  # noqa: N802 - the base class looks it up by this name.
        self._answer_by(self._get)

    def do_DELETE(self) -> None:  # noqa: N802 - the base class looks it up by this name.
        self._answer_by(self._delete)

    def do_POST(self) -> None:  # noqa: N802 - the base class looks it up by this name.
        self._answer_by(self._post)

    def _answer_by(self, route: Callable[[str, bytes], None]) -> None:
        try:
            raw = self.read_body()
            if self._key().startswith("invalid") and self.url_path().startswith("/v1beta/"):
                self.send_json(400, wire.fault_error_body(400, "", None))
            else:
                route(self.url_path(), raw)
        except BodyRefusedError:
            message = f"Request payload size exceeds the limit: {MAX_BODY_BYTES} bytes, or its length is not known."
            self.send_json(400, wire.error_body(400, message))
        except wire.InvalidRequestError as error:
            self.send_json(400, wire.error_body(400, str(error)))

    def _key(self) -> str:
        return str(self.headers.get("x-goog-api-key") or "".join(self.query().get("key", [])))

    def _get(self, path: str, _: bytes) -> None:
        standin = self.server.standin
        model = path.removeprefix("/v1beta/models/")
        if path == "/_control/requests":
            self.send_json(200, [dataclasses.asdict(request) for request in standin.requests])
        elif path == "/v1beta/models":
            models = dict.fromkeys(request.model for request in standin.requests) or ["stand-in"]
            self.send_json(200, {"models": [wire.model_body(model) for model in models]})
        elif model == path or "/" in model or not model:
            self._send_not_found()
        elif _is_missing(model):
            self.send_json(404, wire.error_body(404, wire.missing_model_message(model)))
        else:
            self.send_json(200, wire.model_body(model))

    def _delete(self, path: str, _: bytes) -> None:
        if path == "/_control/faults":
            self.server.standin.clear()
        elif path == "/_control/requests":
            self.server.standin.forget_requests()
        else:
            self._send_not_found()
            return
        self.send_json(200, {})

    def _post(self, path: str, raw: bytes) -> None:
        if path == "/_control/faults":
            try:
                fault = Fault.from_fields(wire.from_json(raw))
            except ValueError as error:
                raise wire.InvalidRequestError(str(error)) from error
            self.server.standin.add_fault(fault)
            self.send_json(200, {})
        elif match := MODEL_METHOD.fullmatch(path):
            body = wire.from_json(raw)
            request = self._record(path, match["model"], match["method"], body)
            try:
                self._post_model(match["model"], match["method"], body)
            except OSError:
                self.is_left = True
                raise
            finally:
                request.was_left, request.is_open = self.is_left, False
        else:
            self._send_not_found()

    def _post_model(self, model: str, method: str, body: Any) -> None:
        if _is_missing(model):
            self.send_json(404, wire.error_body(404, wire.missing_model_message(model)))
        elif method == "countTokens":
            inner = body.get("generateContentRequest", body) if isinstance(body, dict) else body
            self.send_json(200, {"totalTokens": wire.read_conversation(inner).token_count})
        else:
            self._generate(model, wire.read_conversation(body), is_stream=method == "streamGenerateContent")

    def _generate(self, model: str, conversation: wire.Conversation, *, is_stream: bool) -> None:
        fault = self.server.standin.faults.take(conversation.last_user_text)
        if self.wait(fault.latency_ms / 1000):
            return
        if fault.kind in STATUS_KINDS:
            status = int(fault.kind)
            self.send_json(status, wire.fault_error_body(status, model, fault.retry_after_ms))
        elif fault.kind == "too_long":
            self.send_json(400, wire.too_long_body())
        elif fault.kind == "hang":
            self._hang()
        elif fault.kind == "drip":
            self._drip()
        else:
            numbers = any("enum-encoding=int" in value for value in self.query().get("$alt", []))
            writer = wire.AnswerWriter(model, conversation, enums_as_numbers=numbers)
            if is_stream:
                self._send_stream(fault, [json.dumps(piece).encode() for piece in stream_pieces(writer, fault)])
            else:
                self._send_answer(fault, json.dumps(unary_answer(writer, fault)).encode())

    def _send_answer(self, fault: Fault, answer: bytes) -> None:
        if fault.kind == "bad_json":
            answer = answer[:-2]
        self.start_answer(200, JSON_TYPE, length=len(answer))
        if fault.kind == "cut":
            answer = answer[: len(answer) // 2]
            self.close_connection = True
        elif fault.kind == "hang_in_stream":
            self._hang()
            return
        self.wfile.write(answer)

    def _send_stream(self, fault: Fault, pieces: list[bytes]) -> None:
        is_sse = self.query().get("alt") == ["sse"]
        if fault.kind == "bad_json":
            pieces[-1] = pieces[-1][:-2]
        elif fault.kind in {"cut", "hang_in_stream"}:
            pieces = pieces[: max(1, len(pieces) // 2) if fault.chunks is None else fault.chunks]
        self.start_answer(200, "text/event-stream" if is_sse else JSON_TYPE, length=None)
        for index, piece in enumerate(pieces):
            if index and self.wait(fault.chunk_ms / 1000):
                return
            if is_sse:
                self.send_chunk(b"data: " + piece + b"\r\n\r\n")
            else:
                self.send_chunk((b",\r\n" if index else b"[") + piece)
        if fault.kind == "hang_in_stream":
            self._hang()
            return
        if fault.kind == "cut":
            self.close_connection = True
            return
        if not is_sse:
            self.send_chunk(b"]")
        self.send_chunk(b"")

    def _hang(self) -> None:
        self.wfile.flush()
        self.wait(MAX_HANG_SECONDS)
        self.close_connection = True

    def _drip(self) -> None:
        self.close_connection = True
        self.start_answer(200, JSON_TYPE, length=None)
        ends_at = time.monotonic() + MAX_HANG_SECONDS
        while time.monotonic() < ends_at:
            self.send_chunk(b" ")
            if self.wait(DRIP_SECONDS):
                return

    def _send_not_found(self) -> None:
        self.send_json(404, wire.error_body(404, "Requested entity was not found."))

    def _record(self, path: str, model: str, method: str, body: Any) -> RecordedRequest:
        headers = {name: self.headers[name] for name in RECORDED_HEADERS if name in self.headers}
        if "x-goog-api-key" in self.headers or "key" in self.query():
            headers["x-goog-api-key"] = "(sent)"
        request = RecordedRequest(path, model, method, body, headers)
        self.server.standin.record(request)
        return request


def _is_missing(model: str) -> bool:
    return model.startswith(("unknown", "gone"))


def unary_answer(writer: wire.AnswerWriter, fault: Fault) -> dict[str, Any]:
    """Compose the body of generateContent, as well or as badly as `fault` says."""
    kind = fault.kind
    text, finish = wire.reply_text(writer.model, writer.conversation, fault.words)
    if kind in {"empty", "blocked"}:
        return writer.without_candidates(is_blocked=kind == "blocked")
    if kind == "error_in_stream":
        return wire.error_body(503)
    if kind == "empty_text":
        return writer.piece(None, "STOP", has_parts=False)
    if kind == "safety":
        return writer.piece(None, "SAFETY")
    if kind == "max_tokens":
        return writer.piece(text[: len(text) // 2], "MAX_TOKENS")
    return writer.piece(text, None if kind == "no_finish" else finish)


def stream_pieces(writer: wire.AnswerWriter, fault: Fault) -> list[dict[str, Any]]:
    """Compose the elements of streamGenerateContent, as well or as badly as `fault` says."""
    kind = fault.kind
    if kind in {"empty", "blocked", "empty_text"}:
        return [unary_answer(writer, fault)]
    text, finish = wire.reply_text(writer.model, writer.conversation, fault.words)
    texts = wire.split_text(text) or [""]
    if kind == "error_in_stream":
        return [writer.piece(texts[0]), wire.error_body(503)]
    if kind == "safety":
        return [writer.piece(texts[0]), writer.piece(None, "SAFETY")]
    if kind == "max_tokens":
        texts = texts[: max(1, len(texts) // 2)]
        finish = "MAX_TOKENS"
    pieces = [writer.piece(text) for text in texts[:-1]]
    return [*pieces, writer.piece(texts[-1], None if kind == "no_finish" else finish)]


def main(argv: list[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description="Stand in for Gemini's REST API on 127.0.0.1.")
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    is_over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: is_over.set())
    with GeminiStandin(arguments.port) as standin:
        logger.info("Gemini stand-in listens on %s", standin.url)
        is_over.wait()


if __name__ == "__main__":
    main()
