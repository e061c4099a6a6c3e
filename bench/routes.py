"""Requests a second of the routes that are asked for most, over those of a route that does nothing."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from bench.figures import Figure, Target
from bench.growth import add_messages
from bench.load import Asked, wrk
from bench.rig import Person, Rig
from bench.sql_alone import accepts_by_sql

PEOPLE = 40
MESSAGES = 50

TARGETS = {
    "cached room list ÷ bare route": Target("at least", 0.35, 0.50),
    "accepted prompt ÷ bare route": Target("at least", 0.13, 0.18),
    "room with 50 messages ÷ bare route": Target("at least", 0.20, 0.30),
}


def measure(rig: Rig, rounds: int, seconds: float) -> Iterator[Figure]:
    """Ask for each in turn with the yardstick before and after it, and divide by the mean of those two."""
    people = rig.people(PEOPLE)
    reader = rig.people(1)[0]
    add_messages(rig, reader.rooms[:1], MESSAGES)
    asked = {
        "cached room list": [Asked("/chatroom", reader.token)],
        "accepted prompt": _prompts(people),
        "room with 50 messages": [Asked(f"/chatroom/{reader.rooms[0]}", reader.token)],
    }
    ratios: dict[str, list[float]] = {f"{name} ÷ bare route": [] for name in asked}
    rates: dict[str, list[float]] = {name: [] for name in ("bare route", *asked, "accepting by SQL alone")}
    with rig.running("web", "bare"):
        for each in ("accepted prompt", "cached room list", "room with 50 messages"):
            wrk(rig.port, asked[each], 1, rig.folder)
        for _ in range(rounds):
            before = wrk(rig.bare_port, [Asked("/")], seconds, rig.folder).rate
            for name, requests in asked.items():
                rate = wrk(rig.port, requests, seconds, rig.folder).rate
                after = wrk(rig.bare_port, [Asked("/")], seconds, rig.folder).rate
                rates[name].append(rate)
                rates["bare route"].append(statistics.mean([before, after]))
                ratios[f"{name} ÷ bare route"].append(rate / rates["bare route"][-1])
                before = after
            _forget_prompts_of(rig, people)
            rates["accepting by SQL alone"].append(accepts_by_sql(rig, people, seconds))
            _forget_prompts_of(rig, people)
    for name, values in ratios.items():
        yield Figure(name, values, target=TARGETS[name])
    pairs = zip(rates["accepted prompt"], rates["accepting by SQL alone"], strict=True)
    yield Figure("accepted prompt ÷ its SQL alone", [ours / alone for ours, alone in pairs])
    for name, values in rates.items():
        yield Figure(name, values, "1/s")


def _prompts(people: Sequence[Person]) -> list[Asked]:
    """Return a prompt of each person in each room, of another person each time."""
    return [
        Asked(f"/chatroom/{person.rooms[turn]}/message", person.token, {"content": "What is the capital of France?"})
        for turn in range(len(people[0].rooms))
        for person in people
    ]


def _forget_prompts_of(rig: Rig, people: Sequence[Person]) -> None:
    """Delete what they sent, so that each round begins alike."""
    rooms = [room for person in people for room in person.rooms]
    rig.sql(
        """
        DELETE FROM messages WHERE room_id = ANY(%(rooms)s::uuid[]);
        DELETE FROM reply_jobs;
        UPDATE chatrooms SET seq = 0, message_count = 0 WHERE id = ANY(%(rooms)s::uuid[])
        """,
        {"rooms": rooms},
    )
    with rig.redis() as server:
        for key in server.scan_iter("{dramatiq}*"):
            server.delete(key)
    rig.tidy()
