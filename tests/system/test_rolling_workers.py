"""Worker, chores and billing replaced again and again under load: nothing accepted is lost, doubled or late."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from chatapi.dev.gemini_standin import RecordedRequest
from chatapi.dev.processes import Child
from chatapi.dev.stripe.faults import Fault
from tests.auth.support import Gateway
from tests.subscriptions.support import tier_of
from tests.support import Account, wait_for
from tests.system.events import Reader
from tests.system.support import System, chance, is_title, prompt_of, wait_all_ended

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

KINDS = ("worker", "chores", "billing")
TALKERS = 36
ROUNDS = 10
ROUND_SECONDS = 4.0
REPLY_WITHIN_SECONDS = 90
UNHURRIED = "[[latency_ms=1500 words=60 chunk_ms=120]]"
"""Some three seconds from the prompt to the end."""


class Fleet:
    """Instances of each kind of process; a new one of each takes the old one's place with every `replace`."""

    def __init__(self, system: System, kinds: tuple[str, ...]) -> None:
        self._system = system
        self._current = {kind: system[kind] for kind in kinds}
        self._leaving: list[Child] = []
        self._number = 0

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *exception: object) -> None:
        """Wait for those that were asked to stop, and end the rest."""
        for child in self._leaving:
            wait_for(lambda child=child: not child.is_running(), seconds=30)
            child.kill()
        for kind, child in self._current.items():
            if child is not self._system[kind]:
                child.kill()

    def start_next(self) -> dict[str, Child]:
        """Start a second instance of each kind beside the first; return the old ones."""
        self._number += 1
        old = dict(self._current)
        for kind, like in old.items():
            log = self._system.logs / f"{kind}-{self._number}.log"
            child = Child(f"{kind} {self._number}", like.argv, env=self._system[kind].env, log=log, stop_timeout=30)
            child.start()
            self._current[kind] = child
        for kind in old:
            log = self._system.logs / f"{kind}-{self._number}.log"
            wait_for(lambda log=log: "ready for action" in log.read_text(), seconds=20)
        return old

    def let_go(self, old: dict[str, Child], *, kills: bool) -> None:
        for child in old.values():
            if kills:
                child.kill()
            else:
                child.ask_to_stop()
                self._leaving.append(child)


class Witness:
    """Keeps what was asked of the model, of which the stand-in itself remembers the newest only."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._seen: dict[int, RecordedRequest] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Witness:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            self._look()
        self._look()

    def _look(self) -> None:
        self._seen.update((id(request), request) for request in self._system.services.gemini.requests)

    def times(self) -> Counter[str]:
        """Return how often each prompt was asked, titles apart."""
        return Counter(prompt_of(request) for request in self._seen.values() if not is_title(request))


class Talk:
    """Somebody who sends a prompt, follows the reply to its end, and sends the next, until it is over."""

    def __init__(self, account: Account, number: int) -> None:
        self._account = account
        self._number = number
        self.room_id = account.open_room(title="rolling")
        self.readers: list[Reader] = []
        self.prompts: list[str] = []
        self.seconds: list[float] = []

    def go_on_until(self, over: threading.Event) -> None:
        while not over.is_set():
            prompt = f"{UNHURRIED} talk {self._number} part {len(self.prompts)}."
            began = time.monotonic()
            reader = Reader(self._account, self.room_id, self._account.prompt(self.room_id, prompt))
            self.prompts.append(prompt)
            self.readers.append(reader)
            reader.read_to_end(REPLY_WITHIN_SECONDS + 10)
            self.seconds.append(time.monotonic() - began)

    def check(self, system: System) -> None:
        """Hold that each reply came in time and once, and that its reader saw what is stored."""
        rows = system.rows(
            "SELECT id::text, status, content FROM messages WHERE room_id = %s AND reply_to IS NOT NULL ORDER BY seq",
            self.room_id,
        )
        assert [row.status for row in rows] == ["completed"] * len(self.prompts)
        assert [reader.text for reader in self.readers] == [row.content for row in rows]
        assert {reader.events[-1].name for reader in self.readers} == {"done"}
        assert max(self.seconds) < REPLY_WITHIN_SECONDS
        assert self._account.daily_usage() == len(self.prompts)


def talk_while(system: System, accounts: list[Account], work: Callable[[], None]) -> tuple[list[Talk], Counter[str]]:
    """Have all talk while `work` is done; return the talks, which are over, and how often each prompt was asked."""
    talks = [Talk(account, number) for number, account in enumerate(accounts)]
    over = threading.Event()
    with Witness(system) as witness:
        with ThreadPoolExecutor(len(talks)) as pool:
            talking = [pool.submit(talk.go_on_until, over) for talk in talks]
            try:
                wait_for(lambda: system.rows("SELECT count(*) AS n FROM reply_jobs")[0].n >= 30)
                work()
            finally:
                over.set()
            for each in talking:
                each.result()
        wait_all_ended(system, 60)
    return talks, witness.times()


def roll(fleet: Fleet, rounds: int, kills_in: frozenset[int] = frozenset()) -> Iterator[int]:
    """Replace processes again and again; yields in each round while the old and the new ones run side by side."""
    for number in range(rounds):
        until = time.monotonic() + ROUND_SECONDS
        old = fleet.start_next()
        yield number
        fleet.let_go(old, kills=number in kills_in)
        time.sleep(max(0.0, until - time.monotonic()))


def numbers_told(gateway: Gateway) -> set[str]:
    return {json.loads(body)["mobile_number"] for _, body in list(gateway.received)}


def signed_in(system: System, gateway: Gateway, number: str) -> Account:
    """Sign somebody in by the code that the gateway was given."""
    assert system.client.post("/auth/send-otp", json={"mobile_number": number}).status_code == 200
    sent = wait_for(lambda: [body for _, body in list(gateway.received) if number in body.decode()])
    answer = system.client.post(
        "/auth/verify-otp", json={"mobile_number": number, "otp": json.loads(sent[-1])["otp"]}
    ).get_json()
    return Account(answer["user"]["id"], number, answer["token"], system.client)


def test_all_accepted_work_is_done_once_when_workers_are_replaced_ten_times_under_load(
    system: System, gateway: Gateway, new_number: Callable[[], str]
) -> None:
    with ThreadPoolExecutor(8) as pool:
        people = list(pool.map(lambda _: signed_in(system, gateway, new_number()), range(TALKERS + ROUNDS)))
    buyers = people[TALKERS:]
    sessions = [buyer.call("POST", "/subscribe/pro").get_json()["session_id"] for buyer in buyers]
    numbers = []

    def replace_all() -> None:
        for number in roll(fleet, ROUNDS):
            # Each code and each payment is on its way while the process that sees to it is replaced.
            system.services.stripe.add_fault(Fault("hang", times=1))
            system.services.stripe.pay(sessions[number])
            for _ in range(4):
                numbers.append(new_number())
                assert system.client.post("/auth/send-otp", json={"mobile_number": numbers[-1]}).status_code == 200

    with Fleet(system, KINDS) as fleet:
        talks, asked = talk_while(system, people[:TALKERS], replace_all)
        wait_for(lambda: [tier_of(buyer) for buyer in buyers] == ["pro"] * ROUNDS, seconds=60)
        wait_for(
            lambda: set(numbers) <= {json.loads(sent)["mobile_number"] for _, sent in gateway.received}, seconds=60
        )

    for talk in talks:
        talk.check(system)
    # Those who were asked to stop have finished what they had: nothing is asked of the model twice.
    assert asked == Counter(prompt for talk in talks for prompt in talk.prompts)
    assert len(asked) > 5 * TALKERS


def test_each_prompt_has_one_reply_within_bounds_when_some_workers_are_killed_instead(
    system: System, sign_in: Callable[..., Account]
) -> None:
    def replace_some_by_force() -> None:
        for _ in roll(fleet, 6, frozenset({1, 3, 5})):
            pass

    people = [sign_in(via=system.client) for _ in range(TALKERS)]
    with Fleet(system, ("worker",)) as fleet:
        talks, asked = talk_while(system, people, replace_some_by_force)

    for talk in talks:
        talk.check(system)
    # What the killed ones had begun was begun again, and no lease was taken from anybody else.
    assert asked.keys() == {prompt for talk in talks for prompt in talk.prompts}
    assert 2 in asked.values()
    assert max(asked.values()) <= 3


def test_no_prompt_is_lost_when_the_only_worker_is_stopped_and_started_again_and_again(
    system: System, sign_in: Callable[..., Account]
) -> None:
    choose = chance(6)

    def stop_and_start() -> None:
        for _ in range(4):
            time.sleep(choose.uniform(0.5, 2.0))
            for kind in KINDS:
                system[kind].ask_to_stop()
            for kind in KINDS:
                wait_for(lambda kind=kind: not system[kind].is_running(), seconds=30)
                system[kind].start()

    people = [sign_in(via=system.client) for _ in range(TALKERS)]
    talks, asked = talk_while(system, people, stop_and_start)

    for talk in talks:
        talk.check(system)
    assert asked == Counter(prompt for talk in talks for prompt in talk.prompts)
