"""Many requests at once, at two web processes: exactly what may be accepted is, and nothing is torn."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.support import Account, race, wait_for
from tests.system.support import System, chance, finish, finished, send, wait_all_ended


def use_up_all_but(system: System, account: Account, left: int) -> None:
    system.rows(
        "INSERT INTO daily_usage (number_hash, day, used) SELECT number_hash, (now() AT TIME ZONE 'UTC')::date, %s "
        "FROM users WHERE id = %s RETURNING used",
        1000 - left,
        account.id,
    )


def messages_of(system: System, account: Account) -> list[Any]:
    return system.rows(
        "SELECT messages.* FROM messages JOIN chatrooms ON chatrooms.id = room_id WHERE chatrooms.user_id = %s",
        account.id,
    )


def test_exactly_the_prompts_left_are_accepted_when_two_hundred_arrive_at_once(
    system: System, someone: Account
) -> None:
    room_id = someone.open_room(title="race")
    use_up_all_but(system, someone, 5)

    answers = race(200, lambda index: someone.send(room_id, f"prompt {index}"))

    assert Counter(answer.status_code for answer in answers) == {201: 5, 429: 195}
    refused = [answer for answer in answers if answer.status_code == 429]
    assert {answer.get_json()["error"] for answer in refused} == {"daily_limit_reached"}
    assert all(int(answer.headers["Retry-After"]) > 0 for answer in refused)
    assert someone.daily_usage() == 1000
    assert len(messages_of(system, someone)) == 10
    wait_all_ended(system, 30)


def test_one_prompt_is_accepted_when_its_key_arrives_two_hundred_times_at_once(
    system: System, someone: Account
) -> None:
    room_id = someone.open_room(title="race")

    answers = race(200, lambda _: send(someone, room_id, "only once", Idempotency_Key="the-key"))

    assert {answer.status_code for answer in answers} <= {201, 409}
    accepted = [answer for answer in answers if answer.status_code == 201]
    ids = {(each.get_json()["user_message"]["id"], each.get_json()["ai_message"]["id"]) for each in accepted}
    assert len(ids) == 1
    assert sum("Idempotent-Replayed" not in answer.headers for answer in accepted) == 1
    refused = [answer for answer in answers if answer.status_code == 409]
    assert {answer.get_json()["error"] for answer in refused} <= {"idempotency_in_progress"}
    assert all(int(answer.headers["Retry-After"]) > 0 for answer in refused)
    ((prompt_id, reply_id),) = ids
    assert finish(someone, room_id, reply_id)["reply_to"] == prompt_id
    assert len(messages_of(system, someone)) == 2
    assert someone.daily_usage() == 1
    assert len(system.asked("only once")) == 1


def test_one_reply_is_made_again_when_its_key_arrives_fifty_times_at_once(system: System, someone: Account) -> None:
    room_id = someone.open_room(title="race")
    first = someone.prompt(room_id, "once more")
    finish(someone, room_id, first)
    path = f"/chatroom/{room_id}/message/{first}/regenerate"
    headers = {**someone.headers, "Idempotency-Key": "again"}

    answers = race(50, lambda _: someone.client.post(path, headers=headers))

    assert {answer.status_code for answer in answers} <= {201, 409}
    ids = {answer.get_json()["ai_message"]["id"] for answer in answers if answer.status_code == 201}
    assert len(ids) == 1
    finish(someone, room_id, ids.pop())
    assert len(messages_of(system, someone)) == 3
    assert someone.daily_usage() == 2


def test_same_key_of_two_users_is_two_prompts_when_both_arrive_at_once(
    system: System, sign_in: Callable[..., Account]
) -> None:
    people = [sign_in(via=system.client) for _ in range(2)]
    rooms = [each.open_room(title="race") for each in people]

    answers = race(40, lambda index: send(people[index % 2], rooms[index % 2], "hello", Idempotency_Key="shared"))

    for number, person in enumerate(people):
        accepted = [answer for answer in answers[number::2] if answer.status_code == 201]
        assert len({answer.get_json()["ai_message"]["id"] for answer in accepted}) == 1
        assert person.daily_usage() == 1


def test_same_key_with_another_body_is_refused(system: System, someone: Account) -> None:
    room_id = someone.open_room(title="race")
    first = send(someone, room_id, "one thing", Idempotency_Key="taken")

    other = send(someone, room_id, "another thing", Idempotency_Key="taken")

    assert first.status_code == 201
    assert (other.status_code, other.get_json()["error"]) == (422, "idempotency_mismatch")
    assert someone.daily_usage() == 1


def test_replies_come_in_order_each_having_seen_the_last_when_twenty_prompts_arrive_at_once(
    system: System, someone: Account
) -> None:
    room_id = someone.open_room(title="race")

    answers = race(20, lambda index: someone.send(room_id, f"prompt number {index}."))

    assert [answer.status_code for answer in answers] == [201] * 20
    reply_ids = [answer.get_json()["ai_message"]["id"] for answer in answers]
    wait_for(lambda: finished(someone, room_id, reply_ids))
    rows = sorted(messages_of(system, someone), key=lambda row: row.seq)
    assert [row.message_type for row in rows] == ["user", "ai"] * 20
    for index, (prompt, reply) in enumerate(zip(rows[::2], rows[1::2], strict=True)):
        assert reply.reply_to == prompt.id
        assert f'You said: "{prompt.content}"' in reply.content
        if index:
            before = rows[2 * index - 1].content
            assert f"Earlier turns I was given ({2 * index})" in reply.content
            assert f'model: "{before[:79]}' in reply.content
    asked = [each.body["contents"][-1]["parts"][0]["text"] for each in system.asked("prompt number")]
    assert asked == [row.content for row in rows[::2]]
    assert someone.daily_usage() == 20


@pytest.mark.slow
def test_nothing_fails_when_rooms_replies_stops_and_deletions_race(
    system: System, sign_in: Callable[..., Account]
) -> None:
    people = [sign_in(via=system.client) for _ in range(2)]
    rooms = {person.id: [person.open_room() for _ in range(2)] for person in people}
    until = time.monotonic() + 15

    def act(index: int) -> Counter[tuple[str, int]]:
        choose, seen, person = chance(index), Counter[tuple[str, int]](), people[index % 2]
        while time.monotonic() < until:
            what = choose.choice(["send"] * 6 + ["stop", "regenerate"] * 4 + ["list", "rename", "delete"])
            seen[what, act_once(person, rooms[person.id], what, choose)] += 1
        return seen

    with ThreadPoolExecutor(24) as pool:
        seen = sum(pool.map(act, range(24)), Counter[tuple[str, int]]())

    assert {status for _, status in seen} <= {200, 201, 404, 409, 429}, seen
    for what, status in [("send", 201), ("stop", 200), ("regenerate", 201), ("delete", 200)]:
        assert seen[what, status] > 3, seen
    wait_all_ended(system, 60)
    in_database = system.rows("SELECT count(*) AS found FROM messages WHERE room_id NOT IN (SELECT id FROM chatrooms)")
    assert in_database[0].found == 0
    for name in ("web", "worker", "sweeper"):
        assert "deadlock" not in system.log_of(name).lower()


def act_once(person: Account, rooms: list[str], what: str, choose: random.Random) -> int:
    """Do one thing in one of the rooms, which others are at as well; return the status."""
    room_id = choose.choice(rooms)
    path = f"/chatroom/{room_id}"
    if what == "send":
        return person.send(room_id, choose.choice(["hi", "[[words=60 chunk_ms=20]]", "[[fault=400]]"])).status_code
    if what == "list":
        return person.call("GET", "/chatroom").status_code
    if what == "rename":
        return person.call("PUT", path, {"title": "renamed"}).status_code
    if what == "delete":
        rooms[rooms.index(room_id) if room_id in rooms else 0] = person.open_room()
        return person.call("DELETE", path).status_code
    room = person.call("GET", f"{path}?limit=6")
    replies = [each for each in room.get_json().get("chatroom", {}).get("messages", []) if each["reply_to"]]
    if not replies:
        return room.status_code
    return person.call("POST", f"{path}/message/{choose.choice(replies)['id']}/{what}").status_code
