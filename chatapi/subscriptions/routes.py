"""The subscription routes, all for those who are signed in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

from flask import current_app, request

from chatapi.admission import waiting_room
from chatapi.auth.tokens import current_user
from chatapi.errors import UnsupportedMediaTypeError
from chatapi.extensions import in_transaction
from chatapi.parsing import ApiBlueprint, read_body
from chatapi.schemas import NothingSchema
from chatapi.subscriptions import service
from chatapi.subscriptions.checkout import AlreadySubscribedError, start_checkout
from chatapi.subscriptions.gateway import BillingNotConfiguredError, BillingUnavailableError
from chatapi.subscriptions.schemas import (
    UNLIMITED,
    CheckoutSchema,
    HistorySchema,
    PortalSchema,
    StatusSchema,
    SubscriptionSchema,
)

SUPPORT = {"basic": "community", "pro": "priority"}

NO_STRIPE = (BillingUnavailableError("too_slow"), BillingNotConfiguredError())

blueprint = ApiBlueprint("subscriptions", __name__, description="Basic and Pro")


@blueprint.post("/subscribe/pro")
@blueprint.response(200, CheckoutSchema)
@blueprint.problems(AlreadySubscribedError, *NO_STRIPE)
def subscribe() -> dict[str, Any]:
    """Begin to pay for Pro

    Send the user to `checkout_url`. Asked again, it is the same one as long as it is open. Pro begins with the payment,
    not with the way back from it. A body is ignored.

    409 is `already_subscribed`; 503 is `billing_unavailable`, to be tried again, or `billing_not_configured`.
    """
    _pass_over_body()
    with waiting_room().visit():
        checkout = start_checkout(current_user().id)
    return {
        "message": "Checkout session created",
        "checkout_url": checkout.url,
        "session_id": checkout.session_id,
    }


@blueprint.get("/subscription/status")
@blueprint.response(200, StatusSchema)
def read_status() -> dict[str, Any]:
    """Show the caller's tier, subscription and prompts left

    After a checkout, Stripe is asked when its message is late.
    """
    user_id = current_user().id
    with waiting_room().visit():
        service.heal(user_id)
    return _status(user_id)


@blueprint.get("/subscription/history")
@blueprint.response(200, HistorySchema)
def read_history() -> dict[str, Any]:
    """List the caller's subscriptions, newest first"""
    history = in_transaction(lambda: service.list_history(current_user().id))
    return {"subscription_history": history}


@blueprint.post("/subscription/cancel")
@blueprint.arguments(NothingSchema, required=False)
@blueprint.response(200, StatusSchema)
@blueprint.problems(service.NotSubscribedError, *NO_STRIPE)
def cancel(_body: dict[str, Any]) -> dict[str, Any]:
    """End the subscription with its paid period

    409 is `not_subscribed`; 503 is `billing_unavailable`, to be tried again, or `billing_not_configured`.
    """
    user_id = current_user().id
    with waiting_room().visit():
        service.cancel(user_id)
    return _status(user_id)


@blueprint.post("/subscription/resume")
@blueprint.arguments(NothingSchema, required=False)
@blueprint.response(200, StatusSchema)
@blueprint.problems(service.NotSubscribedError, *NO_STRIPE)
def resume(_body: dict[str, Any]) -> dict[str, Any]:
    """Take the cancellation back, before the period is over

    409 is `not_subscribed`; 503 is `billing_unavailable`, to be tried again, or `billing_not_configured`.
    """
    user_id = current_user().id
    with waiting_room().visit():
        service.resume(user_id)
    return _status(user_id)


@blueprint.post("/subscription/portal")
@blueprint.arguments(NothingSchema, required=False)
@blueprint.response(200, PortalSchema)
@blueprint.problems(service.NotSubscribedError, *NO_STRIPE)
def open_portal(_body: dict[str, Any]) -> dict[str, Any]:
    """Open the page with the caller's invoices and cards

    409 is `not_subscribed`; 503 is `billing_unavailable`, to be tried again, or `billing_not_configured`.
    """
    with waiting_room().visit():
        return {"portal_url": service.open_portal(current_user().id)}


def _alias(view: Callable[..., Any], method: str, path: str, of: str) -> None:
    """Answer at `path` as at `of`: the original has the two under either name."""
    described = blueprint.doc(summary=f"Alias of `{method} {of}`", description="The same under another name.")(view)
    blueprint.add_url_rule(path, f"{view.__name__}_alias", described, methods=[method])


_alias(subscribe, "POST", "/subscription/pro", of="/subscribe/pro")
_alias(read_status, "GET", "/subscribe/status", of="/subscription/status")


def _pass_over_body() -> None:
    """Make nothing of the body, and refuse one that no other route would read: its length, or its encoding."""
    read_body(request)
    if "Content-Encoding" in request.headers:
        raise UnsupportedMediaTypeError


def _status(user_id: UUID) -> dict[str, Any]:
    standing = in_transaction(lambda: service.read_standing(user_id))
    tier = "pro" if standing.is_pro else "basic"
    return {"subscription": _shown(standing, tier), "usage": _usage(standing, tier), "features": _features()}


def _shown(standing: service.Standing, tier: str) -> dict[str, Any]:
    subscription = standing.subscription
    if subscription is None:
        return {**dict.fromkeys(SubscriptionSchema().fields), "status": "inactive"}
    names = ("status", "started_at", "ended_at", "current_period_end", "cancel_at_period_end", "stripe_subscription_id")
    return {"tier": tier, **{name: getattr(subscription, name) for name in names}}


def _usage(standing: service.Standing, tier: str) -> dict[str, Any]:
    limit = current_app.config["BASIC_DAILY_PROMPTS"]
    used = standing.usage.used
    return {
        "tier": tier,
        "daily_usage_count": used,
        "daily_limit": UNLIMITED if standing.is_pro else limit,
        "remaining": UNLIMITED if standing.is_pro else max(0, limit - used),
        "resets_at": standing.usage.resets_at,
    }


def _features() -> dict[str, Any]:
    prompts = {"basic": current_app.config["BASIC_DAILY_PROMPTS"], "pro": UNLIMITED}
    return {
        tier: {"daily_prompts": prompts[tier], "chatrooms": UNLIMITED, "support": SUPPORT[tier]} for tier in SUPPORT
    }
