"""Many at one secret, on the running system: exactly one wins, with Valkey up and with Valkey dead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.auth.support import PASSWORD, bearer
from tests.support import Account, race
from tests.system.support import HttpAnswer, System

NewNumber = Callable[[], str]


@pytest.fixture(params=["valkey up", "valkey dead"])
def system_either_way(request: pytest.FixtureRequest, system: System) -> System:
    """The system, once whole and once without Valkey: `system` starts it again for the next test."""
    if request.param == "valkey dead":
        system.services.valkey_process.kill()
    return system


def send_otp(system: System, number: str, purpose: str = "login") -> HttpAnswer:
    return system.client.post("/auth/send-otp", json={"mobile_number": number, "purpose": purpose})


def verify(system: System, number: str, otp: str) -> HttpAnswer:
    return system.client.post("/auth/verify-otp", json={"mobile_number": number, "otp": otp})


def wrong(otp: str, index: int) -> str:
    return f"{(int(otp) + 1 + index) % 1_000_000:06d}"


def sessions_of(system: System, number: str) -> list[Any]:
    return system.rows(
        "SELECT sessions.id FROM sessions JOIN users ON users.id = user_id WHERE mobile_number = %s", number
    )


def test_at_most_five_codes_are_compared_when_two_hundred_are_guessed_at_once(
    system_either_way: System, new_number: NewNumber
) -> None:
    system, number = system_either_way, new_number()
    otp = send_otp(system, number).get_json()["otp"]

    answers = race(200, lambda index: verify(system, number, wrong(otp, index)))

    assert {(answer.status_code, answer.get_json()["error"]) for answer in answers} == {(400, "invalid_otp")}
    assert [row.attempts for row in newest_code(system)] == [5]
    assert verify(system, number, otp).get_json()["error"] == "invalid_otp"
    assert [row.attempts for row in newest_code(system)] == [5]
    assert sessions_of(system, number) == []


def test_exactly_one_session_begins_when_the_right_code_is_sent_two_hundred_times_at_once(
    system_either_way: System, new_number: NewNumber
) -> None:
    system, number = system_either_way, new_number()
    otp = send_otp(system, number).get_json()["otp"]

    statuses = race(200, lambda _: verify(system, number, otp).status_code)

    assert sorted(statuses) == [200] + [400] * 199
    assert len(sessions_of(system, number)) == 1


def test_right_code_among_guesses_wins_at_most_once(system: System, new_number: NewNumber) -> None:
    number = new_number()
    otp = send_otp(system, number).get_json()["otp"]

    statuses = race(100, lambda index: verify(system, number, otp if index % 2 else wrong(otp, index)).status_code)

    assert statuses.count(200) == len(sessions_of(system, number)) <= 1
    assert newest_code(system)[0].attempts <= 5


def test_one_code_is_made_when_two_hundred_are_asked_for_at_once(
    system_either_way: System, new_number: NewNumber
) -> None:
    system, number = system_either_way, new_number()

    statuses = race(200, lambda _: send_otp(system, number).status_code)

    assert sorted(statuses) == [200] + [429] * 199


def test_ten_passwords_are_looked_at_when_a_hundred_are_guessed_at_once(
    system_either_way: System, sign_in: Callable[..., Account]
) -> None:
    system = system_either_way
    someone = sign_in(via=system.client)
    assert someone.call("POST", "/auth/change-password", {"new_password": PASSWORD}).status_code == 200

    def guess(index: int) -> int:
        body = {"mobile_number": someone.mobile_number, "password": f"not the password {index}"}
        return system.client.post("/auth/login", json=body).status_code

    assert sorted(race(100, guess)) == [401] * 10 + [429] * 90


def test_one_successor_is_made_when_a_refresh_token_is_used_fifty_times_at_once(
    system_either_way: System, new_number: NewNumber
) -> None:
    system, number = system_either_way, new_number()
    otp = send_otp(system, number).get_json()["otp"]
    token = verify(system, number, otp).get_json()["refresh_token"]

    answers = race(50, lambda _: system.client.post("/auth/refresh", json={"refresh_token": token}))

    assert [answer.status_code for answer in answers] == [200] * 50
    assert len({answer.get_json()["refresh_token"] for answer in answers}) == 1
    (session,) = sessions_of(system, number)
    stored = system.rows("SELECT used_at FROM refresh_tokens WHERE family_id = %s", str(session.id))
    assert sorted(row.used_at is None for row in stored) == [False, True]


def test_one_password_wins_when_sixteen_set_the_first_at_once(system: System, sign_in: Callable[..., Account]) -> None:
    someone = sign_in(via=system.client)

    def set_password(index: int) -> int:
        return someone.call("POST", "/auth/change-password", {"new_password": f"{PASSWORD} {index}"}).status_code

    statuses = race(16, set_password)

    assert statuses.count(200) == 1
    assert set(statuses) <= {200, 400, 422}  # Too late, and found so before or after hashing.
    winner = statuses.index(200)
    body = {"mobile_number": someone.mobile_number, "password": f"{PASSWORD} {winner}"}
    assert system.client.post("/auth/login", json=body).status_code == 200


def test_no_token_is_good_after_signing_out_everywhere_while_others_refresh(
    system: System, new_number: NewNumber
) -> None:
    number = new_number()
    session = verify(system, number, send_otp(system, number).get_json()["otp"]).get_json()

    def act(index: int) -> HttpAnswer:
        if index == 8:
            return system.client.post("/auth/logout", json={"all": True}, headers=bearer(session["token"]))
        return system.client.post("/auth/refresh", json={"refresh_token": session["refresh_token"]})

    answers = race(16, act)

    assert answers.pop(8).status_code == 204
    assert {answer.status_code for answer in answers} <= {200, 401}
    for answer in answers:
        if answer.status_code == 200:
            headers = bearer(answer.get_json()["token"])
            assert system.client.get("/user/me", headers=headers).status_code == 401
    assert sessions_of(system, number) == []


def newest_code(system: System) -> list[Any]:
    return system.rows("SELECT attempts FROM otp_codes ORDER BY created_at DESC LIMIT 1")
