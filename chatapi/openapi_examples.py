"""What bodies look like, for the OpenAPI document: an example for each schema, and others for some operations.

All are of one story, that of Ada. Tests hold each against its schema.
"""

from __future__ import annotations

from typing import Any

CHATROOM_ID = "019ab3c1-7d42-7c1f-9b52-4f0e6d2a8c11"
PROMPT_ID = "019ab3c2-0a10-7e55-8d3c-1b9f7e6a5d40"
REPLY_ID = "019ab3c2-0a11-7a0d-b6e1-93c5d8f2e774"
NUMBER = "+15551234567"
TOKEN = "eyJhbGciOiJIUzI1NiJ9…"  # noqa: S105
REFRESH_TOKEN = "pXr0cTn3Vb1m"  # noqa: S105
SIGNED_UP_AT = "2026-11-22T09:15:02.418213Z"
ASKED_AT = "2026-11-22T09:16:40.027451Z"
ANSWERED_AT = "2026-11-22T09:16:42.930118Z"
MIDNIGHT = "2026-11-23T00:00:00.000000Z"
PAID_AT = "2026-11-22T10:00:00.000000Z"
PAID_UNTIL = "2026-12-22T10:00:00.000000Z"

USER = {
    "id": "019ab3c0-51e7-7b9a-a4d5-6c2f8e0b1d93",
    "mobile_number": NUMBER,
    "name": "Ada",
    "email": "ada@example.com",
    "subscription_tier": "basic",
    "created_at": SIGNED_UP_AT,
}
PROFILE = {
    **USER,
    "subscription_status": None,
    "daily_usage_count": 1,
    "stats": {"chatroom_count": 1, "message_count": 2},
}
TOKENS = {"token": TOKEN, "refresh_token": REFRESH_TOKEN, "token_type": "Bearer", "expires_in": 3600}
CODE_SENT = {
    "message": "Code sent",
    "mobile_number": NUMBER,
    "purpose": "login",
    "expires_in": 300,
    "otp": "123456",
}
CHATROOM = {
    "id": CHATROOM_ID,
    "title": "Engines",
    "description": None,
    "system_instruction": "Answer in one sentence",
    "model": "gemini-3.5-flash",
    "created_at": SIGNED_UP_AT,
    "updated_at": ANSWERED_AT,
    "message_count": 2,
    "last_message_at": ASKED_AT,
}
NEW_CHATROOM = {**CHATROOM, "updated_at": SIGNED_UP_AT, "message_count": 0, "last_message_at": None}
PROMPT = {
    "id": PROMPT_ID,
    "content": "What is an analytical engine?",
    "message_type": "user",
    "status": "completed",
    "reply_to": None,
    "created_at": ASKED_AT,
    "updated_at": ASKED_AT,
}
PENDING_REPLY = {
    "id": REPLY_ID,
    "content": "",
    "message_type": "ai",
    "status": "pending",
    "reply_to": PROMPT_ID,
    "created_at": ASKED_AT,
    "updated_at": ASKED_AT,
}
REPLY = {
    **PENDING_REPLY,
    "content": "A mechanical computer that Charles Babbage designed in the 1830s.",
    "status": "completed",
    "model": "gemini-3.5-flash",
    "usage": {"prompt_tokens": 18, "output_tokens": 14},
    "updated_at": ANSWERED_AT,
}
STOPPED_REPLY = {
    **PENDING_REPLY,
    "content": "A mechanical computer",
    "status": "stopped",
    "model": "gemini-3.5-flash",
    "updated_at": ANSWERED_AT,
}
FEATURES = {
    "basic": {"daily_prompts": 5, "chatrooms": "unlimited", "support": "community"},
    "pro": {"daily_prompts": "unlimited", "chatrooms": "unlimited", "support": "priority"},
}
SUBSCRIPTION = {
    "tier": "pro",
    "status": "active",
    "started_at": PAID_AT,
    "ended_at": None,
    "current_period_end": PAID_UNTIL,
    "cancel_at_period_end": False,
    "stripe_subscription_id": "sub_1SWd0aLkdIwHu7ix",
}
STATUS = {
    "subscription": SUBSCRIPTION,
    "usage": {
        "tier": "pro",
        "daily_usage_count": 1,
        "daily_limit": "unlimited",
        "remaining": "unlimited",
        "resets_at": MIDNIGHT,
    },
    "features": FEATURES,
}
CANCELLED = {**STATUS, "subscription": {**SUBSCRIPTION, "cancel_at_period_end": True}}

BY_SCHEMA: dict[str, Any] = {
    # In.
    "SignupRequest": {
        "mobile_number": NUMBER,
        "name": "Ada",
        "email": "ada@example.com",
        "password": "a lantern over the harbour",
    },
    "OtpRequest": {"mobile_number": NUMBER, "purpose": "login"},
    "VerifyOtp": {"mobile_number": NUMBER, "otp": "123456"},
    "Login": {"mobile_number": NUMBER, "password": "a lantern over the harbour"},
    "ForgotPassword": {"mobile_number": NUMBER},
    "ResetPassword": {"mobile_number": NUMBER, "otp": "123456", "new_password": "a harbour without a lantern"},
    "Refresh": {"refresh_token": REFRESH_TOKEN},
    "ChangePassword": {
        "current_password": "a lantern over the harbour",
        "new_password": "a harbour without a lantern",
    },
    "Logout": {"all": False},
    "UpdateProfile": {"name": "Ada Lovelace", "email": None},
    "CreateChatroom": {"title": "Engines", "system_instruction": "Answer in one sentence"},
    "UpdateChatroom": {"title": "Analytical engines", "description": None},
    "SendMessage": {"content": "What is an analytical engine?"},
    "Nothing": {},
    # Out.
    "Index": {
        "name": "chatapi",
        "version": "0.1.0",
        "links": {"docs": "/docs", "openapi": "/openapi.json", "health": "/health"},
    },
    "Health": {"status": "OK", "timestamp": SIGNED_UP_AT},
    "Readiness": {
        "status": "ok",
        "checks": {"postgresql": "ok", "redis": "ok"},
        "notes": ["Gemini is a stand-in"],
    },
    "Signup": {
        "message": "Signed up: now verify the number with a code",
        "user": USER,
        "signup_token": "b6Yw0Qe3Lr9U",
    },
    "Otp": CODE_SENT,
    "Session": {**TOKENS, "message": "Signed in", "user": USER},
    "Tokens": TOKENS,
    "ProfileAnswer": {"user": PROFILE},
    "UpdatedProfile": {
        "message": "Profile updated",
        "user": {**PROFILE, "name": "Ada Lovelace", "email": None},
    },
    "Export": {
        "exported_at": ANSWERED_AT,
        "user": {**PROFILE, "has_password": True, "verified_at": SIGNED_UP_AT},
        "sessions": [],
        "daily_usage": [{"day": "2026-11-22", "used": 1}],
        "codes": [],
        "sign_in_limits": [],
        "idempotency_keys": [],
        "audit": [],
        "billing": [],
        "subscriptions": [],
        "stripe_events": [],
        "chatrooms": [{**CHATROOM, "messages": [PROMPT, REPLY]}],
    },
    "ChatroomAnswer": {"message": "Chatroom created", "chatroom": NEW_CHATROOM},
    "ChatroomList": {"chatrooms": [CHATROOM], "cached": False, "next_cursor": None},
    "ChatroomDetail": {"chatroom": {**CHATROOM, "messages": [PROMPT, REPLY], "has_more": False}},
    "ExportedChatroom": {"exported_at": ANSWERED_AT, "chatroom": CHATROOM, "messages": [PROMPT, REPLY]},
    "SentMessage": {"message": "Prompt accepted", "user_message": PROMPT, "ai_message": PENDING_REPLY},
    "Regenerated": {"message": "Prompt accepted", "ai_message": PENDING_REPLY},
    "MessageAnswer": {"message": REPLY},
    "ModelList": {
        "models": [
            {
                "alias": "gemini-3.5-flash",
                "description": "Quick answers",
                "tiers": ["basic", "pro"],
                "default": True,
            }
        ]
    },
    "Checkout": {
        "message": "Checkout session created",
        "checkout_url": "https://checkout.stripe.com/c/pay/cs_test_a1B2c3D4",
        "session_id": "cs_test_a1B2c3D4",
    },
    "Status": STATUS,
    "History": {
        "subscription_history": [
            {
                "id": "019ab3e9-60c4-7f3b-8a17-2d5e9c0b4f68",
                "status": "active",
                "tier": "pro",
                "started_at": PAID_AT,
                "ended_at": None,
                "stripe_subscription_id": "sub_1SWd0aLkdIwHu7ix",
                "created_at": PAID_AT,
            }
        ]
    },
    "Portal": {"portal_url": "https://billing.stripe.com/p/session/test_YWNjdF8x"},
    "Received": {"received": True},
}
"""By the name of a schema that is a body."""

BY_OPERATION: dict[tuple[str, str], Any] = {
    ("forgot_password", "200"): {**CODE_SENT, "purpose": "password_reset"},
    ("reset_password", "200"): {"message": "Password set, sign in with it"},
    ("change_password", "200"): {"message": "Password changed"},
    ("update_chatroom_put", "200"): {
        "message": "Chatroom updated",
        "chatroom": {**CHATROOM, "title": "Analytical engines"},
    },
    ("update_chatroom_patch", "200"): {
        "message": "Chatroom updated",
        "chatroom": {**CHATROOM, "title": "Analytical engines"},
    },
    ("delete_chatroom", "200"): {"message": "Chatroom deleted"},
    ("stop_message", "200"): {"message": STOPPED_REPLY},
    ("cancel", "200"): CANCELLED,
    ("ready", "503"): {
        "status": "unavailable",
        "checks": {"postgresql": "unavailable (OperationalError)", "redis": "ok"},
        "notes": [],
    },
    ("receive_event", "request"): {
        "id": "evt_1SWd0bLkdIwHu7ix",
        "object": "event",
        "type": "customer.subscription.updated",
        "created": 1763805600,
        "livemode": False,
        "data": {"object": {"id": "sub_1SWd0aLkdIwHu7ix", "object": "subscription", "customer": "cus_TTBk3aP9"}},
    },
    ("stream_message", "200"): {"id": "13-31", "event": "delta", "data": '{"text": "A mechanical"}'},
}
"""By operationId and status (or `request`), where its schema's example would not tell the truth."""

PARAMETERS: dict[str, dict[str, Any]] = {
    "Idempotency-Key": {"example": "5f0c1d3e-engines-1"},
    "Prefer": {"example": "wait=10"},
    "Last-Event-ID": {"example": "13-31"},
    "q": {"example": "analytical engine"},
    "chatroom_id": {"description": "The chatroom's id, a UUID", "example": CHATROOM_ID},
    "message_id": {"description": "The message's id, a UUID", "example": REPLY_ID},
}
"""By name; those in paths have no other description."""
