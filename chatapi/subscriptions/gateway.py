"""Stripe, as far as it is needed here. The only module that imports its SDK.

What it answers comes as our own small objects, what it refuses as our own errors.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from enum import Enum
from typing import Any, cast
from uuid import UUID

import stripe
import structlog
from flask import Flask, current_app

import config_billing
from chatapi.errors import BadRequestError, ServiceUnavailableError
from chatapi.parsing import strict_json
from chatapi.subscriptions.remote import RemoteCheckout, RemoteCustomer, RemoteSubscription, time_of
from chatapi.subscriptions.transport import bounded_session

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
    """How long to wait for Stripe.

    The seconds from one sign of life to the next, those for an answer as a whole, however it trickles in, how often a
    call is made again, and for how many seconds in all another call is begun.
    """

    BACKGROUND = (10.0, 15.0, 1, math.inf)
    REQUEST = (3.0, 5.0, 1, 8.0)
    """Somebody waits for the answer, and can do without it."""
    GLANCE = (2.0, 3.0, 0, 2.0)
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


class SetupUnreachableError(SetupRefusedError):
    """Nobody answers."""


class SetupMissingError(SetupRefusedError):
    """There is no such object."""


class SetupForbiddenError(SetupRefusedError):
    """The key is good, but restricted to other things."""


class InvalidSignatureError(BadRequestError):
    """The message is not one that Stripe has just sent."""

    slug = "invalid_signature"
    message = "The signature of this message is missing, wrong or too old"


class MissingAtStripeError(Exception):
    """Stripe has no such object, or no longer. `param` names the parameter it was, if it was one."""

    def __init__(self, param: str | None) -> None:
        self.param = param
        super().__init__(param)


class CustomerMissingError(BillingUnavailableError):
    """Stripe knows nothing of a customer that it made: more likely than not it is asked with another account's key.

    Customers that are deleted it still knows.
    """

    def __init__(self) -> None:
        super().__init__("customer_missing")


class IntentChangedError(Exception):
    """Something else was asked for under this idempotency key earlier."""


class StripeGateway:
    """One Stripe account, for a piece of work that begins now."""

    def __init__(self, client: stripe.StripeClient, patience: Patience) -> None:
        self._v1 = client.v1
        *_, seconds = patience.value
        self._until = time.monotonic() + seconds

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Make a call, if there is time for one. Its errors become ours."""
        if time.monotonic() >= self._until:
            log.warning("stripe_too_slow")
            raise BillingUnavailableError("too_slow")
        with _errors_mapped():
            yield

    def has_price(self, price_id: str) -> bool:
        """Return whether there is such a price: if not, this is not the account that we sell in."""
        try:
            with self._asking():
                self._v1.prices.retrieve(price_id)
        except MissingAtStripeError:
            return False
        return True

    def create_customer(self, user_id: UUID, generation: int) -> str:
        """Return the id of the user's customer: the same one however often and from wherever it is asked for.

        Of the user it learns an id that means nothing elsewhere. Name and address it asks for itself.
        """
        with self._asking():
            customer = self._v1.customers.create(
                {"metadata": {"user_id": str(user_id)}},
                {"idempotency_key": f"customer:{user_id}:{generation}"},
            )
        return customer.id

    def read_customer(self, customer_id: str) -> RemoteCustomer:
        """Return a customer, also a deleted one. Raises `MissingAtStripeError`."""
        with self._asking():
            return RemoteCustomer.of(_plain(self._v1.customers.retrieve(customer_id)))

    def open_checkout(
        self, key: UUID, user_id: UUID, customer_id: str, price_id: str, front_end: str
    ) -> RemoteCheckout:
        """Return the one checkout session of the intent `key`, with people sent to `front_end` afterwards.

        Raises `MissingAtStripeError` when the customer is gone, `IntentChangedError` when the key was used for a
        checkout with other terms.
        """
        noted = {"user_id": str(user_id)}
        with self._asking():
            session = self._v1.checkout.sessions.create(
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
        return RemoteCheckout.of(_plain(session))

    def read_checkout(self, session_id: str) -> RemoteCheckout:
        """Return a checkout session as it is now. Raises `MissingAtStripeError`."""
        with self._asking():
            return RemoteCheckout.of(_plain(self._v1.checkout.sessions.retrieve(session_id)))

    def expire_checkouts(self, customer_id: str) -> None:
        """Let nobody pay any more in what the customer has open, if there is such a customer."""
        try:
            with self._asking():
                found = self._v1.checkout.sessions.list({"customer": customer_id, "status": "open", "limit": PAGE})
                open_ids = [session.id for session in found.auto_paging_iter()]
        except MissingAtStripeError:
            return
        for session_id in open_ids:
            with suppress(MissingAtStripeError), self._asking():
                self._v1.checkout.sessions.expire(session_id)

    def open_portal(self, customer_id: str, return_url: str) -> str:
        """Return the URL of a page where the customer sees invoices and changes cards.

        Raises `MissingAtStripeError`.
        """
        with self._asking():
            portal = self._v1.billing_portal.sessions.create({"customer": customer_id, "return_url": return_url})
        return portal.url

    def subscriptions_of(self, customer_id: str) -> list[RemoteSubscription]:
        """Return the subscriptions of a customer, also ended ones, newest first; none when the customer is deleted.

        Raises `CustomerMissingError`.
        """
        try:
            with self._asking():
                found = self._v1.subscriptions.list({"customer": customer_id, "status": "all", "limit": PAGE})
                return [RemoteSubscription.of(_plain(subscription)) for subscription in found.auto_paging_iter()]
        except MissingAtStripeError:
            if self.is_deleted(customer_id):
                return []
            log.error("customer_missing", customer=customer_id)  # noqa: TRY400 - no error of ours
            raise CustomerMissingError from None

    def is_deleted(self, customer_id: str) -> bool:
        """Return whether there was such a customer, and is no more; False when there never was."""
        try:
            return self.read_customer(customer_id).is_deleted
        except MissingAtStripeError:
            return False

    def list_current(self) -> Iterator[RemoteSubscription]:
        """Yield everybody's subscriptions, newest first, but for cancelled ones, which grow more and more."""
        with self._asking():
            for subscription in self._v1.subscriptions.list({"limit": PAGE}).auto_paging_iter():
                yield RemoteSubscription.of(_plain(subscription))

    def oldest_open_invoice_at(self, subscription_id: str) -> datetime | None:
        """Return when the oldest unpaid invoice of a subscription was made, None when nothing is unpaid."""
        with self._asking():
            found = self._v1.invoices.list({"subscription": subscription_id, "status": "open", "limit": PAGE})
            return time_of(min((invoice.created for invoice in found.auto_paging_iter()), default=None))

    def end_with_period(self, subscription: RemoteSubscription) -> None:
        """Have a subscription end with its paid period. Raises `MissingAtStripeError` when it is over already."""
        if not subscription.ends_with_period:
            self._update(subscription.id, {"cancel_at_period_end": True})

    def go_on(self, subscription: RemoteSubscription) -> None:
        """Have a subscription that was to end go on. Raises `MissingAtStripeError` when it is over already."""
        if subscription.has_end:
            at_period_end = subscription.cancels_at_period_end
            self._update(subscription.id, {"cancel_at_period_end": False} if at_period_end else {"cancel_at": ""})

    def _update(self, subscription_id: str, params: dict[str, Any]) -> None:
        with self._asking():
            self._v1.subscriptions.update(subscription_id, cast("Any", params))

    def cancel_now(self, subscription_id: str) -> None:
        """End a subscription at once. Raises `MissingAtStripeError` when it has ended already."""
        with self._asking():
            self._v1.subscriptions.cancel(subscription_id)


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
        # The SDK takes any time ahead of ours for good, and such a message could be played again until then.
        timestamps = [int(part[2:]) for part in (header or "").split(",") if part.startswith("t=")]
    except (stripe.SignatureVerificationError, ValueError, TypeError):  # TypeError: a signature that is not ASCII.
        return False
    return max(timestamps) <= time.time() + SIGNATURE_TOLERANCE_SECONDS


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
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        # Whoever answers, it is not Stripe as we know it.
        log.error("stripe_not_understood", reason=type(error).__name__, where=frames_of(error))  # noqa: TRY400
        raise BillingUnavailableError("not_understood") from error


def frames_of(error: Exception) -> list[str]:
    """Return where an error comes from, for the log; its text may quote what Stripe has sent."""
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]


@contextmanager
def refusals_in_words() -> Iterator[None]:
    """Tell the operator what Stripe says: it is about their own account, and quotes of the key only its end."""
    try:
        yield
    except stripe.AuthenticationError as error:
        raise SetupRefusedError(f"Stripe does not take STRIPE_SECRET_KEY: {error.user_message}") from None
    except stripe.PermissionError as error:
        raise SetupForbiddenError(f"STRIPE_SECRET_KEY may not do all of this: {error.user_message}") from None
    except stripe.APIConnectionError as error:
        raise SetupUnreachableError(f"Stripe cannot be reached ({type(error).__name__}).") from None
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


def init_gateway(app: Flask) -> None:
    """Make the clients of the configured account, one for each patience. They are thread-safe."""
    if not config_billing.is_configured(app.config):
        return
    key, base = app.config["STRIPE_SECRET_KEY"], app.config["STRIPE_API_BASE"]
    app.extensions["stripe"] = {patience: make_client(key, base, patience) for patience in Patience}


def gateway(patience: Patience = Patience.BACKGROUND) -> StripeGateway:
    """Return the configured account, for work that begins now. Raises `BillingNotConfiguredError`."""
    found = current_app.extensions.get("stripe")
    if found is None:
        raise BillingNotConfiguredError
    return StripeGateway(found[patience], patience)


def make_client(secret_key: str, api_base: str, patience: Patience) -> stripe.StripeClient:
    """Return the SDK's client."""
    read_timeout, whole_answer, retries, _ = patience.value
    timeout = cast("Any", (CONNECT_TIMEOUT_SECONDS, read_timeout))
    return stripe.StripeClient(
        secret_key,
        base_addresses={"api": api_base.rstrip("/")},
        http_client=stripe.RequestsClient(timeout=timeout, session=bounded_session(whole_answer)),
        max_network_retries=retries,
    )
