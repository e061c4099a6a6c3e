"""People who send prompts all the time, and what must have come of each prompt in the end."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.support import Account
from tests.system.support import HttpAnswer, System, send, wait_all_ended


class Prompting:
    """Sends prompts within the block, from a thread for each of `people`; `answers` is what they get."""

    def __init__(self, people: list[Account], pause_seconds: float) -> None:
        self._people = [(person, person.open_room(title="load")) for person in people]
        self._pause_seconds = pause_seconds
        self._is_over = False
        self.answers: list[tuple[Account, str, HttpAnswer]] = []

    def __enter__(self) -> Prompting:
        self._pool = ThreadPoolExecutor(len(self._people))
        self._running = [self._pool.submit(self._send, *each) for each in self._people]
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_over = True
        self._pool.shutdown()
        for running in self._running:
            running.result()

    def _send(self, person: Account, room_id: str) -> None:
        number = 0
        while not self._is_over:
            number += 1
            self.answers.append((person, room_id, send(person, room_id, f"load number {number}.")))
            time.sleep(self._pause_seconds)

    def statuses(self) -> Counter[int]:
        return Counter(answer.status_code for *_, answer in self.answers)

    def replies(self) -> list[dict[str, Any]]:
        """Return the replies to all that was accepted."""
        accepted = [each for each in self.answers if each[2].status_code == 201]
        return [person.read(room, answer.get_json()["ai_message"]["id"]) for person, room, answer in accepted]


def assert_all_accepted_and_answered_once(system: System, people: list[Account], load: Prompting) -> None:
    assert set(load.statuses()) == {201}
    assert max(answer.seconds for *_, answer in load.answers) < 2
    wait_all_ended(system, 90)
    replies = load.replies()
    assert {reply["status"] for reply in replies} == {"completed"}
    assert len({reply["reply_to"] for reply in replies}) == len(load.answers)
    assert sum(person.daily_usage() for person in people) == len(load.answers)
