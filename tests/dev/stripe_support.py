"""What the tests of the Stripe stand-in share: the real SDK in front of it, a shop, and a receiver of webhooks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import requests
import stripe
from requests.adapters import HTTPAdapter

from chatapi.dev.stripe.standin import StripeStandin

KEY = "sk_test_of_nobody"
MONTH = {"interval": "month"}
SUCCESS_URL = "http://front.example/paid?session={CHECKOUT_SESSION_ID}"
CANCEL_URL = "http://front.example/left"
DAY_SECONDS = 86400
SLACK_SECONDS = 10
"""What a busy machine may take between two lines."""


@contextmanager
def sdk(url: str, key: str = KEY, retries: int = 0, timeout: float = 10) -> Iterator[stripe.StripeClient]:
    """Yield Stripe's own client for the stand-in at `url`."""
    with requests.Session() as session:
        session.mount("http://", HTTPAdapter(pool_maxsize=60))
        http_client = stripe.RequestsClient(timeout=timeout, session=session)
        yield stripe.StripeClient(
            key, base_addresses={"api": url}, http_client=http_client, max_network_retries=retries
        )


@dataclass
class Shop:
    """A stand-in, the SDK in front of it, and something to sell."""

    standin: StripeStandin
    client: stripe.StripeClient
    product: stripe.Product
    price: stripe.Price

    @property
    def v1(self) -> Any:
        """The API, without types: the tests read members that these do not promise."""
        return self.client.v1

    def customer(self, email: str = "ada@example.com", card: str | None = None) -> Any:
        customer = self.v1.customers.create({"email": email})
        if card:
            self.standin.set_card(customer.id, card)
        return customer

    def session_params(self, **more: Any) -> dict[str, Any]:
        return {
            "mode": "subscription",
            "line_items": [{"price": self.price.id, "quantity": 1}],
            "success_url": SUCCESS_URL,
            "cancel_url": CANCEL_URL,
            **more,
        }

    def session(self, **more: Any) -> Any:
        return self.v1.checkout.sessions.create(self.session_params(**more))

    def subscription(self, **more: Any) -> Any:
        """Begin a subscription of a new customer, whose card is good."""
        made = self.standin.subscribe(self.customer().id, self.price.id, **more)
        return self.v1.subscriptions.retrieve(made["id"])

    def reload(self, subscription: Any) -> Any:
        """Return a subscription as it is now, with its latest invoice."""
        return self.v1.subscriptions.retrieve(subscription.id, {"expand": ["latest_invoice"]})

    def status(self, subscription: Any) -> str:
        return str(self.v1.subscriptions.retrieve(subscription.id).status)


def event_types(standin: StripeStandin, after: int = 0) -> list[str]:
    """Return the types of the events so far, without the first `after`."""
    return [event["type"] for event in standin.events()][after:]


@contextmanager
def open_shop(**settings: Any) -> Iterator[Shop]:
    """Run a stand-in of one's own and set a price of 9 dollars a month."""
    with StripeStandin(**settings) as standin, sdk(standin.url) as client:
        product = client.v1.products.create({"name": "Pro"})
        price = client.v1.prices.create(
            {"product": product.id, "currency": "usd", "unit_amount": 900, "recurring": {"interval": "month"}}
        )
        yield Shop(standin, client, product, price)


class Receiver:
    """A server that takes webhooks, answering `statuses` in turn and then 200."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.taken: list[tuple[bytes, str]] = []
        self.paths: list[str] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                payload = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.paths.append(self.path)
                receiver.taken.append((payload, self.headers["Stripe-Signature"]))
                self.send_response(receiver.statuses.pop(0) if receiver.statuses else 200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Keep quiet."""

        class Server(ThreadingHTTPServer):
            request_queue_size = 128

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/webhook/stripe"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def events(self, secret: str) -> list[stripe.Event]:
        """Return what was taken, each verified by the SDK."""
        return [stripe.Webhook.construct_event(payload, signature, secret) for payload, signature in self.taken]
