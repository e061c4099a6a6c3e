"""Keys for keyed hashes and encryption, each derived from the one configured secret."""

from __future__ import annotations

import hashlib
import hmac

from flask import current_app


def derived_key(purpose: str) -> bytes:
    """Return the 32-byte key for `purpose`.

    One secret serves all purposes; a key that leaks from one of them tells nothing of the others
    (HKDF's expand step, RFC 5869, for a single block).
    """
    secret: str = current_app.config["JWT_SECRET"]
    return hmac.digest(secret.encode(), purpose.encode() + b"\x01", hashlib.sha256)


def keyed_hash(purpose: str, *parts: str) -> bytes:
    """Return a hash of `parts` that only a holder of the secret can compute or check."""
    return hmac.digest(derived_key(purpose), "\x00".join(parts).encode(), hashlib.sha256)


def hash_number(mobile_number: str) -> bytes:
    """Return what stands for a canonical mobile number where the number itself must not be kept.

    Daily usage and code limits hang on it, so that they outlive an account that is deleted and made again.
    """
    return keyed_hash("mobile-number", mobile_number)
