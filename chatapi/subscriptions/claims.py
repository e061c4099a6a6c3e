"""Who is making a user's checkout just now, and what is known of it, in the row of the user's billing."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Row, text

from chatapi.errors import UnauthorizedError
from chatapi.extensions import db, in_transaction
from chatapi.subscriptions.remote import RemoteCheckout

CLAIM_SECONDS = 60
"""Longer than Stripe is asked for anything under it; so long others wait if whoever has it dies."""


@dataclass(frozen=True)
class Claim:
    """The right to make the user's checkout, `until` then. `key` is the intent, of which Stripe makes one session."""

    user_id: UUID
    until: datetime
    customer_id: str | None
    generation: int
    key: UUID
    session_id: str | None
    terms: str | None


@dataclass(frozen=True)
class Checkout:
    """Where to pay."""

    session_id: str
    url: str


_COLUMNS = """
    checkout_claimed_until, stripe_customer_id, generation, checkout_key, checkout_session_id, checkout_terms
"""

_KNOW_USER = text("""
    INSERT INTO billing_customers (user_id) SELECT id FROM users WHERE id = :user_id FOR KEY SHARE
    ON CONFLICT DO NOTHING
""")

_TAKE = text(f"""
    UPDATE billing_customers
    SET checkout_claimed_until = clock_timestamp() + make_interval(secs => :seconds),
        checkout_key = coalesce(checkout_key, :new_key)
    WHERE user_id = :user_id AND (checkout_claimed_until IS NULL OR checkout_claimed_until < clock_timestamp())
    RETURNING {_COLUMNS}
""")  # noqa: S608 - of our own constants

_IS_KNOWN = text("SELECT true FROM billing_customers WHERE user_id = :user_id")

_RELEASE = text("""
    UPDATE billing_customers SET checkout_claimed_until = NULL
    WHERE user_id = :user_id AND checkout_claimed_until = :until
""")

_CONFIRMED = text("""
    SELECT checkout_session_id, checkout_url FROM billing_customers
    WHERE user_id = :user_id AND checkout_url IS NOT NULL AND checkout_confirmed_at >= :since
""")

_KEEP_CUSTOMER = text("""
    UPDATE billing_customers SET stripe_customer_id = :customer_id
    WHERE user_id = :user_id AND checkout_claimed_until = :until RETURNING user_id
""")

_KEEP_SESSION = text("""
    UPDATE billing_customers
    SET checkout_key = :key, checkout_session_id = :session_id, checkout_url = :url, checkout_terms = :terms,
        checkout_expires_at = :expires_at,
        checkout_confirmed_at = clock_timestamp()
    WHERE user_id = :user_id AND checkout_claimed_until = :until RETURNING user_id
""")

_RENEW = text(f"""
    UPDATE billing_customers
    SET checkout_key = :new_key, checkout_session_id = NULL, checkout_url = NULL, checkout_terms = NULL,
        checkout_expires_at = NULL,
        stripe_customer_id = CASE WHEN :is_customer_gone THEN NULL ELSE stripe_customer_id END,
        generation = generation + CASE WHEN :is_customer_gone THEN 1 ELSE 0 END,
        sync_began_at = CASE WHEN :is_customer_gone THEN NULL ELSE sync_began_at END
    WHERE user_id = :user_id AND checkout_claimed_until = :until
    RETURNING {_COLUMNS}
""")  # noqa: S608 - of our own constants


def take_claim(user_id: UUID) -> Claim | None:
    """Take the claim, and begin an intent if there is none; None while somebody else has it.

    Raises `UnauthorizedError` when the account is erased.
    """

    def take() -> Row[Any] | None:
        db.session.execute(_KNOW_USER, {"user_id": user_id})
        wanted = {"user_id": user_id, "seconds": CLAIM_SECONDS, "new_key": uuid4()}
        taken = db.session.execute(_TAKE, wanted).one_or_none()
        if taken is None and not db.session.scalar(_IS_KNOWN, {"user_id": user_id}):
            raise UnauthorizedError
        return taken

    return _claim(user_id, in_transaction(take))


def release_claim(claim: Claim) -> None:
    """Let others have it."""
    in_transaction(lambda: db.session.execute(_RELEASE, _of(claim)))


def read_clock() -> datetime:
    """Return the database's time."""
    now: datetime = in_transaction(lambda: db.session.execute(text("SELECT clock_timestamp()")).scalar_one())
    return now


def confirmed_checkout(user_id: UUID, since: datetime) -> Checkout | None:
    """Return the session that Stripe has called open since then, on anybody's asking."""
    found = in_transaction(lambda: db.session.execute(_CONFIRMED, {"user_id": user_id, "since": since}).one_or_none())
    return None if found is None else Checkout(found.checkout_session_id, found.checkout_url)


def keep_customer(claim: Claim, customer_id: str) -> bool:
    """Note whose customer it is; False if the claim, or the account, is gone."""
    wanted = {**_of(claim), "customer_id": customer_id}
    return in_transaction(lambda: db.session.execute(_KEEP_CUSTOMER, wanted).first()) is not None


def keep_session(claim: Claim, session: RemoteCheckout, terms: str) -> bool:
    """Note a session of these terms that is open; False if the claim, or the account, is gone."""
    found = {"session_id": session.id, "url": session.url, "expires_at": session.expires_at, "terms": terms}
    wanted = {**_of(claim), **found, "key": claim.key}  # The key may have been forgotten meanwhile.
    return in_transaction(lambda: db.session.execute(_KEEP_SESSION, wanted).first()) is not None


def renew_intent(claim: Claim, *, is_customer_gone: bool = False) -> Claim | None:
    """Begin a new intent in place of the old, with a new customer if that one is gone; None as with the others."""
    wanted = {**_of(claim), "new_key": uuid4(), "is_customer_gone": is_customer_gone}
    return _claim(claim.user_id, in_transaction(lambda: db.session.execute(_RENEW, wanted).one_or_none()))


def _of(claim: Claim) -> dict[str, Any]:
    return {"user_id": claim.user_id, "until": claim.until}


def _claim(user_id: UUID, row: Row[Any] | None) -> Claim | None:
    return row and Claim(
        user_id,
        row.checkout_claimed_until,
        row.stripe_customer_id,
        row.generation,
        row.checkout_key,
        row.checkout_session_id,
        row.checkout_terms,
    )
