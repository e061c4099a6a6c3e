"""A server that speaks Stripe's REST wire, for `make run` without a key and for tests.

It knows what we use of the API's current version: customers, products, prices, checkout sessions with their page,
portal sessions with theirs, subscriptions, invoices, events, and webhook endpoints, which it delivers to. Time can be
moved forward. What it does not know it refuses, as Stripe refuses unknown parameters and paths.

    with StripeStandin() as stripe:
        stripe.StripeClient("sk_test_x", base_addresses={"api": stripe.url})

Its controls are the methods of `chatapi.dev.stripe.controls.Controls`, and over HTTP `POST /_control/{method}` with the
arguments as JSON, answered by `{"result": ...}`. Besides there are `GET /_control/health`, `/_control/requests` (DELETE
forgets them), `/_control/deliveries`, and `POST /_control/faults` with the fields of `chatapi.dev.stripe.faults.Fault`
(DELETE clears all faults, also those of deliveries).

Run it with `python -m chatapi.dev.stripe.standin --port N --state FILE`; `--help` has what else there is.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import signal
import string
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, urlsplit

from chatapi.dev.standin_http import BodyRefusedError, StandinHandler, StandinServer
from chatapi.dev.stripe import controls, life, pages, shop, wire
from chatapi.dev.stripe.api import Api, RecordedRequest
from chatapi.dev.stripe.wire import ApiError

logger = logging.getLogger(__name__)

MAX_HANG_SECONDS = 600
DRIP_SECONDS = 0.2
DRIPS = {
    "drip": (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n", b" "),
    "drip_head": (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Filler: ", b"x"),
}
"""What an answer that never ends begins with, and what comes of it again and again."""
TICK_SECONDS = 0.5
HTML_TYPE = "text/html; charset=utf-8"
PAGE_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}


class StripeStandin(controls.Controls):
    """The server; `url` is where it listens from the moment it is made, `start` has it answer.

    `public_url` is its address for browsers if that is another one, `state_file` outlives it.
    """

    def __init__(self, port: int = 0, *, public_url: str | None = None, **settings: Any) -> None:
        self._server = _Server(port, self)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        super().__init__((public_url or self.url).rstrip("/"), **settings)
        self.api = Api(self.account, self.faults)
        self._threads = [
            threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True),
            threading.Thread(target=self._tick, daemon=True),
        ]

    def start(self) -> None:
        """Serve, deliver and let time pass, in threads of their own."""
        self.deliverer.start()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop listening and cut every connection, as a server that dies does."""
        self.api.is_stopping.set()
        self.deliverer.stop()
        if self._threads[0].is_alive():
            self._server.shutdown()
            for thread in self._threads:
                thread.join()
        self._server.server_close()
        self._server.cut_connections()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _tick(self) -> None:
        while not self.api.is_stopping.wait(TICK_SECONDS):
            with self.account.changing():
                life.live_until(self.account, self.account.clock.now())

    @property
    def requests(self) -> list[RecordedRequest]:
        """The newest requests to the API, oldest first."""
        return self.api.requests

    def forget_requests(self) -> None:
        """Forget what arrived so far."""
        self.api.forget_requests()


class _Server(StandinServer):
    def __init__(self, port: int, standin: StripeStandin) -> None:
        self.standin = standin
        super().__init__(port, _Handler)


class _Handler(StandinHandler):
    server: _Server

    def do_GET(self) -> None:  # noqa: N802 - the base class looks it up by this name.
        self._answer()

    def do_DELETE(self) -> None:  # noqa: N802 - the base class looks it up by this name.
        self._answer()

    def do_POST(self) -> None:  # noqa: N802 - the base class looks it up by this name.
        self._answer()

    def _answer(self) -> None:
        path = self.url_path()
        try:
            raw = self.read_body()
        except BodyRefusedError:
            self._send_json(400, wire.invalid("The body is too long, or its length is not known.").body())
            return
        if path.startswith("/_control/"):
            self._answer_control(path.removeprefix("/_control/"), raw)
        elif path.startswith("/v1/"):
            self._answer_api(path, raw)
        else:
            self._answer_browser(path, raw)

    def _answer_control(self, name: str, raw: bytes) -> None:
        try:
            self._send_json(200, self._control(name, raw))
        except ApiError as error:
            self._send_json(error.status, error.body())

    def _control(self, name: str, raw: bytes) -> Any:
        standin = self.server.standin
        shown: dict[tuple[str, str], Callable[[], Any]] = {
            ("GET", "health"): lambda: {"status": "ok"},
            ("GET", "requests"): lambda: [dataclasses.asdict(request) for request in standin.requests],
            ("GET", "deliveries"): lambda: [dataclasses.asdict(attempt) for attempt in standin.deliveries],
        }
        done: dict[tuple[str, str], Callable[[], None]] = {
            ("DELETE", "requests"): standin.forget_requests,
            ("DELETE", "faults"): standin.clear,
            ("POST", "faults"): lambda: standin.add_fault(controls.read_fault(raw)),
        }
        if show := shown.get((self.command, name)):
            return show()
        if act := done.get((self.command, name)):
            act()
            return {}
        if self.command != "POST":
            raise ApiError(404, f"There is no {self.command} /_control/{name}.")
        return {"result": standin.call(name, controls.from_json(raw))}

    def _answer_browser(self, path: str, raw: bytes) -> None:
        account = self.server.standin.account
        with account.changing():
            if self.command == "GET":
                page = pages.open_page(account, path)
            else:
                try:
                    page = pages.press_button(account, path, wire.decode_form(raw.decode("utf-8", "replace")))
                except ApiError as error:
                    page = pages.Page(error.status, "This form cannot be read.")
        # An address may hold any letters, a header may not.
        headers = PAGE_HEADERS | ({"Location": quote(page.location, safe=string.punctuation)} if page.location else {})
        self._send(page.status, HTML_TYPE, page.html.encode(), headers)

    def _answer_api(self, path: str, raw: bytes) -> None:
        form = raw.decode("utf-8", "replace") if self.command == "POST" else urlsplit(self.path).query
        response = self.server.standin.api.answer(self.command, path, form, dict(self.headers.items()))
        if response.misbehaviour is None:
            self._send_json(response.status, response.body, response.headers)
            return
        self.close_connection = True
        if response.misbehaviour == "hang":
            self.wait(MAX_HANG_SECONDS)
        elif response.misbehaviour in DRIPS:
            self._drip(*DRIPS[response.misbehaviour])
        elif response.misbehaviour == "bad_json":
            self._send(200, "application/json", b'{"id": "cut', {"Connection": "close"})

    def _drip(self, beginning: bytes, drop: bytes) -> None:
        self.wfile.write(beginning)
        ends_at = time.monotonic() + MAX_HANG_SECONDS
        while time.monotonic() < ends_at:
            self.wfile.write(drop)
            self.wfile.flush()
            if self.wait(DRIP_SECONDS):
                return

    def _send_json(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        self._send(status, "application/json", wire.to_json(body), headers)

    def _send(self, status: int, content_type: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": content_type, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def main(argv: list[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description="Stand in for Stripe's REST API on 127.0.0.1.")
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one")
    parser.add_argument("--state", type=Path, help="a file that keeps everything over a restart")
    parser.add_argument("--public-url", help="the address of its pages, if browsers reach it by another one")
    parser.add_argument("--price", help="have a price with this id from the start")
    parser.add_argument("--webhook", help="deliver to this URL, signed with STRIPE_WEBHOOK_SECRET of the environment")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    is_over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: is_over.set())
    standin = StripeStandin(arguments.port, public_url=arguments.public_url, state_file=arguments.state)
    if arguments.price:
        shop.sell(standin.account, arguments.price)
    if arguments.webhook:
        shop.tell(standin.account, arguments.webhook, os.environ["STRIPE_WEBHOOK_SECRET"])
    with standin:
        logger.info("Stripe stand-in listens on %s", standin.url)
        is_over.wait()


if __name__ == "__main__":
    main()
