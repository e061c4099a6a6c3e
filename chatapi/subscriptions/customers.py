"""Whose a customer is: known here, or noted with the customer at Stripe."""

from __future__ import annotations

from uuid import UUID

import structlog
from sqlalchemy import select, text

from chatapi.extensions import db, in_transaction
from chatapi.subscriptions.gateway import CustomerMissingError, MissingAtStripeError, StripeGateway
from chatapi.subscriptions.models import BillingCustomer
from chatapi.subscriptions.sync import is_ours

log = structlog.get_logger(__name__)

# Only for a user who has no customer yet: a second one is for people to look at.
_ADOPT = text("""
    INSERT INTO billing_customers AS known (user_id, stripe_customer_id)
    SELECT id, :customer_id FROM users WHERE id = :user_id FOR KEY SHARE
    ON CONFLICT (user_id) DO UPDATE SET stripe_customer_id = excluded.stripe_customer_id, sync_began_at = NULL
    WHERE known.stripe_customer_id IS NULL
    RETURNING user_id
""")


def adopt_customer(stripe: StripeGateway, customer_id: str) -> bool:
    """Learn whose a customer is from what was noted with it when we made it; False if it says nobody.

    That happens when its first event is here before the answer to our making it, or when that answer was lost, or the
    database is from a backup.
    """
    try:
        customer = stripe.read_customer(customer_id)
        user_id = UUID(customer.user_id or "")
    except (MissingAtStripeError, ValueError):
        return False
    wanted = {"user_id": user_id, "customer_id": customer_id}
    is_adopted = in_transaction(lambda: db.session.execute(_ADOPT, wanted).first()) is not None
    if is_adopted:
        log.info("customer_adopted", customer=customer_id)
    return is_adopted


def why_nobody(stripe: StripeGateway, customer_id: str) -> str | None:
    """Return why a customer whom nobody here is will never be anybody; None when that may still come.

    They are deleted, or pay for other things than ours: the Stripe account may sell more than Pro.
    """
    if stripe.is_deleted(customer_id):
        return "customer_deleted"
    try:
        found = stripe.subscriptions_of(customer_id)
    except CustomerMissingError:
        return None
    return "foreign_price" if found and not any(is_ours(subscription) for subscription in found) else None


def customer_of(user_id: UUID) -> str | None:
    """Return the id of the user's customer at Stripe, if there is one."""
    query = select(BillingCustomer.stripe_customer_id).where(BillingCustomer.user_id == user_id)
    customer_id: str | None = db.session.scalar(query)
    return customer_id
