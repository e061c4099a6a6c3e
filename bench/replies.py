"""Replies a second from a backlog, over what the SDK alone reaches with as many threads."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

from bench.figures import Figure, Target
from bench.model_alone import PROMPT, SDKS
from bench.rig import Person, Rig
from chatapi.chatrooms import prompts

PEOPLE, PROMPTS_IN_A_ROOM = 40, 6
THREADS = 128
"""`WORKER_THREADS`, unless set."""
WARM_SECONDS = 4.0

TARGETS = {1000: (Target("at least", 100), Target("at least", 0.5, 0.8)), 0: (None, None)}


def measure(rig: Rig, rounds: int, seconds: float, processes: int) -> Iterator[Figure]:
    """Let a worker write replies for some seconds, then the SDK alone, at each latency of the model."""
    people = rig.people(PEOPLE)
    for sdk in SDKS:
        if sdk == "google-genai" and importlib.util.find_spec("google.genai") is None:
            print(f"{sdk} is not installed (requirements-genai.txt), and is left out")
            continue
        for latency, (enough, share) in TARGETS.items():
            rates, ratios = [], []
            for _ in range(rounds):
                rig.gemini(latency_ms=latency)
                rates.append(_with_workers(rig, people, sdk, seconds, processes))
                ratios.append(rates[-1] / alone(rig, sdk, seconds, THREADS, processes)["rate"])
            rig.gemini()
            yield Figure(f"replies at {latency} ms, {sdk}", rates, "1/s", enough)
            yield Figure(f"replies at {latency} ms ÷ {sdk} alone", ratios, target=share)


def alone(rig: Rig, sdk: str, seconds: float, threads: int, processes: int = 1) -> dict[str, Any]:
    """Return what `bench.model_alone` measures, in `processes` of them together."""
    command = [sys.executable, "-m", "bench.model_alone", "--sdk", sdk, "--threads", str(threads)]
    command += ["--endpoint", rig.environ["GEMINI_API_ENDPOINT"]]
    command += ["--seconds", str(seconds), "--warm", str(WARM_SECONDS)]
    began = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for _ in range(processes)
    ]
    found = [json.loads(process.communicate()[0]) for process in began]
    return {
        "rate": sum(each["rate"] for each in found),
        **{name: [value for each in found for value in each[name]] for name in ("firsts", "wholes")},
    }


def _with_workers(rig: Rig, people: Sequence[Person], sdk: str, seconds: float, processes: int) -> float:
    rig.forget_prompts()
    _send(rig, people)
    with rig.running("worker", "chores", "billing", "sweeper", GEMINI_SDK=sdk, WORKER_PROCESSES=str(processes)):
        total = _left(rig)
        while _left(rig) > total - THREADS * processes:
            time.sleep(0.1)
        time.sleep(WARM_SECONDS)
        before, began_at = _left(rig), time.monotonic()
        time.sleep(seconds)
        after, ended_at = _left(rig), time.monotonic()
        assert after > 2 * THREADS * processes, "There were too few prompts to keep all threads busy"
        return (before - after) / (ended_at - began_at)


def _send(rig: Rig, people: Sequence[Person]) -> None:
    with rig.app.app_context():
        for _ in range(PROMPTS_IN_A_ROOM):
            for person in people:
                for room in person.rooms:
                    prompts.announce(prompts.post_message(UUID(person.id), room, PROMPT))


def _left(rig: Rig) -> int:
    return int(rig.sql("SELECT count(*) FROM reply_jobs")[0][0])
