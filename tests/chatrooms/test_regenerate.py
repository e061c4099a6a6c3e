"""Another reply to the same prompt: made from what preceded it, counted, and one at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask

from chatapi.dev.gemini_standin import Fault, GeminiStandin
from tests.chatrooms.support import beside, ids, message_count, regenerate, send, stop
from tests.support import Account, race


def turns(gemini: GeminiStandin) -> list[tuple[str, str]]:
    """What the model was given last."""
    return [(turn["role"], turn["parts"][0]["text"]) for turn in gemini.requests[-1].body["contents"]]


@pytest.fixture
def answered(account: Account, gemini: GeminiStandin, attempt: Callable[..., None]) -> Callable[..., tuple[str, str]]:
    """Return what sends a prompt and has it answered; it returns the ids of prompt and reply."""

    def answered(room_id: str, content: str) -> tuple[str, str]:
        prompt_id, reply_id = ids(send(account, room_id, content))
        attempt(reply_id)
        return prompt_id, reply_id

    return answered


def test_new_reply_to_the_same_prompt_is_pending_and_counts(
    account: Account, answered: Callable[..., tuple[str, str]], sql: Callable[..., Any]
) -> None:
    room_id = account.open_room()
    prompt_id, reply_id = answered(room_id, "hello")
    before = account.read(room_id, reply_id)

    answer = regenerate(account, room_id, reply_id)

    assert answer.status_code == 201
    reply = answer.get_json()["ai_message"]
    assert set(answer.get_json()) == {"message", "ai_message"}
    assert (reply["status"], reply["content"], reply["reply_to"]) == ("pending", "", prompt_id)
    assert reply["id"] != reply_id
    assert answer.headers["Location"] == f"/chatroom/{room_id}/message/{reply['id']}"
    assert account.read(room_id, reply["id"]) == reply
    assert account.read(room_id, reply_id) == before
    assert message_count(account, room_id) == 3
    assert account.daily_usage() == 2
    assert sql("SELECT message_id FROM reply_jobs WHERE room_id = :id", id=room_id) is not None


def test_new_reply_is_made_from_what_preceded_its_prompt(
    account: Account,
    gemini: GeminiStandin,
    answered: Callable[..., tuple[str, str]],
    attempt: Callable[..., None],
) -> None:
    room_id = account.open_room()
    _, one = answered(room_id, "one")
    _, two = answered(room_id, "two")
    answered(room_id, "three")

    attempt(*ids(regenerate(account, room_id, two)))

    assert turns(gemini) == [("user", "one"), ("model", account.read(room_id, one)["content"]), ("user", "two")]


def test_later_prompts_see_the_newest_completed_reply(
    account: Account,
    gemini: GeminiStandin,
    answered: Callable[..., tuple[str, str]],
    attempt: Callable[..., None],
) -> None:
    room_id = account.open_room()
    _, first = answered(room_id, "one")
    answered(room_id, "two")
    gemini.add_fault(Fault(words=5, match="one", times=1))
    (second,) = ids(regenerate(account, room_id, first))
    attempt(second)
    (third,) = ids(regenerate(account, room_id, second))
    assert stop(account, room_id, third).get_json()["message"]["status"] == "stopped"

    answered(room_id, "three")

    replies = [account.read(room_id, reply_id)["content"] for reply_id in (first, second)]
    assert replies[0] != replies[1]
    assert turns(gemini)[:3] == [("user", "one"), ("model", replies[1]), ("user", "two")]
    assert turns(gemini)[-1] == ("user", "three")


@pytest.mark.parametrize("ending", ["failed", "stopped"])
def test_reply_that_did_not_complete_can_be_made_again(
    account: Account, gemini: GeminiStandin, attempt: Callable[..., None], ending: str
) -> None:
    room_id = account.open_room()
    reply_id = account.prompt(room_id, "hello")
    if ending == "failed":
        gemini.add_fault(Fault("400", times=1))
        attempt(reply_id)
    else:
        stop(account, room_id, reply_id)
    assert account.read(room_id, reply_id)["status"] == ending

    (again,) = ids(regenerate(account, room_id, reply_id))
    attempt(again)

    assert account.read(room_id, again)["status"] == "completed"
    assert account.daily_usage() == 1


def test_prompt_is_not_a_reply(account: Account, answered: Callable[..., tuple[str, str]]) -> None:
    room_id = account.open_room()
    prompt_id, _ = answered(room_id, "hello")

    answer = regenerate(account, room_id, prompt_id)

    assert (answer.status_code, answer.get_json()["error"]) == (409, "not_a_reply")
    assert account.daily_usage() == 1


def test_unfinished_reply_is_not_made_again(
    account: Account, gemini: GeminiStandin, attempt: Callable[..., None]
) -> None:
    room_id = account.open_room()
    gemini.add_fault(Fault("503", times=1))
    reply_id = account.prompt(room_id, "hello")

    answers = [regenerate(account, room_id, reply_id)]
    attempt(reply_id)
    assert account.read(room_id, reply_id)["status"] == "processing"
    answers.append(regenerate(account, room_id, reply_id))

    assert [(answer.status_code, answer.get_json()["error"]) for answer in answers] == [(409, "not_finished")] * 2
    assert message_count(account, room_id) == 2
    assert account.daily_usage() == 1


def test_finished_reply_is_not_made_again_while_another_to_its_prompt_is_unfinished(
    account: Account, answered: Callable[..., tuple[str, str]]
) -> None:
    room_id = account.open_room()
    _, reply_id = answered(room_id, "hello")
    regenerate(account, room_id, reply_id)

    answer = regenerate(account, room_id, reply_id)

    assert (answer.status_code, answer.get_json()["error"]) == (409, "not_finished")
    assert message_count(account, room_id) == 3
    assert account.daily_usage() == 2


def test_reply_can_be_made_again_while_another_prompt_waits(
    account: Account, answered: Callable[..., tuple[str, str]], attempt: Callable[..., None]
) -> None:
    room_id = account.open_room()
    _, reply_id = answered(room_id, "one")
    waiting = account.prompt(room_id, "two")

    (again,) = ids(regenerate(account, room_id, reply_id))

    attempt(again)  # Replies of a room come in order.
    assert account.read(room_id, again)["status"] == "pending"
    attempt(waiting)
    attempt(again)
    assert account.read(room_id, again)["status"] == "completed"


def test_one_is_accepted_when_twenty_are_asked_for_at_once(
    app: Flask, pro_account: Account, answered: Callable[..., tuple[str, str]]
) -> None:
    room_id = pro_account.open_room()
    _, reply_id = answered(room_id, "hello")

    answers = race(20, lambda _: regenerate(beside(app, pro_account), room_id, reply_id))

    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 19
    assert {a.get_json()["error"] for a in answers if a.status_code == 409} == {"not_finished"}
    assert message_count(pro_account, room_id) == 3


def test_nothing_is_stored_over_the_daily_limit(
    account: Account, answered: Callable[..., tuple[str, str]], sql: Callable[..., Any]
) -> None:
    room_id = account.open_room()
    _, reply_id = answered(room_id, "hello")
    for _ in range(4):
        account.prompt(room_id, "more")

    answer = regenerate(account, room_id, reply_id, Idempotency_Key="one")

    assert (answer.status_code, answer.get_json()["error"]) == (429, "daily_limit_reached")
    assert int(answer.headers["Retry-After"]) > 0
    assert message_count(account, room_id) == 10
    assert account.daily_usage() == 5
    assert sql("SELECT count(*) AS n FROM reply_jobs WHERE room_id = :id", id=room_id).n == 4


def test_failed_regeneration_is_given_back(
    account: Account,
    gemini: GeminiStandin,
    answered: Callable[..., tuple[str, str]],
    attempt: Callable[..., None],
) -> None:
    room_id = account.open_room()
    _, reply_id = answered(room_id, "hello")
    gemini.add_fault(Fault("400", times=1))

    attempt(*ids(regenerate(account, room_id, reply_id)))

    assert account.daily_usage() == 1
    assert account.read(room_id, reply_id)["status"] == "completed"


def test_reply_of_somebody_else_or_of_another_room_is_not_found(
    account: Account, sign_in: Callable[..., Account], answered: Callable[..., tuple[str, str]]
) -> None:
    room_id, other_room, other = account.open_room(), account.open_room(), sign_in()
    _, reply_id = answered(room_id, "hello")

    answers = [
        regenerate(other, room_id, reply_id),
        regenerate(other, other.open_room(), reply_id),
        regenerate(account, other_room, reply_id),
        regenerate(account, room_id, "nonsense"),
    ]

    assert [answer.status_code for answer in answers] == [404] * 4
    assert message_count(account, room_id) == 2
    assert account.daily_usage() == 1
    assert other.daily_usage() == 0
