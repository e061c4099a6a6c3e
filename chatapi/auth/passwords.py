"""Hashing passwords, and telling which must not be taken."""

from __future__ import annotations

import base64
import os
import re
import string
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from argon2 import PasswordHasher, Type
from argon2.exceptions import VerificationError, VerifyMismatchError
from argon2.low_level import ARGON2_VERSION

# OWASP Password Storage Cheat Sheet, "Argon2id": m=19456 (19 MiB), t=2, p=1.
MEMORY_KIB = 19_456
PASSES = 2
LANES = 1

# Each hash takes its 19 MiB and keeps a processor busy until it is done, so more of them at once would end no sooner.
MAX_HASHES_AT_ONCE = os.cpu_count() or 1

_COMMON_PASSWORDS_PATH = Path(__file__).with_name("common_passwords.txt")
_SEPARATORS = re.compile(rf"[\s{re.escape(string.punctuation)}]+")
_SERVICE_NAME = re.compile(r"[0-9]{0,4}(?:chatapi)+[0-9]{0,4}")

_hasher = PasswordHasher(time_cost=PASSES, memory_cost=MEMORY_KIB, parallelism=LANES, type=Type.ID)
# In threads of their own: the C library keeps what a thread has freed for that thread's next use, so hashing in
# whichever thread a request has would in time hold 19 MiB for each of them.
_hashing = ThreadPoolExecutor(MAX_HASHES_AT_ONCE, thread_name_prefix="hashing")


def _make_dummy_hash() -> str:
    """Return a hash that no password is known for, as salt and digest are random, but that is work to check like any.

    Nothing is hashed for it, so it is there from the import on and costs it nothing: one that was made at its first
    use would have the first sign-in to a missing account take twice as long.
    """
    salt, digest = (
        base64.b64encode(os.urandom(length)).decode().rstrip("=") for length in (_hasher.salt_len, _hasher.hash_len)
    )
    return f"$argon2id$v={ARGON2_VERSION}$m={MEMORY_KIB},t={PASSES},p={LANES}${salt}${digest}"


_DUMMY_HASH = _make_dummy_hash()


def hash_password(password: str) -> str:
    """Return the password's Argon2id hash, with its parameters and salt, as a PHC string.

    It is normalized to NFC first, as the same password comes composed from one keyboard and decomposed from another
    (NIST SP 800-63B-4, 3.1.1.2). Code points that this Python does not know yet are taken as they are.
    """
    return _hashing.submit(_hasher.hash, _normalized(password)).result()


def verify_password(password_hash: str | None, password: str) -> bool:
    """Return whether the password is the one that was hashed.

    Without a hash, or with one that cannot be read, the same work is spent before the answer, which then is no: time
    must not tell whether there is an account, or whether it has a password.
    """
    if password_hash is not None:
        try:
            return _is_match(password_hash, password)
        except (VerificationError, ValueError):
            pass
    _is_match(_DUMMY_HASH, password)
    return False


def needs_rehash(password_hash: str) -> bool:
    """Return whether a hash that verified was made with other parameters than today's."""
    return _hasher.check_needs_rehash(password_hash)


def fault_of_password(password: str, mobile_number: str) -> str | None:
    """Return why the password must not be taken, or None if it may be; its length is the schema's matter.

    Refused are the most common ones, the service's name and the canonical number with what is derived from them, all
    compared as a whole (NIST SP 800-63B-4, 3.1.1.2). Nothing is asked of what a password is composed of.
    """
    folded = _folded(password)
    if folded in _common_passwords():
        return "Must not be one of the most common passwords."
    bare = _SEPARATORS.sub("", folded)
    # As a number, so that 0 and 00 before it do not count, nor in which script its digits are.
    if bare.isdecimal() and mobile_number.endswith(str(int(bare))):
        return "Must not be the mobile number, or the end of it."
    if _SERVICE_NAME.fullmatch(bare):
        return "Must not be the name of this service."
    return None


def _is_match(password_hash: str, password: str) -> bool:
    """Return whether hash and password go together.

    Raises `VerificationError` or `ValueError` if the hash cannot be read.
    """
    try:
        return _hashing.submit(_hasher.verify, password_hash, _normalized(password)).result()
    except VerifyMismatchError:
        return False


def _normalized(password: str) -> bytes:
    return unicodedata.normalize("NFC", password).encode()


def _folded(text: str) -> str:
    """Return what stands for `text` where case, full width and ligatures make no difference, unlike in hashing."""
    return unicodedata.normalize("NFKC", text).casefold()


@cache
def _common_passwords() -> frozenset[str]:
    """Return the most common passwords, folded. Read at first use: only a process that sets passwords needs them."""
    lines = _COMMON_PASSWORDS_PATH.read_text(encoding="utf-8").splitlines()
    return frozenset(line for line in lines if not line.startswith("# "))
