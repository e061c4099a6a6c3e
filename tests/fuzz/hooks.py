"""What schemathesis cannot know from the OpenAPI document of this service."""

from __future__ import annotations

import itertools
import os
import secrets
from collections.abc import Iterator
from typing import Any

import requests
import schemathesis

from chatapi.auth.passwords import fault_of_password

URL = os.environ["CHATAPI_URL"]
TOKENS = frozenset(os.environ["CHATAPI_TOKENS"].split(","))
ENDING = frozenset({("POST", "/auth/logout"), ("POST", "/auth/change-password"), ("DELETE", "/user/me")})
"""What ends a session, or the account. Each call has an account of its own for it."""

_numbers = itertools.count(int.from_bytes(os.urandom(4), "big"))


def _new_token() -> str:
    number = {"mobile_number": f"+1{next(_numbers):012d}"}
    otp = requests.post(f"{URL}/auth/send-otp", json=number, timeout=60).json()["otp"]
    token: str = requests.post(f"{URL}/auth/verify-otp", json={**number, "otp": otp}, timeout=60).json()["token"]
    return token


@schemathesis.hook
def before_call(_context: Any, case: Any, _options: Any) -> None:
    """Spare the two users' sessions, and have no key come twice with two requests, as short ones would."""
    headers = case.headers or {}
    is_ours = headers.get("Authorization", "").removeprefix("Bearer ") in TOKENS
    if is_ours and (case.method.upper(), case.path) in ENDING:
        headers["Authorization"] = f"Bearer {_new_token()}"
    if headers.get("Idempotency-Key") and _is_positive(case):
        headers["Idempotency-Key"] = headers["Idempotency-Key"][:200] + secrets.token_hex(8)


@schemathesis.hook
def filter_case(_context: Any, case: Any) -> bool:
    """Leave out what is well-formed by the document, and refused by rules that no document can say."""
    if not _is_positive(case):
        return True
    given_out = {draw.parameter_name for draw in case.meta.pool_draws} if case.meta else set()
    return not any(_is_refused(name, value) for name, value in _values(case) if name not in given_out)


def _is_positive(case: Any) -> bool:
    return bool(case.meta is None or case.meta.generation.mode.is_positive)


def _values(case: Any) -> Iterator[tuple[str, Any]]:
    yield from (case.query or {}).items()
    if isinstance(case.body, dict):
        yield from case.body.items()


def _is_refused(name: str, value: Any) -> bool:
    if not isinstance(value, str):
        return False
    if name in ("password", "new_password"):
        # Without a letter it may be the end of a number.
        return fault_of_password(value, "") is not None or not any(character.isalpha() for character in value)
    if name in ("name", "title"):
        return not any(character.isprintable() and not character.isspace() for character in value)
    return name == "cursor"
