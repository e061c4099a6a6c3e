"""The two SDKs and the two ways to ask, and servers of raw bytes: what no well-made server would send."""

from __future__ import annotations

import importlib
import json
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from chatapi.replies.gemini.base import Answer, GeminiClient, Prompt, Turn
from chatapi.upstream.calls import UpstreamCall

PROMPT_TEXT = "a prompt that must not be logged"
API_KEY = "a-key-that-must-not-be-logged"
TIMEOUT_SECONDS = 1.0
CLASSES = {
    "google-generativeai": ("chatapi.replies.gemini.generativeai", "GenerativeAIClient"),
    "google-genai": ("chatapi.replies.gemini.genai", "GenAIClient"),
}
FINISH_NUMBERS = {
    "STOP": 1,
    "MAX_TOKENS": 2,
    "SAFETY": 3,
    "RECITATION": 4,
    "LANGUAGE": 6,
    "OTHER": 5,
    "BLOCKLIST": 7,
    "PROHIBITED_CONTENT": 8,
    "SPII": 9,
    "INVENTED_LATER": 99,
}


def prompt(text: str = PROMPT_TEXT, model: str = "some-model") -> Prompt:
    return Prompt(model, [Turn("user", text)], None)


def make_client(
    sdk: str, url: str | None, key: str | None = API_KEY, timeout: float = TIMEOUT_SECONDS, pool_size: int = 32
) -> GeminiClient:
    module, name = CLASSES[sdk]
    client: GeminiClient = getattr(importlib.import_module(module), name)(key, url, timeout, pool_size)
    return client


@dataclass(frozen=True)
class Way:
    """One of the SDKs, asked for a reply in one piece or for a stream."""

    sdk: str
    method: str

    def ask(
        self,
        client: GeminiClient,
        asked: Prompt | None = None,
        call: UpstreamCall | None = None,
        on_text: Callable[[str], None] = lambda _: None,
    ) -> Answer:
        call = call or UpstreamCall(TIMEOUT_SECONDS)
        if self.method == "generate":
            return client.generate(asked or prompt(), call)
        texts: list[str] = []

        def take(text: str) -> None:
            texts.append(text)
            on_text(text)

        answer = client.stream(asked or prompt(), call, take)
        assert "".join(texts) == answer.text
        assert all(texts), "No empty piece."
        return answer

    def body(self, *elements: bytes) -> bytes:
        """Compose a whole body of these elements."""
        if self.method == "generate":
            return elements[0]
        if self.sdk == "google-genai":
            return b"".join(b"data: " + element + b"\r\n\r\n" for element in elements)
        return b"[" + b",\r\n".join(elements) + b"]"

    def element(self, text: str = "well", finish: str | None = "STOP") -> bytes:
        candidate: dict[str, object] = {"content": {"parts": [{"text": text}], "role": "model"}}
        if finish is not None:
            candidate["finishReason"] = FINISH_NUMBERS[finish] if self.sdk == "google-generativeai" else finish
        return json.dumps({"candidates": [candidate]}, ensure_ascii=False).encode("utf-8", "surrogatepass")


WAYS = [Way(sdk, method) for sdk in CLASSES for method in ("generate", "stream")]


def http(body: bytes, status: str = "200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


def wait_until(is_so: Callable[[], bool], seconds: float = 2) -> bool:
    ends_at = time.monotonic() + seconds
    while not is_so() and time.monotonic() < ends_at:
        time.sleep(0.005)
    return is_so()


def assert_tells_no_secret(error: BaseException, *secrets: str) -> None:
    """Check everything that a traceback would print."""
    told = "".join(traceback.format_exception(error)) + str(error)
    for secret in (PROMPT_TEXT, API_KEY, "http://127.0.0.1", "/v1beta", *secrets):
        assert secret not in told


@contextmanager
def serve(handle: Callable[[socket.socket], None]) -> Iterator[str]:
    """Serve each connection by `handle` in a thread of its own."""
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


@contextmanager
def asked(way: Way, pieces: list[bytes], pause_seconds: float = 0) -> Iterator[Callable[[], Answer]]:
    """Give a function that asks a server which answers with `pieces`, pausing after each."""

    def handle(connection: socket.socket) -> None:
        receive_request(connection)
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(pause_seconds)

    with serve(handle) as url:
        client = make_client(way.sdk, url)
        try:
            yield lambda: way.ask(client)
        finally:
            client.close()
