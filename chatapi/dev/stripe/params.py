"""What parameters of Stripe's API may look like, and Stripe's words for those that do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from chatapi.dev.stripe.wire import Json, invalid

Checker = Callable[[Any, str], Any]
"""Takes a decoded value and its full name, returns it typed or raises `ApiError`."""

MAX_TEXT = 5000
MAX_METADATA_KEYS = 50
MAX_METADATA_KEY = 40
MAX_METADATA_VALUE = 500
MAX_MOMENT = 2**40
COMPARISONS = ("gt", "gte", "lt", "lte")


@dataclass(frozen=True)
class Params:
    """The parameters a route knows. All routes know `expand`."""

    known: Mapping[str, Checker] = field(default_factory=dict)
    required: tuple[str, ...] = ()

    def read(self, given: Json) -> Json:
        """Return `given` typed; raise what Stripe answers to an unknown, missing or wrong one."""
        return _read_hash(given, {**self.known, "expand": array(text())}, self.required, "")


def _read_hash(given: Json, known: Mapping[str, Checker], required: tuple[str, ...], prefix: str) -> Json:
    def full_name(name: str) -> str:
        return f"{prefix}[{name}]" if prefix else name

    for name in given:
        if name not in known:
            message = f"Received unknown parameter: {full_name(name)}"
            raise invalid(message, code="parameter_unknown", param=full_name(name))
    for name in required:
        if name not in given:
            message = f"Missing required param: {full_name(name)}."
            raise invalid(message, code="parameter_missing", param=full_name(name))
        if given[name] == "":
            message = f"You passed an empty string for '{full_name(name)}'. It is required."
            raise invalid(message, code="parameter_invalid_empty", param=full_name(name))
    return {name: known[name](value, full_name(name)) for name, value in given.items()}


def text(*, max_length: int = MAX_TEXT) -> Checker:
    """Read a text; the empty one unsets, and becomes None."""

    def check(value: Any, name: str) -> str | None:
        if not isinstance(value, str):
            raise invalid(f"Invalid string: {name}", param=name)
        if len(value) > max_length:
            raise invalid(f"Invalid string: {name} must be at most {max_length} characters", param=name)
        return value or None

    return check


def boolean() -> Checker:
    """Read `true` or `false`."""

    def check(value: Any, name: str) -> bool:
        if value not in ("true", "false"):
            raise invalid(f"Invalid boolean: {value}", param=name)
        return bool(value == "true")

    return check


def whole(minimum: int = 0, maximum: int = MAX_MOMENT) -> Checker:
    """Read a whole number."""

    def check(value: Any, name: str) -> int:
        digits = value.removeprefix("-") if isinstance(value, str) else ""
        if not (digits.isascii() and digits.isdigit()) or len(digits) > len(str(MAX_MOMENT)):
            raise invalid(f"Invalid integer: {value}", code="parameter_invalid_integer", param=name)
        if not minimum <= (number := int(value)) <= maximum:
            message = f"This value must be from {minimum} to {maximum} (it currently is '{number}')."
            raise invalid(message, code="parameter_invalid_integer", param=name)
        return number

    return check


def choice(*names: str) -> Checker:
    """Read one of `names`."""

    def check(value: Any, name: str) -> str:
        if value not in names:
            raise invalid(f"Invalid {name}: must be one of {', '.join(names)}", param=name)
        return str(value)

    return check


def url() -> Checker:
    """Read an absolute http or https URL."""

    def check(value: Any, name: str) -> str:
        try:
            parts = urlsplit(value) if isinstance(value, str) else urlsplit("")
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in {"http", "https"} or not parts.hostname or not value.isprintable() or " " in value:
            raise invalid("Not a valid URL", code="url_invalid", param=name)
        return str(value)

    return check


def metadata() -> Checker:
    """Read a hash of texts; the empty text for the whole unsets all, and becomes None."""

    def check(value: Any, name: str) -> Json | None:
        if value == "":
            return None
        if not isinstance(value, dict) or not all(isinstance(inner, str) for inner in value.values()):
            raise invalid("Invalid metadata: must be a hash of strings", param=name)
        for key, inner in value.items():
            if len(key) > MAX_METADATA_KEY or len(inner) > MAX_METADATA_VALUE:
                raise invalid(f"Metadata is too long at {key[:MAX_METADATA_KEY]}", param=f"{name}[{key}]")
        return value

    return check


def merge_metadata(held: Json, change: Json | None) -> Json:
    """Merge as Stripe does: an empty text unsets its key, None all of them."""
    if change is None:
        return {}
    merged = {key: value for key, value in {**held, **change}.items() if value != ""}
    if len(merged) > MAX_METADATA_KEYS:
        raise invalid(f"You can have at most {MAX_METADATA_KEYS} metadata keys.", param="metadata")
    return merged


def array(inner: Checker, *, minimum: int = 0) -> Checker:
    """Read a list whose members `inner` reads."""

    def check(value: Any, name: str) -> list[Any]:
        if value == "":
            value = []
        if not isinstance(value, list):
            raise invalid("Invalid array", param=name)
        if len(value) < minimum:
            raise invalid(f"Invalid array: {name} may not be empty", code="parameter_invalid_empty", param=name)
        return [inner(member, f"{name}[{index}]") for index, member in enumerate(value)]

    return check


def hash_of(known: Mapping[str, Checker], *required: str, may_unset: bool = False) -> Checker:
    """Read a nested hash; with `may_unset` the empty text for the whole becomes None."""

    def check(value: Any, name: str) -> Json | None:
        if may_unset and value == "":
            return None
        if not isinstance(value, dict):
            raise invalid("Invalid object", param=name)
        return _read_hash(value, known, required, name)

    return check


def either(word: str, other: Checker) -> Checker:
    """Read `word`, or what `other` reads."""
    return lambda value, name: value if value == word else other(value, name)


def interval() -> Checker:
    """Read a moment, or bounds of moments, into bounds."""
    bounds = hash_of(dict.fromkeys(COMPARISONS, whole()))

    def check(value: Any, name: str) -> Json:
        if isinstance(value, dict):
            return dict(bounds(value, name))
        moment = whole()(value, name)
        return {"gte": moment, "lte": moment}

    return check


def is_within(moment: int, bounds: Json) -> bool:
    """Return whether `moment` keeps to what `interval` has read."""
    first = max(bounds.get("gte", 0), bounds.get("gt", -1) + 1)
    last = min(bounds.get("lte", MAX_MOMENT), bounds.get("lt", MAX_MOMENT + 1) - 1)
    return bool(first <= moment <= last)
