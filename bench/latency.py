"""How long a reply takes from the prompt on, beyond what the SDK alone takes for the same answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle

from bench.client import Client
from bench.figures import Figure, Target, percentile
from bench.model_alone import PROMPT
from bench.replies import alone
from bench.rig import Person, Rig

EVERYTHING = ("web", "worker", "chores", "billing", "sweeper")
SDK = "google-generativeai"
SENDERS = 8
PROMPT_BODY = {"content": PROMPT}

WHATS = ("stored", "first text")
TARGETS = {
    "stored, p50": Target("at most", 25, 10),
    "stored, p99": Target("at most", 100),
    "first text, p50": Target("at most", 20, 10),
}


def measure(rig: Rig, rounds: int, count: int, half_load: float) -> Iterator[Figure]:
    """Send `count` prompts one after the other, idle and beside `half_load` prompts a second of other people's."""
    person, others = rig.people(1)[0], rig.people(20)
    rig.forget_prompts()
    with rig.running(*EVERYTHING):
        _send_and_wait(rig, person, 10)
        for name, load in (("idle", 0.0), ("half load", half_load)):
            found: dict[str, list[float]] = {f"{what}, p{share}": [] for what in WHATS for share in (50, 99)}
            for _ in range(rounds):
                with _others_prompting(rig, others, load):
                    wholes, firsts = _send_and_wait(rig, person, count), _send_and_follow(rig, person, count // 2)
                bare = alone(rig, SDK, 2.0, 1)
                base = {"stored": percentile(bare["wholes"], 0.5), "first text": percentile(bare["firsts"], 0.5)}
                for what, times in (("stored", wholes), ("first text", firsts)):
                    for share in (50, 99):
                        found[f"{what}, p{share}"].append(percentile(times, share / 100) - base[what])
            for key, values in found.items():
                target = TARGETS.get(key) if name == "idle" else None
                yield Figure(f"added until {key}, {name}", values, "ms", target)


def _send_and_wait(rig: Rig, person: Person, count: int) -> list[float]:
    """Return the milliseconds from a prompt to the answer that has its stored reply."""
    client, times = Client(rig.port), []
    for room in _rooms(person, count):
        took, answer = client.call("POST", f"/chatroom/{room}/message", person.token, PROMPT_BODY, Prefer="wait=30")
        assert answer["ai_message"]["status"] == "completed", answer
        times.append(took)
    client.close()
    return times


def _send_and_follow(rig: Rig, person: Person, count: int) -> list[float]:
    """Return the milliseconds from a prompt to the first text on its stream."""
    client, times = Client(rig.port), []
    for room in _rooms(person, count):
        path, began_at = f"/chatroom/{room}/message", time.perf_counter()
        reply = client.call("POST", path, person.token, PROMPT_BODY)[1]["ai_message"]["id"]
        times.append((client.first_text(f"{path}/{reply}/stream", person.token) - began_at) * 1000)
    client.close()
    return times


def _rooms(person: Person, count: int) -> Iterator[str]:
    return (room for _, room in zip(range(count), cycle(person.rooms), strict=False))


@contextmanager
def _others_prompting(rig: Rig, people: Sequence[Person], rate: float) -> Iterator[None]:
    """Have other people send `rate` prompts a second, which the model takes a second for each."""
    if not rate:
        yield
        return
    is_over = threading.Event()

    def prompt(number: int) -> None:
        rooms = cycle([(person, room) for person in people[number::SENDERS] for room in person.rooms])
        due_at = time.monotonic() + number / rate
        client = Client(rig.port)
        while not is_over.wait(max(0.0, due_at - time.monotonic())):
            due_at += SENDERS / rate
            person, room = next(rooms)
            body = {"content": f"{PROMPT} [[latency_ms=1000]]"}
            client.call("POST", f"/chatroom/{room}/message", person.token, body)
        client.close()

    threads = [threading.Thread(target=prompt, args=[number]) for number in range(SENDERS)]
    for thread in threads:
        thread.start()
    time.sleep(3)
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
        time.sleep(2)
