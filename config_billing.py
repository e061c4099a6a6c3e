"""The settings of billing: all of them, or none, which means that nothing can be bought."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from marshmallow import ValidationError, fields

BILLING_NAMES = ("STRIPE_SECRET_KEY", "STRIPE_WEBHOOK_SECRET", "STRIPE_PRICE_ID")
KEY_PREFIXES = ("sk_test_", "rk_test_", "sk_live_", "rk_live_")


class Words(fields.String):
    """Words with commas between them, as a list; each begins with one of `prefixes`."""

    def __init__(self, *prefixes: str) -> None:
        super().__init__(load_default=())
        self.prefixes = prefixes

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        text = str(super()._deserialize(value, attr, data, **kwargs))
        words = tuple(word.strip() for word in text.split(",") if word.strip())
        if not words or not all(word.startswith(self.prefixes) and word not in self.prefixes for word in words):
            raise ValidationError(f"must begin with {' or '.join(self.prefixes)}, also each after a comma")
        return words


def secret_key(value: str) -> None:
    """Refuse what is no secret key of Stripe's, such as the publishable one."""
    if not value.startswith(KEY_PREFIXES) or value in KEY_PREFIXES:
        raise ValidationError(f"must begin with {', '.join(KEY_PREFIXES)}")


def faults_of_billing(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what is missing, by its name, when some of billing is configured and some is not."""
    if not any(settings.get(name) for name in BILLING_NAMES):
        return
    for name in BILLING_NAMES:
        # A name that is not there has a fault of its own already.
        if name in settings and not settings[name]:
            yield name, "is not set, but another setting of Stripe is; set all of them or none"
    if "FRONTEND_URL" in settings and not settings["FRONTEND_URL"]:
        yield "FRONTEND_URL", "is not set, and people come back there from paying"


def is_configured(settings: Mapping[str, Any]) -> bool:
    """Return whether things can be bought."""
    return all(settings[name] for name in BILLING_NAMES)
