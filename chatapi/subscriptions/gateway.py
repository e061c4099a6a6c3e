"""Stripe, as far as it is needed here. The only module that knows its SDK.

What it answers comes as our own small objects, what it refuses as our own errors.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any, cast
from uuid import UUID

import stripe
import structlog
from flask import Flask, current_app

import config_billing
from chatapi.errors import BadRequestError, ServiceUnavailableError
from chatapi.parsing import strict_json

CONNECT_TIMEOUT_SECONDS = 2.0
UNAVAILABLE_RETRY_AFTER_SECONDS = 5

SIGNATURE_TOLERANCE_SECONDS = 300
"""Stripe's own default, here for clocks ahead as well as for old messages."""

GONE = ("resource_missing", "invalid_canceled_subscription_fields")
"""How Stripe says that something is not there, or that a subscription is over and cannot be changed."""

API_VERSION = stripe.api_version
"""The SDK's own. What events look like is settled by the version of the endpoint that they are sent to."""

PAGE = 100
"""The most that Stripe gives at a time."""

log = structlog.get_logger(__name__)


class Patience(Enum):
    """How long an answer of Stripe's is waited for, in seconds, and how often it is asked for again."""

    BACKGROUND = (10.0, 2)
    REQUEST = (3.0, 1)
    """Somebody waits for the answer, and can do without it."""
    GLANCE = (2.0, 0)
    """Somebody waits for something else."""


class BillingNotConfiguredError(ServiceUnavailableError):
    """There is no Stripe account to sell anything with."""

    slug = "billing_not_configured"
    message = "Subscriptions are not offered here"


class BillingUnavailableError(ServiceUnavailableError):
    """Stripe did not answer, or not with what was asked for. Trying again is safe."""

    slug = "billing_unavailable"
    message = "The payment provider is not available right now, try again shortly"

    def __init__(self, reason: str) -> None:
        super().__init__(retry_after=UNAVAILABLE_RETRY_AFTER_SECONDS)
        self.reason = reason


class SetupRefusedError(Exception):
    """Stripe did not do what an operator asked for; the message says so in a sentence."""


class SetupMissingError(SetupRefusedError):
    """There is no such object."""


class InvalidSignatureError(BadRequestError):
    """The message is not one that Stripe has just sent."""

    slug = "invalid_signature"
    message = "The signature of this message is missing, wrong or too old"


class MissingAtStripeError(Exception):
    """Stripe has no such object, or no longer. `param` names the parameter it was, if it was one."""

    def __init__(self, param: str | None) -> None:
        self.param = param
        super().__init__(param)


class IntentChangedError(Exception):
    """Something else was asked for under this idempotency key earlier."""


@dataclass(frozen=True)
class RemoteCustomer:
    """A customer. `user_id` is what we have noted with it: whose it is."""

    id: str
    is_deleted: bool
    user_id: str | None


@dataclass(frozen=True)
class RemoteCheckout:
    """A checkout session; `status` is open, complete or expired."""

    id: str
    status: str
    url: str | None
    expires_at: datetime


@dataclass(frozen=True)
class RemoteSubscription:
    """A subscription; `status` is Stripe's word. `ends_at` is when it will end, if it is to be."""

    id: str
    customer_id: str
    status: str
    price_ids: tuple[str, ...]
    started_at: datetime | None
    ended_at: datetime | None
    current_period_start: datetime | None
    current_period_end: datetime | None
    cancels_at_period_end: bool
    ends_at: datetime | None

    @property
    def is_ending(self) -> bool:
        """Whether it runs, and will not go on."""
        return self.ends_at is not None and self.ended_at is None


class StripeGateway:
    """One Stripe account. Thread-safe."""

    def __init__(self, secret_key: str, api_base: str, patience: Patience) -> None:
        read_timeout, retries = patience.value
        http_client = stripe.RequestsClient(timeout=cast("Any", (CONNECT_TIMEOUT_SECONDS, read_timeout)))
        self.client = stripe.StripeClient(
            secret_key,
            base_addresses={"api": api_base.rstrip("/")},
            http_client=http_client,
            max_network_retries=retries,
        )
        self.is_live = secret_key.startswith(("sk_live_", "rk_live_"))

    def create_customer(self, user_id: UUID, generation: int) -> str:
        """Return the id of the user's customer: the same one however often and from wherever it is asked for.

        Of the user it learns an id that means nothing elsewhere. Name and address it asks for itself.
        """
        with _errors_mapped():
            customer = self.client.v1.customers.create(
                {"metadata": {"user_id": str(user_id)}},
                {"idempotency_key": f"customer:{user_id}:{generation}"},
            )
        return customer.id

    def read_customer(self, customer_id: str) -> RemoteCustomer:
        """Return a customer. Raises `MissingAtStripeError`."""
        with _errors_mapped():
            found = _plain(self.client.v1.customers.retrieve(customer_id))
        user_id = (found.get("metadata") or {}).get("user_id")
        return RemoteCustomer(found["id"], bool(found.get("deleted")), user_id)

    def open_checkout(
        self, key: UUID, user_id: UUID, customer_id: str, price_id: str, front_end: str
    ) -> RemoteCheckout:
        """Return the one checkout session of the intent `key`, with people sent to `front_end` afterwards.

        Raises `MissingAtStripeError` when the customer is gone, `IntentChangedError` when the key was used for a
        checkout with other terms.
        """
        noted = {"user_id": str(user_id)}
        with _errors_mapped():
            session = self.client.v1.checkout.sessions.create(
                {
                    "mode": "subscription",
                    "customer": customer_id,
                    "client_reference_id": str(user_id),
                    "line_items": [{"price": price_id, "quantity": 1}],
                    "success_url": f"{front_end}/subscription/success?session_id={{CHECKOUT_SESSION_ID}}",
                    "cancel_url": f"{front_end}/subscription/cancel",
                    "metadata": noted,
                    "subscription_data": {"metadata": noted},
                },
                {"idempotency_key": f"checkout:{key}"},
            )
        return _checkout(_plain(session))

    def read_checkout(self, session_id: str) -> RemoteCheckout:
        """Return a checkout session as it is now. Raises `MissingAtStripeError`."""
        with _errors_mapped():
            return _checkout(_plain(self.client.v1.checkout.sessions.retrieve(session_id)))

    def expire_checkouts(self, customer_id: str) -> None:
        """Let nobody pay any more in what the customer has open."""
        with _errors_mapped():
            found = self.client.v1.checkout.sessions.list({"customer": customer_id, "status": "open", "limit": PAGE})
            for session in found.auto_paging_iter():
                self.client.v1.checkout.sessions.expire(session.id)

    def open_portal(self, customer_id: str, return_url: str) -> str:
        """Return the URL of a page where the customer sees invoices and changes cards."""
        with _errors_mapped():
            portal = self.client.v1.billing_portal.sessions.create({"customer": customer_id, "return_url": return_url})
        return portal.url

    def list_subscriptions(self, customer_id: str | None = None) -> Iterator[RemoteSubscription]:
        """Yield the subscriptions of a customer, or of everybody, also ended ones, newest first.

        Raises `MissingAtStripeError` when there is no such customer.
        """
        params: dict[str, Any] = {"status": "all", "limit": PAGE}
        if customer_id is not None:
            params["customer"] = customer_id
        with _errors_mapped():
            for subscription in self.client.v1.subscriptions.list(cast("Any", params)).auto_paging_iter():
                yield _subscription(_plain(subscription))

    def oldest_open_invoice_at(self, subscription_id: str) -> datetime | None:
        """Return when the oldest unpaid invoice of a subscription was made, None when nothing is unpaid."""
        with _errors_mapped():
            found = self.client.v1.invoices.list({"subscription": subscription_id, "status": "open", "limit": PAGE})
            return _time(min((invoice.created for invoice in found.auto_paging_iter()), default=None))

    def end_with_period(self, subscription: RemoteSubscription) -> None:
        """Have a subscription end with its paid period. Raises `MissingAtStripeError` when it is over already."""
        if not subscription.is_ending:
            self._update(subscription.id, {"cancel_at_period_end": True})

    def go_on(self, subscription: RemoteSubscription) -> None:
        """Have a subscription that was to end go on. Raises `MissingAtStripeError` when it is over already."""
        if subscription.is_ending:
            at_period_end = subscription.cancels_at_period_end
            self._update(subscription.id, {"cancel_at_period_end": False} if at_period_end else {"cancel_at": ""})

    def _update(self, subscription_id: str, params: dict[str, Any]) -> None:
        with _errors_mapped():
            self.client.v1.subscriptions.update(subscription_id, cast("Any", params))

    def cancel_now(self, subscription_id: str) -> None:
        """End a subscription at once. Raises `MissingAtStripeError` when it has ended already."""
        with _errors_mapped():
            self.client.v1.subscriptions.cancel(subscription_id)


def verify_message(payload: bytes, header: str | None, secrets: tuple[str, ...]) -> dict[str, Any]:
    """Return the event that Stripe has sent: signed with one of `secrets`, within the last few minutes.

    Raises `InvalidSignatureError`, and `BadRequestError` for a good signature on what is no event.
    """
    if not any(_is_signed(payload, header, secret) for secret in secrets):
        raise InvalidSignatureError
    event = strict_json(payload)
    if not isinstance(event, dict) or event.get("object") != "event":
        raise BadRequestError("The message is not an event")
    return event


def _is_signed(payload: bytes, header: str | None, secret: str) -> bool:
    try:
        stripe.WebhookSignature.verify_header(payload, header, secret, SIGNATURE_TOLERANCE_SECONDS)
    except (stripe.SignatureVerificationError, ValueError, TypeError):  # TypeError: a signature that is not ASCII.
        return False
    # The SDK takes any time ahead of ours for good, and such a message could be played again until then.
    timestamps = [part.partition("=")[2] for part in (header or "").split(",") if part.startswith("t=")]
    return int(timestamps[0]) <= time.time() + SIGNATURE_TOLERANCE_SECONDS


@contextmanager
def _errors_mapped() -> Iterator[None]:
    """Turn the SDK's errors into ours; the reasons are logged, since what the user is told does not help operators."""
    try:
        yield
    except stripe.IdempotencyError as error:
        raise IntentChangedError from error
    except stripe.InvalidRequestError as error:
        if error.code in GONE:
            raise MissingAtStripeError(error.param) from error
        raise _refused(error) from error
    except stripe.StripeError as error:
        raise _refused(error) from error


@contextmanager
def refusals_in_words() -> Iterator[None]:
    """Tell the operator what Stripe says: it is about their own account, and quotes of the key only its end."""
    try:
        yield
    except stripe.AuthenticationError as error:
        raise SetupRefusedError(f"Stripe does not take STRIPE_SECRET_KEY: {error.user_message}") from None
    except stripe.PermissionError as error:
        raise SetupRefusedError(f"STRIPE_SECRET_KEY may not do all of this: {error.user_message}") from None
    except stripe.APIConnectionError as error:
        raise SetupRefusedError(f"Stripe cannot be reached ({type(error).__name__}).") from None
    except stripe.StripeError as error:
        kind = SetupMissingError if error.code == "resource_missing" else SetupRefusedError
        raise kind(f"Stripe refuses: {error.user_message or type(error).__name__}") from None


def _refused(error: stripe.StripeError) -> BillingUnavailableError:
    """Return the answer to an error of Stripe's, which is logged without its text: that quotes what was sent."""
    reason = type(error).__name__
    is_ours = isinstance(error, stripe.AuthenticationError | stripe.PermissionError | stripe.InvalidRequestError)
    (log.error if is_ours else log.warning)(
        "stripe_refused",
        reason=reason,
        status=error.http_status,
        stripe_code=error.code,
        param=getattr(error, "param", None),
        stripe_request_id=error.request_id,
    )
    return BillingUnavailableError(reason)


def _plain(found: stripe.StripeObject) -> dict[str, Any]:
    return found.to_dict(for_json=True)


def _time(seconds: int | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _checkout(found: Mapping[str, Any]) -> RemoteCheckout:
    expires_at = datetime.fromtimestamp(found["expires_at"], UTC)
    return RemoteCheckout(found["id"], found["status"], found.get("url"), expires_at)


def _subscription(found: Mapping[str, Any]) -> RemoteSubscription:
    items = found["items"]["data"]
    starts = [item["current_period_start"] for item in items if item.get("current_period_start")]
    ends = [item["current_period_end"] for item in items if item.get("current_period_end")]
    period_end = max(ends, default=None)
    cancel_at = found.get("cancel_at") or (period_end if found.get("cancel_at_period_end") else None)
    return RemoteSubscription(
        id=found["id"],
        customer_id=found["customer"],
        status=found["status"],
        price_ids=tuple(item["price"]["id"] for item in items),
        started_at=_time(found.get("start_date")),
        ended_at=_time(found.get("ended_at")),
        current_period_start=_time(min(starts, default=None)),
        current_period_end=_time(period_end),
        cancels_at_period_end=bool(found.get("cancel_at_period_end")),
        ends_at=_time(cancel_at),
    )


def init_gateway(app: Flask) -> None:
    """Make the clients of the configured account, one for each patience."""
    if not config_billing.is_configured(app.config):
        return
    key, base = app.config["STRIPE_SECRET_KEY"], app.config["STRIPE_API_BASE"]
    app.extensions["stripe"] = {patience: StripeGateway(key, base, patience) for patience in Patience}


def gateway(patience: Patience = Patience.BACKGROUND) -> StripeGateway:
    """Return the configured account's. Raises `BillingNotConfiguredError`."""
    found = current_app.extensions.get("stripe")
    if found is None:
        raise BillingNotConfiguredError
    return cast("StripeGateway", found[patience])
