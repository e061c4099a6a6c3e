"""What the model is given: which turns, in which order, how many."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from flask import Flask
from sqlalchemy import event, text

from chatapi.catalogue import ModelEntry
from chatapi.chatrooms.endings import Lease
from chatapi.extensions import db, in_transaction
from chatapi.ids import uuid7
from chatapi.replies.context import TURNS_AT_ONCE, build_prompt
from chatapi.replies.gemini.base import GeminiRejected, Prompt
from chatapi.replies.jobs import take_lease
from chatapi.replies.token_counter import token_counter
from tests.support import Account

ENTRY = ModelEntry("flash", "context-test", (), frozenset({"basic", "pro"}), "", 32_000, 700)

_STORE = text("""
    WITH room AS (UPDATE chatrooms SET seq = seq + 1 WHERE id = :room_id RETURNING id, seq)
    INSERT INTO messages (id, room_id, seq, message_type, content, status, reply_to)
    SELECT :id, id, seq, :kind, :content, :status, :reply_to FROM room
""")


class Room:
    """A room whose messages are stored as they come, without anything answering them."""

    def __init__(self, app: Flask, account: Account, **fields: Any) -> None:
        self.app = app
        self.account = account
        self.id = account.open_room(**fields)

    def say(self, content: str) -> UUID:
        return self._store("user", content, "completed", None)

    def answer(self, prompt_id: UUID, content: str, status: str = "completed") -> UUID:
        return self._store("ai", content, status, prompt_id)

    def add_turns(self, turns: Sequence[tuple[str, str]]) -> None:
        for prompt, answer in turns:
            self.answer(self.say(prompt), answer)

    def ask(self, content: str) -> Lease:
        """Send a prompt as clients do; return the lease of its reply."""
        reply_id = UUID(self.account.prompt(self.id, content))
        with self.app.app_context():
            lease = in_transaction(lambda: take_lease(reply_id))
        assert lease is not None
        return lease

    def _store(self, kind: str, content: str, status: str, reply_to: UUID | None) -> UUID:
        message_id = uuid7()
        values = {"id": message_id, "kind": kind, "content": content, "status": status, "reply_to": reply_to}
        with self.app.app_context():
            db.session.execute(_STORE, {"room_id": self.id, **values})
            db.session.commit()
        return message_id


@pytest.fixture
def new_room(app: Flask, account: Account) -> Callable[..., Room]:
    return lambda **fields: Room(app, account, **fields)


@pytest.fixture
def build(app: Flask) -> Callable[..., Prompt]:
    """Return what builds the prompt of a reply that is there."""

    def build(lease: Lease, entry: ModelEntry = ENTRY, **options: float) -> Prompt:
        with app.app_context():
            prompt = build_prompt(lease, entry, **options)
        assert prompt is not None
        return prompt

    return build


def spoken(prompt: Prompt) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in prompt.turns]


def fitting(turns: Sequence[tuple[str, str]], asked: str, instruction: str, budget: int) -> list[tuple[str, str]]:
    """Return what the model must be given, worked out the plain way."""

    def count(content: str) -> int:
        return token_counter.count(ENTRY.model, content)

    budget -= count(asked) + (count(instruction) if instruction else 0)
    given: list[tuple[str, str]] = []
    for prompt, answer in reversed(turns):
        budget -= count(prompt) + count(answer)
        if budget < 0:
            break
        given = [("user", prompt), ("model", answer), *given]
    return [*given, ("user", asked)]


def test_prompt_is_the_entrys_and_the_rooms(new_room: Callable[..., Room], build: Callable[..., Prompt]) -> None:
    room = new_room(system_instruction="be brief")
    room.add_turns([("one", "1"), ("two", "2")])

    prompt = build(room.ask("three"))

    assert (prompt.model, prompt.max_output_tokens, prompt.system_instruction) == ("context-test", 700, "be brief")
    assert spoken(prompt) == [("user", "one"), ("model", "1"), ("user", "two"), ("model", "2"), ("user", "three")]


@pytest.mark.parametrize("seed", range(12))
def test_newest_whole_turns_that_fit_are_given_whatever_their_lengths(
    new_room: Callable[..., Room], build: Callable[..., Prompt], seed: int
) -> None:
    chance = random.Random(seed)  # noqa: S311 - no secret
    token_counter.learn(ENTRY.model, 10_000, chance.randrange(2_000, 50_000))
    instruction = chance.choice(["", "be brief", "長い" * 40])
    longest = chance.choice([5, 60, 2000])
    turns = [
        tuple(f"{number}" + chance.choice("xé字😀") * chance.randrange(longest) for _ in range(2))
        for number in range(chance.choice([0, 3, TURNS_AT_ONCE, TURNS_AT_ONCE + 9, 2 * TURNS_AT_ONCE + 7]))
    ]
    room = new_room(**({"system_instruction": instruction} if instruction else {}))
    room.add_turns(turns)
    lease = room.ask("and now?")
    whole = sum(token_counter.count(ENTRY.model, part) for turn in turns for part in turn)

    for share in (0.0, 0.2, 0.5, 0.97, 1.2):
        entry = replace(ENTRY, context_tokens=round(whole * share) + chance.randrange(600, 700))
        assert spoken(build(lease, entry)) == fitting(turns, "and now?", instruction, entry.context_tokens)


def test_last_turn_is_given_up_when_one_token_is_missing(
    new_room: Callable[..., Room], build: Callable[..., Prompt]
) -> None:
    room = new_room()
    room.add_turns([("x" * 400, "y" * 400)])
    lease = room.ask("z" * 40)
    needed = sum(token_counter.count(ENTRY.model, content) for content in ("x" * 400, "y" * 400, "z" * 40))

    assert len(build(lease, replace(ENTRY, context_tokens=needed)).turns) == 3
    assert len(build(lease, replace(ENTRY, context_tokens=needed - 1)).turns) == 1


def test_less_is_given_by_a_budget_factor(new_room: Callable[..., Room], build: Callable[..., Prompt]) -> None:
    room = new_room()
    room.add_turns([("x" * 400, "y" * 400)] * 10)
    lease = room.ask("z")
    turn = 2 * token_counter.count(ENTRY.model, "x" * 400)
    entry = replace(ENTRY, context_tokens=10 * turn + token_counter.count(ENTRY.model, "z"))

    assert len(build(lease, entry).turns) == 21
    assert len(build(lease, entry, budget_factor=0.55).turns) == 11


@pytest.mark.parametrize("fields", [{}, {"system_instruction": "i" * 2000}])
def test_prompt_is_refused_when_it_does_not_fit_by_itself(
    new_room: Callable[..., Room], build: Callable[..., Prompt], fields: dict[str, str]
) -> None:
    lease = new_room(**fields).ask("z" * 2000)
    contents = ["z" * 2000, *fields.values()]
    needed = sum(token_counter.count(ENTRY.model, content) for content in contents)

    assert len(build(lease, replace(ENTRY, context_tokens=needed)).turns) == 1
    for entry, factor in (
        (replace(ENTRY, context_tokens=needed - 1), 1.0),
        (replace(ENTRY, context_tokens=needed), 0.9),
    ):
        with pytest.raises(GeminiRejected) as caught:
            build(lease, entry, budget_factor=factor)
        assert (caught.value.reason, caught.value.status) == ("context_too_long", None)


def test_newest_completed_reply_of_each_prompt_is_given(
    new_room: Callable[..., Room], build: Callable[..., Prompt]
) -> None:
    room = new_room()
    first = room.say("first")
    room.answer(first, "old")
    second = room.say("second")
    room.answer(second, "2")
    room.answer(first, "new")
    for status in ("failed", "stopped"):
        room.answer(first, status, status)
    room.answer(room.say("unanswered"), "cut", "stopped")
    room.say("without any reply")

    prompt = build(room.ask("third"))

    assert spoken(prompt) == [
        ("user", "first"), ("model", "new"), ("user", "second"), ("model", "2"), ("user", "third"),
    ]  # fmt: skip


@pytest.mark.parametrize("blank", ["", " ", "\n\t"])
def test_turn_is_left_out_when_nothing_was_answered(
    new_room: Callable[..., Room], build: Callable[..., Prompt], blank: str
) -> None:
    room = new_room()
    room.add_turns([("one", "1"), ("two", blank), ("three", "3")])

    prompt = build(room.ask("four"))

    assert [content for _role, content in spoken(prompt)] == ["one", "1", "three", "3", "four"]


def test_reply_made_again_sees_what_preceded_its_prompt_only(
    app: Flask, new_room: Callable[..., Room], build: Callable[..., Prompt]
) -> None:
    room = new_room()
    room.add_turns([("one", "1")])
    second = room.say("two")
    room.answer(second, "2")
    room.add_turns([("three", "3")])
    again = room.answer(second, "", "pending")
    lease = replace(room.ask("four"), message_id=again)

    assert spoken(build(lease)) == [("user", "one"), ("model", "1"), ("user", "two")]


def test_nothing_is_given_of_another_room_or_to_another_owner(
    app: Flask, new_room: Callable[..., Room], build: Callable[..., Prompt], sign_in: Callable[..., Account]
) -> None:
    other, room = new_room(), new_room()
    other.add_turns([("elsewhere", "secret")])
    lease = room.ask("here")

    assert spoken(build(replace(lease, room_id=UUID(other.id)))) == [("user", "here")]
    with app.app_context():
        assert build_prompt(replace(lease, user_id=UUID(sign_in().id)), ENTRY) is None


def test_nothing_is_asked_when_the_reply_was_deleted(
    app: Flask, account: Account, new_room: Callable[..., Room]
) -> None:
    room = new_room()
    lease = room.ask("here")
    account.call("DELETE", f"/chatroom/{room.id}")

    with app.app_context():
        assert build_prompt(lease, ENTRY) is None


def test_no_more_is_read_than_can_fit(app: Flask, new_room: Callable[..., Room], build: Callable[..., Prompt]) -> None:
    room = new_room()
    room.add_turns([("x" * 400, "y" * 4000)] * (2 * TURNS_AT_ONCE + 5))
    lease = room.ask("z")
    turn = sum(token_counter.count(ENTRY.model, content) for content in ("x" * 400, "y" * 4000))
    read: list[int] = []

    def note(_connection: Any, cursor: Any, *_rest: Any) -> None:
        read.append(cursor.rowcount)

    with app.app_context():
        engine = db.engine
    event.listen(engine, "after_cursor_execute", note)
    try:
        few = build(lease, replace(ENTRY, context_tokens=int(3.5 * turn)))
        rows_for_few = sum(read) - 1
        more = build(lease, replace(ENTRY, context_tokens=int(1.5 * TURNS_AT_ONCE * turn)))
    finally:
        event.remove(engine, "after_cursor_execute", note)

    assert (len(few.turns), rows_for_few) == (7, 3)
    assert len(more.turns) > TURNS_AT_ONCE * 2
    assert sum(read) - 2 - rows_for_few <= 1.5 * TURNS_AT_ONCE + 1
