"""Known and unknown numbers take the same time: what differs is within what known ones differ among themselves."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text

from chatapi.auth.passwords import hash_password
from chatapi.extensions import db
from chatapi.ids import uuid7
from chatapi.keys import hash_number
from tests.auth.support import PASSWORD

NewNumber = Callable[[], str]

ROUNDS = 200

REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "send-otp": ("/auth/send-otp", {}),
    "forgot-password": ("/auth/forgot-password", {}),
    "verify-otp, wrong code": ("/auth/verify-otp", {"otp": "000000"}),
    "login, wrong password": ("/auth/login", {"password": "not the password"}),
    "reset-password, wrong code": ("/auth/reset-password", {"otp": "000000", "new_password": "another good one"}),
}


def register(app: Flask, numbers: list[str]) -> None:
    """Make an account with a password for each number."""
    with app.app_context():
        password_hash = hash_password(PASSWORD)
        for number in numbers:
            db.session.execute(
                text(
                    "INSERT INTO users (id, mobile_number, number_hash, password_hash, verified_at) "
                    "VALUES (:id, :number, :number_hash, :password_hash, now())"
                ),
                {
                    "id": uuid7(),
                    "number": number,
                    "number_hash": hash_number(number),
                    "password_hash": password_hash,
                },
            )
        db.session.commit()


@pytest.mark.slow
@pytest.mark.usefixtures("account")  # An address that somebody signed in from is not braked by so many failures.
@pytest.mark.parametrize("name", REQUESTS)
def test_known_and_unknown_numbers_take_the_same_time(
    app: Flask, client: FlaskClient, new_number: NewNumber, name: str
) -> None:
    path, fields = REQUESTS[name]
    known, known_too, unknown = ([new_number() for _ in range(ROUNDS)] for _ in range(3))
    register(app, known + known_too)
    statuses = set()

    def seconds(number: str) -> float:
        began = time.perf_counter()
        statuses.add(client.post(path, json={"mobile_number": number, **fields}).status_code)
        return time.perf_counter() - began

    if "wrong code" in name:
        purpose = "password_reset" if "reset" in name else "login"
        for number in known + known_too + unknown:
            client.post("/auth/send-otp", json={"mobile_number": number, "purpose": purpose})
    for number in (new_number(), new_number()):
        seconds(number)

    among_known, against_unknown = [], []
    for index in range(ROUNDS):
        # The order changes, so that none of the three is always the one after a slow one.
        order = [("known", known), ("known too", known_too), ("unknown", unknown)]
        order = order[index % 3 :] + order[: index % 3]
        took = {who: seconds(numbers[index]) for who, numbers in order}
        among_known.append(took["known too"] - took["known"])
        against_unknown.append(took["unknown"] - took["known"])

    low, _median, high = statistics.quantiles(among_known, n=4)
    difference = statistics.median(against_unknown)
    assert len(statuses) == 1, statuses
    assert low <= difference <= high, f"{difference * 1000:.3f} ms, known among themselves {low:.6f} to {high:.6f} s"
