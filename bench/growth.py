"""How much longer each route takes when there is more: messages in the room, rooms of the user, messages in all.

Exports and erasing an account are left out: they are about everything.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from bench.client import Client
from bench.figures import Figure, Target, percentile
from bench.rig import Person, Rig

IN_A_ROOM = (10, 1_000, 100_000)
ROOMS_OF_A_USER = (10, 100, 1_000, 10_000)
IN_ALL = (1_000, 100_000, 1_000_000)
LIMIT = Target("at most", 1.3, 1.1)

SCRAPER = secrets.token_urlsafe()
WARM = 3
"""The first requests fill caches, and are not counted."""

DELETIONS = 5

WORDS = ("amber", "basalt", "cedar", "delta", "ember", "fjord", "garnet", "harbor", "indigo", "juniper")


@dataclass
class Place:
    """Whose requests are timed, where, and about what."""

    client: Client
    person: Person
    room: str
    prompt: str
    reply: str

    def call(self, method: str, path: str, body: Any = None) -> tuple[float, Any]:
        """Return the milliseconds that a request took, and its answer."""
        return self.client.call(method, path, self.person.token, body)


Call = Callable[[Place], float]


def _simple(method: str, path: str, body: Any = None) -> Call:
    def call(place: Place) -> float:
        filled = path.format(room=place.room, prompt=place.prompt, reply=place.reply)
        return place.call(method, filled, body)[0]

    return call


def _list_anew(place: Place) -> float:
    place.call("PATCH", f"/chatroom/{place.room}", {"description": "changed"})
    return place.call("GET", "/chatroom?limit=10")[0]


def _next_page(place: Place) -> float:
    cursor = place.call("GET", "/chatroom?limit=5")[1]["next_cursor"]
    return place.call("GET", f"/chatroom?limit=5&cursor={cursor}")[0]


def _delete_empty_room(place: Place) -> float:
    room = place.call("POST", "/chatroom", {"title": "Soon gone"})[1]["chatroom"]["id"]
    return place.call("DELETE", f"/chatroom/{room}")[0]


def _stop(place: Place) -> float:
    path = f"/chatroom/{place.room}/message"
    reply = place.call("POST", path, {"content": "Say nothing"})[1]["ai_message"]["id"]
    return place.call("POST", f"{path}/{reply}/stop")[0]


def _regenerate(place: Place) -> float:
    path = f"/chatroom/{place.room}/message/{place.reply}/regenerate"
    took, answer = place.call("POST", path)
    place.call("POST", f"/chatroom/{place.room}/message/{answer['ai_message']['id']}/stop")
    return took


def _send_otp(place: Place) -> float:
    number = f"+1555{secrets.randbelow(10**9):09d}"  # Another each time: there are bounds for each.
    return place.client.call("POST", "/auth/send-otp", None, {"mobile_number": number})[0]


def _metrics(place: Place) -> float:
    return place.client.call("GET", "/metrics", SCRAPER)[0]


CALLS: Mapping[str, Call] = {
    "GET /chatroom, cached": _simple("GET", "/chatroom?limit=10"),
    "GET /chatroom, anew": _list_anew,
    "GET /chatroom, next page": _next_page,
    "GET /chatroom?q=, rare": _simple("GET", "/chatroom?q=zirconium"),
    "GET /chatroom?q=, common": _simple("GET", "/chatroom?q=basalt"),
    "POST /chatroom": _simple("POST", "/chatroom", {"title": "Another"}),
    "PATCH /chatroom/{id}": _simple("PATCH", "/chatroom/{room}", {"description": "changed again"}),
    "DELETE /chatroom/{id}, empty": _delete_empty_room,
    "GET /chatroom/{id}": _simple("GET", "/chatroom/{room}?limit=10"),
    "GET /chatroom/{id}?before=": _simple("GET", "/chatroom/{room}?limit=5&before={prompt}"),
    "POST …/message": _simple("POST", "/chatroom/{room}/message", {"content": "What is the capital of France?"}),
    "GET …/message/{id}": _simple("GET", "/chatroom/{room}/message/{reply}"),
    "GET …/message/{id}/stream": _simple("GET", "/chatroom/{room}/message/{reply}/stream"),
    "POST …/message/{id}/stop": _stop,
    "POST …/message/{id}/regenerate": _regenerate,
    "GET /user/me": _simple("GET", "/user/me"),
    "PATCH /user/me": _simple("PATCH", "/user/me", {"name": "Ada"}),
    "GET /models": _simple("GET", "/models"),
    "GET /subscription/status": _simple("GET", "/subscription/status"),
    "GET /subscription/history": _simple("GET", "/subscription/history"),
}

OF_ALL: Mapping[str, Call] = {
    **CALLS,
    "GET /health/ready": _simple("GET", "/health/ready"),
    "GET /metrics": _metrics,
    "POST /auth/send-otp": _send_otp,
}


def measure(rig: Rig, count: int, scale: float) -> Iterator[Figure]:
    """Time each route `count` times with each size; `scale` makes all of them smaller, to see that it runs."""
    sizes = [[max(10, round(size * scale)) for size in group] for group in (IN_A_ROOM, ROOMS_OF_A_USER, IN_ALL)]
    yield from _figures("messages in all", _in_all(sizes[2], count))
    with rig.running("web"):
        client = Client(rig.port)  # One for all sizes: a connection is one web process's.
        in_room = {size: make_place(rig, client, size, 20) for size in sizes[0]}
        rig.tidy()
        yield from _figures("messages in the room", _medians(CALLS, in_room, count))
        yield from _figures("messages in the room", _deletions(rig, client, sizes[0]))
        of_user = {size: make_place(rig, client, 10, size) for size in sizes[1]}
        rig.tidy()
        yield from _figures("rooms of the user", _medians(CALLS, of_user, count))


def _in_all(sizes: Sequence[int], count: int) -> dict[int, dict[str, float]]:
    """Time each route on servers that hold so many messages, each size on servers of its own, to ask them in turns."""
    with ExitStack() as stack:
        places = {}
        for size in sizes:
            rig = stack.enter_context(Rig())
            stack.enter_context(rig.running("web", METRICS_TOKEN=SCRAPER))
            places[size] = make_place(rig, Client(rig.port), 10, 20)
            _fill(rig, size)
        return _medians(OF_ALL, places, count)


def make_place(rig: Rig, client: Client, messages: int, rooms: int) -> Place:
    """Make somebody with so many rooms, and so many messages in one of them."""
    (person,) = rig.people(1, rooms=1)
    rig.sql(
        "INSERT INTO chatrooms (id, user_id, title) SELECT gen_random_uuid(), %(user)s, 'Room ' || n"
        " FROM generate_series(2, %(rooms)s) AS n",
        {"user": person.id, "rooms": rooms},
    )
    room = person.rooms[0]
    add_messages(rig, [room], messages)
    ((reply, prompt),) = rig.sql(
        "SELECT id, reply_to FROM messages WHERE room_id = %(room)s AND message_type = 'ai'"
        " ORDER BY seq DESC OFFSET 2 LIMIT 1",
        {"room": room},
    )
    return Place(client, person, room, str(prompt), str(reply))


def add_messages(rig: Rig, rooms: Sequence[str], count: int) -> None:
    """Put `count` messages into each room, prompts and finished replies in turns, of words that recur."""
    rig.sql(
        """
        WITH grown AS (
            UPDATE chatrooms SET seq = seq + %(count)s, message_count = message_count + %(count)s,
                                 last_message_at = now(), activity_at = now()
            WHERE id = ANY(%(rooms)s::uuid[]) RETURNING id, user_id, seq - %(count)s AS base
        ), pairs AS MATERIALIZED (
            SELECT gen_random_uuid() AS prompt_id, gen_random_uuid() AS reply_id, id, user_id, base + 2 * n AS seq,
                   (%(words)s::text[])[1 + n %% 10] || ' ' || n || ' of twenty words of what people and models say to'
                   || ' each other when the day is long enough' AS content
            FROM grown, generate_series(1, %(count)s / 2) AS n
        ), prompts AS (
            INSERT INTO messages (id, room_id, user_id, seq, message_type, content, status)
            SELECT prompt_id, id, user_id, seq - 1, 'user', content, 'completed' FROM pairs
        )
        INSERT INTO messages (id, room_id, user_id, seq, message_type, content, status, reply_to, model)
        SELECT reply_id, id, user_id, seq, 'ai', content, 'completed', prompt_id, 'm' FROM pairs
        """,
        {"rooms": list(rooms), "count": count, "words": list(WORDS)},
    )


def _fill(rig: Rig, size: int) -> None:
    """Have `size` messages in all, those that are missing as other people's, 1,000 in a room."""
    while (missing := size - int(rig.sql("SELECT count(*) FROM messages")[0][0])) > 0:
        (person,) = rig.people(1, rooms=min(50, max(1, missing // 1000)))
        add_messages(rig, person.rooms, min(1000, missing + missing % 2))
    rig.tidy()


def _medians(calls: Mapping[str, Call], places: Mapping[int, Place], count: int) -> dict[int, dict[str, float]]:
    """Return the median of each call by size, the sizes asked in turns."""
    times: dict[int, dict[str, list[float]]] = {size: {name: [] for name in calls} for size in places}
    for name, call in calls.items():
        for turn in range(WARM + count):
            first = turn % len(places)  # Whoever comes after the largest would be slower for it.
            for size in [*places][first:] + [*places][:first]:
                took = call(places[size])
                if turn >= WARM:
                    times[size][name].append(took)
    return {size: {name: percentile(each, 0.5) for name, each in found.items()} for size, found in times.items()}


def _figures(what: str, medians: Mapping[int, Mapping[str, float]]) -> Iterator[Figure]:
    """Yield, for each route, the largest median of all sizes over that of the smallest, the worst first."""
    sizes = sorted(medians)
    ratios = {
        name: max(medians[size][name] for size in sizes[1:]) / smallest for name, smallest in medians[sizes[0]].items()
    }
    span = f"{sizes[0]:,} to {sizes[-1]:,} {what}"
    for name, ratio in sorted(ratios.items(), key=lambda pair: -pair[1]):
        yield Figure(f"growth, {span}: {name}", [ratio], target=LIMIT)


def _deletions(rig: Rig, client: Client, sizes: Sequence[int]) -> dict[int, dict[str, float]]:
    """Delete rooms with all their messages."""
    took: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(DELETIONS):
        places = {size: make_place(rig, client, size, 3) for size in sizes}
        rig.tidy()
        for size, place in places.items():
            _delete_empty_room(place)  # The first after tidying takes longer.
            took[size].append(place.call("DELETE", f"/chatroom/{place.room}")[0])
    return {size: {"DELETE /chatroom/{id}": percentile(each, 0.5)} for size, each in took.items()}
