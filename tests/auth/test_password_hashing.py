"""Hashing passwords as OWASP and NIST ask for, and refusing those that everybody tries first."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import pytest
from argon2 import PasswordHasher, Type, extract_parameters

from chatapi.auth import passwords
from chatapi.auth.passwords import (
    fault_of_password,
    hash_password,
    needs_rehash,
    verify_password,
)
from config import ROOT

NUMBER = "+447700900123"
PASSPHRASE = "seven lazy otters skip supper"
MALFORMED_HASHES = ["", "x", "$argon2id$", "$argon2id$v=19$m=19456,t=2,p=1$c2FsdA", "$2b$12$abc", "$argon2id$é", "\x00"]


def seconds_of(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def time_ratio(one: Callable[[], object], other: Callable[[], object]) -> float:
    """Return how many times as long `one` takes; by turns, so that a busy machine slows both."""
    times = [(seconds_of(one), seconds_of(other)) for _ in range(20)]
    return median(pair[0] for pair in times) / median(pair[1] for pair in times)


def test_hash_has_the_parameters_that_owasp_recommends() -> None:
    made = extract_parameters(hash_password(PASSPHRASE))
    assert (made.type, made.version, made.memory_cost, made.time_cost, made.parallelism) == (Type.ID, 19, 19_456, 2, 1)
    assert (made.salt_len, made.hash_len) == (16, 32)


def test_same_password_hashes_differently_each_time() -> None:
    assert hash_password(PASSPHRASE) != hash_password(PASSPHRASE)


def test_right_password_verifies() -> None:
    assert verify_password(hash_password(PASSPHRASE), PASSPHRASE)


@pytest.mark.parametrize("wrong", ["", PASSPHRASE + " ", PASSPHRASE.upper(), PASSPHRASE[:-1]])
def test_wrong_password_does_not_verify(wrong: str) -> None:
    assert not verify_password(hash_password(PASSPHRASE), wrong)


@pytest.mark.parametrize("password", ["", PASSPHRASE])
def test_nothing_verifies_without_a_hash(password: str) -> None:
    assert not verify_password(None, password)


def test_longest_password_counts_to_its_end() -> None:
    longest = "🦦" * 128
    password_hash = hash_password(longest)
    assert verify_password(password_hash, longest)
    assert not verify_password(password_hash, longest[:-1] + "🦫")


@pytest.mark.parametrize("malformed", MALFORMED_HASHES)
def test_nothing_verifies_and_nothing_is_raised_when_the_stored_hash_is_malformed(malformed: str) -> None:
    assert not verify_password(malformed, PASSPHRASE)


def test_check_takes_as_long_without_a_hash() -> None:
    password_hash = hash_password(PASSPHRASE)
    ratio = time_ratio(lambda: verify_password(None, "wrong"), lambda: verify_password(password_hash, "wrong"))
    assert 0.5 < ratio < 2


def test_check_takes_as_long_when_the_stored_hash_is_malformed() -> None:
    password_hash = hash_password(PASSPHRASE)
    ratio = time_ratio(
        lambda: verify_password(MALFORMED_HASHES[3], "wrong"), lambda: verify_password(password_hash, "wrong")
    )
    assert 0.5 < ratio < 2


def test_dummy_hash_is_the_work_of_todays_parameters() -> None:
    assert not needs_rehash(passwords._DUMMY_HASH)


def test_new_hash_needs_no_rehash() -> None:
    assert not needs_rehash(hash_password(PASSPHRASE))


@pytest.mark.parametrize(
    "other",
    [
        PasswordHasher(),
        PasswordHasher(time_cost=1, memory_cost=19_456, parallelism=1),
        PasswordHasher(time_cost=2, memory_cost=19_455, parallelism=1),
        PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=2),
        PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1, type=Type.I),
    ],
    ids=["defaults", "passes", "memory", "lanes", "type"],
)
def test_hash_of_other_parameters_verifies_but_needs_rehash(other: PasswordHasher) -> None:
    password_hash = other.hash(PASSPHRASE)
    assert verify_password(password_hash, PASSPHRASE)
    assert not verify_password(password_hash, "wrong")
    assert needs_rehash(password_hash)


def test_composed_and_decomposed_forms_are_one_password() -> None:
    composed, decomposed = (unicodedata.normalize(form, "Mañana früh in Hà Nội 한글") for form in ("NFC", "NFD"))
    assert composed != decomposed
    assert verify_password(hash_password(composed), decomposed)
    assert verify_password(hash_password(decomposed), composed)


def test_password_is_hashed_in_its_composed_form() -> None:
    assert PasswordHasher().verify(hash_password("man\u0303ana a las ocho"), "ma\u00f1ana a las ocho")


def test_forms_that_only_look_compatible_are_different_passwords() -> None:
    assert not verify_password(hash_password("office at x²"), "office at x2")


@pytest.mark.parametrize(
    "work",
    [
        lambda: hash_password(PASSPHRASE),
        lambda: verify_password(None, PASSPHRASE),
        lambda: verify_password(passwords._DUMMY_HASH, PASSPHRASE),
    ],
    ids=["hash", "verify without a hash", "verify"],
)
def test_hashing_waits_while_as_many_hashes_are_made_as_there_are_processors(work: Callable[[], object]) -> None:
    a_while = 20 * seconds_of(lambda: hash_password(PASSPHRASE))
    thread = threading.Thread(target=work, daemon=True)
    may_end = threading.Event()
    others = [passwords._hashing.submit(may_end.wait, 60) for _ in range(os.cpu_count() or 1)]
    try:
        thread.start()
        thread.join(a_while)
        assert thread.is_alive()
    finally:
        may_end.set()
    thread.join(10)
    assert not thread.is_alive()
    assert all(other.result() for other in others)


def test_many_threads_get_their_turn() -> None:
    password_hash = hash_password(PASSPHRASE)
    tries = [(password_hash, PASSPHRASE), (password_hash, "wrong"), (None, PASSPHRASE), (MALFORMED_HASHES[3], "x")]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda pair: verify_password(*pair), tries * 8))
    assert found == [True, False, False, False] * 8


HASH_IN_MANY_THREADS = """
import re, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from chatapi.auth.passwords import hash_password, verify_password

def resident():
    return int(re.search(r"VmRSS:\\s+([0-9]+) kB", Path("/proc/self/status").read_text())[1]) // 1024

before, threads = resident(), int(sys.argv[1])
with ThreadPoolExecutor(threads) as pool:
    list(pool.map(hash_password, map(str, range(4 * threads))))
    list(pool.map(lambda index: verify_password(None, str(index)), range(4 * threads)))
    print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_hashing_keeps_no_memory_in_each_of_the_requests_threads() -> None:
    processors = os.cpu_count() or 1
    threads = 8 * processors

    done = subprocess.run(
        [sys.executable, "-c", HASH_IN_MANY_THREADS, str(threads)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert int(done.stdout) < 19 * threads / 3, "MiB"


@pytest.mark.parametrize(
    "common",
    [
        "password",
        "PassWord",
        "12345678",
        "1234567890",
        "iloveyou",
        "ILoveYou",
        "qwertyuiop",
        "football1",
        "Password1",
        "p@ssw0rd",
        "sunshine",
        "Princess1",
        "1q2w3e4r",
        "TrustNo1",
        "baseball",
        "Superman1",
        "letmein1",
        "changeme",
        "Admin@123",
        "Welcome1",
        "ｐａｓｓｗｏｒｄ",
        "#1Stunna",
        "contrasen\u0303a",
    ],
)
def test_common_password_is_refused_in_any_case_and_form(common: str) -> None:
    assert fault_of_password(common, NUMBER) == "Must not be one of the most common passwords."


@pytest.mark.parametrize(
    "number",
    [
        "+447700900123",
        "447700900123",
        "00447700900123",
        "07700900123",
        "7700900123",
        "+44 (7700) 900-123",
        "４４７７００９００１２３",
        "٤٤٧٧٠٠٩٠٠١٢٣",
    ],
)
def test_own_number_is_refused_however_it_is_written(number: str) -> None:
    assert fault_of_password(number, NUMBER) == "Must not be the mobile number, or the end of it."


@pytest.mark.parametrize("name", ["ChatAPI!", "chatapichatapi", "chat-api 2026", "1chatapi", "chat_api_chat_api"])
def test_service_name_is_refused(name: str) -> None:
    assert fault_of_password(name, NUMBER) == "Must not be the name of this service."


@pytest.mark.parametrize(
    "good",
    [
        PASSPHRASE,
        "correct horse battery staple",
        "chatapi but with more to it",
        "my password is not password",
        "447700900124",
        "827394615037",
        "kvbxqzjw",
        "🐎🔋📎🧷🐎🔋📎🧷",
        "# Passwords that must not be taken",
    ],
)
def test_other_password_is_taken_whatever_it_is_composed_of(good: str) -> None:
    assert fault_of_password(good, NUMBER) is None


def test_list_is_sorted_folded_unique_and_without_what_the_length_rule_refuses() -> None:
    path = Path(passwords.__file__).with_name("common_passwords.txt")
    lines = [line for line in path.read_text(encoding="utf-8").split("\n")[:-1] if not line.startswith("# ")]
    assert lines == sorted(set(lines))
    assert lines == [passwords._folded(line).strip() for line in lines]
    assert lines == [line.lower() for line in lines]
    assert min(map(len, lines)) == 8
    assert len(lines) > 10_000
    assert passwords._common_passwords() == set(lines)
