"""The settings of billing: all of them, or none, which means that nothing can be bought."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from marshmallow import ValidationError, fields

BILLING_NAMES = ("STRIPE_SECRET_KEY", "STRIPE_WEBHOOK_SECRET", "STRIPE_PRICE_ID")
LIVE_PREFIXES = ("sk_live_", "rk_live_")
KEY_PREFIXES = ("sk_test_", "rk_test_", *LIVE_PREFIXES)


class Words(fields.String):
    """Words with commas between them, as a list; each begins with one of `prefixes`."""

    def __init__(self, *prefixes: str) -> None:
        super().__init__(load_default=())
        self.prefixes = prefixes

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        text = str(super()._deserialize(value, attr, data, **kwargs))
        words = tuple(word.strip() for word in text.split(",") if word.strip())
        if not words or not all(_is_word(word, self.prefixes) for word in words):
            raise ValidationError(f"must begin with {' or '.join(self.prefixes)}, also each after a comma")
        return words


def secret_key(value: str) -> None:
    """Refuse what is no secret key of Stripe's, such as the publishable one."""
    if not _is_word(value, KEY_PREFIXES):
        raise ValidationError(f"must begin with {', '.join(KEY_PREFIXES)}")


def _is_word(value: str, prefixes: tuple[str, ...]) -> bool:
    """Return whether it begins with one of `prefixes`, goes on, and has no blank in it, nor dots to be filled in."""
    return any(re.fullmatch(rf"{prefix}(?!\.+$)[!-~]+", value) for prefix in prefixes)


def front_end(url: str) -> None:
    """Refuse what no path can be put behind."""
    if re.search(r"[\s?]", url):
        raise ValidationError("must have no question mark and no blank in it: paths are put behind it")


def is_live(key: str) -> bool:
    """Return whether a secret key is for real money; Stripe's test mode is a world of its own."""
    return key.startswith(LIVE_PREFIXES)


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


def is_half_configured(settings: Mapping[str, Any]) -> bool:
    """Return whether things seem to be for sale, and are not. Only development starts so."""
    return any(settings[name] for name in BILLING_NAMES) and not is_configured(settings)
