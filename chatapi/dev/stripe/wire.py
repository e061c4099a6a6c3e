"""Stripe's wire as the stand-in speaks it: forms, errors, ids and signatures."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
import secrets
import string
from typing import Any
from urllib.parse import parse_qsl

Json = dict[str, Any]

API_VERSION = "2026-10-28.endive"
VERSION = re.compile(r"\d{4}-\d{2}-\d{2}(\.[a-z_]{1,30})?")
FIELD = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")
MAX_FIELDS = 2000
MAX_DEPTH = 8
SESSION_ID_LENGTH = 58
ID_LENGTH = 24


class ApiError(Exception):
    """An answer that is not 2xx; `is_remembered` when it came of executing, so that an idempotency key keeps it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        is_remembered: bool = True,
        extra: Json | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.is_remembered = is_remembered
        fields = {"code": code, "param": param, **(extra or {})}
        told = {name: value for name, value in fields.items() if value is not None}
        self.error: Json = {"type": kind, "message": message, **told}

    def body(self) -> Json:
        """Return the body as sent."""
        return {"error": self.error}


def invalid(message: str, *, code: str | None = None, param: str | None = None) -> ApiError:
    """Refuse parameters before anything is executed."""
    return ApiError(400, message, code=code, param=param, is_remembered=False)


def missing_object(name: str, object_id: str, *, param: str | None = None) -> ApiError:
    """Say that there is no such object: 404 for the path's own, 400 when a parameter named it."""
    message = f"No such {name}: '{object_id}'"
    return ApiError(400 if param else 404, message, code="resource_missing", param=param or "id")


def decode_form(text: str) -> Json:
    """Read `a[b][0][c]=v` into nested dicts and lists; `a[]=v` appends. All values are texts."""
    try:
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS)
    except ValueError as error:
        raise invalid("Invalid request: the form cannot be read.") from error
    root: Json = {}
    for name, value in pairs:
        match = FIELD.fullmatch(name)
        if match is None or match[2].count("[") > MAX_DEPTH:
            raise invalid(f"Invalid request: the name {name[:100]} cannot be read.")
        _put(root, [match[1], *re.findall(r"\[([^\[\]]*)\]", match[2])], value, name)
    return {name: _with_lists(value) for name, value in root.items()}


def _put(node: Json, keys: list[str], value: str, name: str) -> None:
    for key in keys[:-1]:
        node = node.setdefault(key or str(len(node)), {})
        if not isinstance(node, dict):
            raise invalid(f"Invalid request: {name[:100]} is both a value and a hash.")
    node[keys[-1] or str(len(node))] = value


def _with_lists(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if all(key.isascii() and key.isdigit() for key in value):
        return [_with_lists(value[key]) for key in sorted(value, key=int)]
    return {key: _with_lists(inner) for key, inner in value.items()}


def check_key(header: str | None, *, livemode: bool) -> None:
    """Refuse a request whose `Authorization` holds no key of this account's mode; Bearer and Basic will do."""
    key = _key_in(header or "")
    if not key:
        message = "You did not provide an API key. You need to provide your API key in the Authorization header."
        raise ApiError(401, message, is_remembered=False)
    modes = ("test", "live") if livemode else ("test",)
    if not key.startswith(tuple(f"{kind}_{mode}_" for kind in ("sk", "rk") for mode in modes)):
        raise ApiError(401, f"Invalid API Key provided: {key[:8]}***", is_remembered=False)


def _key_in(header: str) -> str:
    scheme, _, rest = header.partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip()
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(rest, validate=True).decode().partition(":")[0]
    except (binascii.Error, UnicodeDecodeError):
        return ""


def check_version(version: str | None) -> str:
    """Return the version to answer with; one that cannot be a version is refused."""
    if version is None:
        return API_VERSION
    if not VERSION.fullmatch(version):
        raise invalid(f"Invalid Stripe API version: {version[:50]}")
    return version


def new_id(prefix: str) -> str:
    """Make an id such as Stripe's: `cus_` and random letters and digits."""
    length = SESSION_ID_LENGTH if prefix.startswith("cs_") else ID_LENGTH
    return prefix + "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(length))


def signature_header(payload: bytes, secrets_of_endpoint: list[str], timestamp: int) -> str:
    """Write `Stripe-Signature`, one v1 per secret: a secret that was replaced may stay good for a while."""
    signed = b"%d." % timestamp + payload
    signatures = [hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest() for secret in secrets_of_endpoint]
    return ",".join([f"t={timestamp}", *(f"v1={signature}" for signature in signatures)])


def to_json(body: object) -> bytes:
    """Write a body as Stripe does, over many lines: who reads it raw sees that it is."""
    return json.dumps(body, indent=2).encode()
