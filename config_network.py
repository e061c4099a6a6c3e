"""The settings of the network around the service: who may call it from a browser, and by which names it is called."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from marshmallow import ValidationError, fields

_HOST = re.compile(r"\.?[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*|\[[0-9a-f:.]+\]")
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


class _List(fields.String):
    """Values with commas between them, as a tuple."""

    def __init__(self) -> None:
        super().__init__(load_default=())

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        text = str(super()._deserialize(value, attr, data, **kwargs))
        return tuple(dict.fromkeys(self.read(word.strip()) for word in text.split(",") if word.strip()))

    def read(self, word: str) -> str:
        """Return a value in its one form. Raises `ValidationError`."""
        raise NotImplementedError


class Origins(_List):
    """Origins as browsers send them (RFC 6454, section 6.2): scheme, host, port if it is not the scheme's own.

    `*` stands for all of them.
    """

    def read(self, word: str) -> str:
        if word == "*":
            return word
        try:
            parts = urlsplit(word.lower())
            port = parts.port
        except ValueError:
            raise ValidationError(f"has {word!r}, which is not an origin") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or "*" in parts.netloc:
            raise ValidationError(f"has {word!r}, which is not an origin such as https://chat.example.com")
        if parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ValidationError(f"has {word!r}, but an origin ends with its host or port")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        is_usual = port is None or port == {"http": 80, "https": 443}[parts.scheme]
        return f"{parts.scheme}://{host}" + ("" if is_usual else f":{port}")


class Hosts(_List):
    """Host names without ports; one that begins with a dot stands for all names under it, and itself."""

    def read(self, word: str) -> str:
        name = word.lower()
        if not _HOST.fullmatch(name):
            raise ValidationError(f"has {word!r}, which is not a host name (without scheme and port)")
        return name


def trusted_hosts(named: tuple[str, ...], public_url: str | None) -> tuple[str, ...]:
    """Return the names by which the service may be called: those named, or those that follow from its public address.

    Without either there are none, which means that every name will do.
    """
    if named or not public_url:
        return named
    host = urlsplit(public_url).hostname or ""
    return (f"[{host}]" if ":" in host else host, *LOOPBACK)
