"""Buying Pro: one customer and one open checkout session per user, whoever asks for it at the same time.

Whoever has the claim on the user's row talks to Stripe, and the others wait for what comes of it. If they die over it
the claim lapses, and the next asks under the same idempotency keys, so nothing is made twice.
"""

from __future__ import annotations

import time
from uuid import UUID

import structlog
from flask import current_app
from sqlalchemy import ColumnElement, func, select

from chatapi.errors import ConflictError, UnauthorizedError
from chatapi.extensions import db, in_transaction
from chatapi.subscriptions.claims import (
    Checkout,
    Claim,
    confirmed_checkout,
    keep_customer,
    keep_session,
    read_clock,
    release_claim,
    renew_intent,
    take_claim,
)
from chatapi.subscriptions.closures import close_customer
from chatapi.subscriptions.gateway import (
    BillingUnavailableError,
    CustomerMissingError,
    IntentChangedError,
    MissingAtStripeError,
    Patience,
    StripeGateway,
    gateway,
)
from chatapi.subscriptions.models import BillingCustomer, Subscription
from chatapi.subscriptions.remote import RemoteCheckout
from chatapi.subscriptions.sync import sync_customer
from chatapi.subscriptions.tiers import RUNNING

WAIT_SECONDS = 5.0
"""For somebody else's asking, such as by a second click."""
POLL_SECONDS = 0.1
ATTEMPTS = 3
"""The customer may be gone, and the terms may have changed: each once."""

log = structlog.get_logger(__name__)


class AlreadySubscribedError(ConflictError):
    """There is a subscription, be it one with an unpaid invoice: another would be paid for twice."""

    slug = "already_subscribed"
    message = "You have a subscription already; its invoices and card are in the billing portal"


def start_checkout(user_id: UUID) -> Checkout:
    """Return where the user can pay: the session that is open, or a new one.

    Raises `AlreadySubscribedError`, `BillingUnavailableError`, `BillingNotConfiguredError`.
    """
    stripe = gateway(Patience.REQUEST)
    turn = _wait_for_turn(user_id)
    if isinstance(turn, Checkout):
        return turn
    try:
        return _make_checkout(stripe, turn)
    finally:
        release_claim(turn)


def _wait_for_turn(user_id: UUID) -> Claim | Checkout:
    """Return the claim, or what somebody who had it has got from Stripe meanwhile."""
    asked_at, deadline = read_clock(), time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        if checkout := confirmed_checkout(user_id, asked_at):
            return checkout
        if claim := take_claim(user_id):
            return claim
        time.sleep(POLL_SECONDS)
    raise BillingUnavailableError("checkout_claimed")


def _make_checkout(stripe: StripeGateway, claim: Claim) -> Checkout:
    for _ in range(ATTEMPTS):
        try:
            return _offer(stripe, claim)
        except MissingAtStripeError as error:
            if error.param != "customer":
                log.error("checkout_refused", param=error.param)  # noqa: TRY400 - such as a price that is gone
                raise BillingUnavailableError("checkout_refused") from None
            claim = _again(claim, is_customer_gone=True)
        except IntentChangedError:
            # With other terms since, such as another price.
            if claim.customer_id is not None:
                stripe.expire_checkouts(claim.customer_id)
            claim = _again(claim)
    raise BillingUnavailableError("checkout_unsettled")


def _offer(stripe: StripeGateway, claim: Claim) -> Checkout:
    price_id, front_end = current_app.config["STRIPE_PRICE_ID"][0], current_app.config["FRONTEND_URL"].rstrip("/")
    terms = f"{price_id} {front_end}"
    customer_id = _new_customer(stripe, claim) if claim.customer_id is None else claim.customer_id
    if customer_id == claim.customer_id:
        _refuse_second(stripe, claim.user_id, customer_id)
        if stripe.is_deleted(customer_id):  # A session of theirs would seem open still.
            raise MissingAtStripeError("customer")
    if claim.session_id is not None:
        if session := _open_session(stripe, claim, claim.session_id, customer_id, terms):
            return _keep(claim, customer_id, session, terms)
        claim = _again(claim)
    session = stripe.open_checkout(claim.key, claim.user_id, customer_id, price_id, front_end)
    return _keep(claim, customer_id, session, terms)


def _new_customer(stripe: StripeGateway, claim: Claim) -> str:
    customer_id = stripe.create_customer(claim.user_id, claim.generation)
    if not keep_customer(claim, customer_id):
        raise _lost(claim, customer_id)
    return customer_id


def _open_session(
    stripe: StripeGateway, claim: Claim, session_id: str, customer_id: str, terms: str
) -> RemoteCheckout | None:
    """Return the session that there is, if it is open; with other terms it is no longer afterwards."""
    try:
        session = stripe.read_checkout(session_id)
    except MissingAtStripeError:
        return None
    if session.status == "open" and claim.terms == terms:
        return session
    if session.status == "open":
        stripe.expire_checkouts(customer_id)
    if session.status != "expired":
        _refuse_second(stripe, claim.user_id, customer_id)  # Perhaps paid for since we looked.
    return None


def _refuse_second(stripe: StripeGateway, user_id: UUID, customer_id: str) -> None:
    """Ask Stripe and not our own rows, as its messages may be late.

    Raises `AlreadySubscribedError`, `MissingAtStripeError`.
    """
    try:
        sync_customer(stripe, customer_id)
    except CustomerMissingError:
        if _is_known(Subscription.user_id == user_id, Subscription.pro_until > func.now()):
            raise AlreadySubscribedError from None
        if not stripe.has_price(current_app.config["STRIPE_PRICE_ID"][0]):
            raise  # The key is another account's: whose customer they are must not be forgotten.
        raise MissingAtStripeError("customer") from None
    sold = Subscription.price_id.in_(current_app.config["STRIPE_PRICE_ID"])
    if _is_known(Subscription.user_id == user_id, Subscription.status.in_(RUNNING), sold):
        raise AlreadySubscribedError


def _is_known(*conditions: ColumnElement[bool]) -> bool:
    query = select(Subscription.id).where(*conditions).limit(1)
    return in_transaction(lambda: db.session.scalars(query).first()) is not None


def _keep(claim: Claim, customer_id: str, session: RemoteCheckout, terms: str) -> Checkout:
    if not keep_session(claim, session, terms):
        raise _lost(claim, customer_id)
    if session.url is None:
        raise BillingUnavailableError("checkout_without_url")
    return Checkout(session.id, session.url)


def _again(claim: Claim, *, is_customer_gone: bool = False) -> Claim:
    renewed = renew_intent(claim, is_customer_gone=is_customer_gone)
    if renewed is None:
        raise _lost(claim, claim.customer_id)
    return renewed


def _lost(claim: Claim, customer_id: str | None) -> Exception:
    """Return what to answer when the row was not ours any more: the account is erased, or all took too long."""

    def is_erased() -> bool:
        if db.session.get(BillingCustomer, claim.user_id) is not None:
            return False
        if customer_id is not None:
            close_customer(customer_id)
        return True

    return UnauthorizedError() if in_transaction(is_erased) else BillingUnavailableError("checkout_too_slow")
