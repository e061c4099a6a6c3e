"""What goes out of the subscription routes."""

from __future__ import annotations

from typing import Any

from marshmallow import fields
from marshmallow.validate import OneOf

from chatapi.schemas import ApiSchema, Timestamp

UNLIMITED = "unlimited"
TIER_SOLD = {"type": "string", "enum": ["pro"]}


class Allowance(fields.Field[Any]):
    """A number of prompts, or `unlimited`."""

    def __init__(self) -> None:
        shown = {"oneOf": [{"type": "integer", "minimum": 0}, {"type": "string", "enum": [UNLIMITED]}]}
        super().__init__(required=True, metadata=shown)


class CheckoutSchema(ApiSchema):
    """Where to pay."""

    message = fields.String(required=True)
    checkout_url = fields.String(required=True)
    session_id = fields.String(required=True)


class SubscriptionSchema(ApiSchema):
    """The subscription that counts; without any, `status` is `inactive` and the rest null."""

    tier = fields.String(required=True, allow_none=True, validate=OneOf(["basic", "pro"]))
    status = fields.String(required=True, metadata={"description": "Stripe's word, or `inactive`"})
    started_at = Timestamp(required=True, allow_none=True)
    ended_at = Timestamp(required=True, allow_none=True)
    current_period_end = Timestamp(required=True, allow_none=True)
    cancel_at_period_end = fields.Boolean(
        required=True,
        allow_none=True,
        metadata={"description": "True when it ends with the paid period"},
    )
    stripe_subscription_id = fields.String(required=True, allow_none=True)


class DailyUsageSchema(ApiSchema):
    """The day's prompts; only those accepted on Basic are counted."""

    tier = fields.String(required=True, validate=OneOf(["basic", "pro"]))
    daily_usage_count = fields.Integer(required=True)
    daily_limit = Allowance()
    remaining = Allowance()
    resets_at = Timestamp(required=True)


class TierFeaturesSchema(ApiSchema):
    """What a tier offers."""

    daily_prompts = Allowance()
    chatrooms = fields.String(required=True)
    support = fields.String(required=True)


class FeaturesSchema(ApiSchema):
    """What the tiers offer."""

    basic = fields.Nested(TierFeaturesSchema, required=True)
    pro = fields.Nested(TierFeaturesSchema, required=True)


class StatusSchema(ApiSchema):
    """Where the caller stands."""

    subscription = fields.Nested(SubscriptionSchema, required=True)
    usage = fields.Nested(DailyUsageSchema, required=True)
    features = fields.Nested(FeaturesSchema, required=True)


class PastSubscriptionSchema(ApiSchema):
    """A subscription, running or over."""

    id = fields.UUID(required=True)
    status = fields.String(required=True, metadata={"description": "Stripe's word"})
    tier = fields.Constant("pro", required=True, metadata={**TIER_SOLD, "description": "What it was for"})
    started_at = Timestamp(required=True, allow_none=True)
    ended_at = Timestamp(required=True, allow_none=True)
    stripe_subscription_id = fields.String(required=True)
    created_at = Timestamp(required=True)


class HistorySchema(ApiSchema):
    """All subscriptions there were, newest first."""

    subscription_history = fields.List(fields.Nested(PastSubscriptionSchema), required=True)


class PortalSchema(ApiSchema):
    """Where invoices and cards are."""

    portal_url = fields.String(required=True)


class ReceivedSchema(ApiSchema):
    """The message was taken in, now or before."""

    received = fields.Boolean(required=True)
