"""What may not stand in a log: secrets by their looks, by the name they go by, and the very ones of this service."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

MASK = "***"

MOST_READ = 4000
MOST_KEPT = 1000
"""Characters of a text. More is read than is kept, so that no secret is cut in half before it is recognised."""

SECRET_NAMES = frozenset(
    {
        "authorization", "proxy_authorization", "cookie", "set_cookie", "headers", "body", "payload", "params", "query",
        "password", "passwd", "current_password", "new_password", "secret", "signature", "stripe_signature",
        "token", "access_token", "refresh_token", "signup_token", "jwt", "key", "api_key", "apikey", "x_goog_api_key",
        "otp", "pin", "code", "mobile_number", "number", "phone", "phone_number", "to", "recipient", "email",
        "content", "prompt", "text", "title", "description", "system_instruction", "reply", "delta", "snippet", "q",
        "dsn", "url", "database_url", "redis_url",
    }
)  # fmt: skip
"""Fields that are masked whatever they hold. None of our events has one; this is for the day that one does."""

_SECRET_SETTING = re.compile(r"SECRET|PASSWORD|_KEY\b|_TOKEN\b")
_SHORTEST_SECRET = 6
_LONGEST_REMEMBERED = 64
_MOST_REMEMBERED = 4096

_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")

# No part of these may repeat without bound before what it is to find: a hostile text would take time by its square.
_SHAPES: tuple[tuple[re.Pattern[str], str], ...] = (
    # What stands before the @ of a URL. A password may hold anything, so it goes up to the last one.
    (re.compile(r"(?<=://)[^\s'\"<>]{0,300}@"), f"{MASK}@"),
    # The query of a URL or path.
    (re.compile(r"\?[^\s'\"<>()=?]{0,60}=[^\s'\"<>()]*"), f"?{MASK}"),
    (re.compile(r"\beyJ[\w-]{5,}(?:\.[\w-]*){0,2}"), "<token>"),
    (re.compile(r"\b(bearer|basic)(\W{1,4})[\w.~+/=-]{6,}", re.IGNORECASE), rf"\1\2{MASK}"),
    (re.compile(r"(?<![A-Za-z0-9])(?:[srp]k_(?:live|test)_|whsec_|AIza)[\w+/=-]+"), "<key>"),
    # name=value, as in a DSN, and "name": "value", as in JSON or a Python repr; not the place of a parameter in SQL.
    (
        re.compile(
            r"((?:password|passwd|pwd|secret|token|api_?key|authorization|otp)['\"]?\s{0,2}[=:]\s{0,2})(?!%\()"
            r"(\"[^\"]*\"?|'[^']*'?|[^\s,;&)}\]]+)",
            re.IGNORECASE,
        ),
        rf"\1{MASK}",
    ),
    # Opaque tokens: so long a word, with capitals and digits, is no name.
    (re.compile(r"(?<![\w-])(?=[\w-]*[0-9])(?=[\w-]*[A-Z])(?=[\w-]*[a-z])[\w-]{32,}"), "<token>"),
    (re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}\.[\w.-]+"), "<email>"),
    # Mobile numbers as they are written and as they are kept.
    (re.compile(r"(?:\+|%2B)[0-9](?:[ ().-]{0,2}[0-9]){6,14}", re.IGNORECASE), "<number>"),
)

# Codes, and numbers without their plus. Ids, process ids and fractions are let be: the first alternative takes them.
# A trace id and nginx's $request_id are hexadecimal words, in which many digits may well follow one another.
_DIGITS = re.compile(
    rf"(\b{_UUID.pattern}\b|\b(?=[0-9]{{0,64}}[a-f])[0-9a-f]{{16,64}}\b"
    r"|\b(?:pid|process)[ :=]{1,2}[0-9]+\b|(?<![0-9])[0-9]{1,15}\.[0-9]+)"
    r"|(?<![0-9A-Za-z])[0-9]{6,15}(?![0-9A-Za-z])|(?<![0-9])[0-9]{8,15}(?![0-9])",
    re.IGNORECASE,
)


class Redactor:
    """Masks secrets in texts and fields. `secrets` are the service's own, masked wherever they stand.

    Most of what is logged is the same few words again and again, so texts that were found clean are remembered.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        forms = {form for secret in secrets for form in (secret, quote(secret, safe=""), repr(secret)[1:-1])}
        words = sorted((form for form in forms if len(form) >= _SHORTEST_SECRET), key=len, reverse=True)
        # Whole words only: a password such as `postgres` must not take the scheme of a URL away.
        self._own = [(word, re.compile(rf"(?<!\w){re.escape(word)}(?!\w)")) for word in words]
        self._clean: set[str] = set()

    def field(self, name: str, value: Any) -> Any:
        """Return what may be shown of a field of an event; `value` is of the kinds that JSON has."""
        if value is None or value is True or value is False:
            return value
        if name in SECRET_NAMES or name.lower().replace("-", "_") in SECRET_NAMES:
            return MASK
        if type(value) is str:
            return self.text(value)
        if type(value) is list:
            return [self.field("", item) for item in value]
        if type(value) is dict:
            return {self.text(key): self.field(key, item) for key, item in value.items()}
        return value

    def text(self, value: str) -> str:
        """Return a text without what looks like a secret, and cut when it is long."""
        if value in self._clean:
            return value
        if len(value) == 36 and _UUID.fullmatch(value):
            return value
        shown = self._mask(value[:MOST_READ])
        if len(shown) > MOST_KEPT:
            return f"{shown[:MOST_KEPT]}… ({len(value)} characters)"
        if shown == value and len(value) <= _LONGEST_REMEMBERED:
            self._remember(value)
        return shown

    def _mask(self, text: str) -> str:
        for word, pattern in self._own:
            if word in text:
                text = pattern.sub(MASK, text)
        for shape, shown in _SHAPES:
            text = shape.sub(shown, text)
        return _DIGITS.sub(lambda match: match[1] or "<digits>", text)

    def _remember(self, value: str) -> None:
        if len(self._clean) >= _MOST_REMEMBERED:
            self._clean.clear()
        self._clean.add(value)


def secrets_of(settings: Mapping[str, Any]) -> set[str]:
    """Return the secrets among the settings: keys, tokens, and what URLs have of passwords and queries."""
    found: set[str] = set()
    for name, value in settings.items():
        for word in value if isinstance(value, tuple | list) else (value,):
            if not isinstance(word, str):
                continue
            if _SECRET_SETTING.search(name):
                found.add(word)
            elif "://" in word:
                found |= _secrets_in_url(word)
    return found


def _secrets_in_url(url: str) -> set[str]:
    try:
        parts = urlsplit(url)
    except ValueError:
        return set()
    query = [value for key, value in parse_qsl(parts.query) if key not in ("host", "sslmode")]
    found = {*query, parts.password or "", unquote(parts.password or "")}
    return {each for each in found if each}
