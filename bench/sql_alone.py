"""The yardstick of accepting: the statements of its transaction alone, by as many connections as the web has threads.

    python -m bench.sql_alone FILE

`FILE` is JSON that `accepts_by_sql` writes; the number of transactions is printed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import UUID

import psycopg2

from bench.rig import Person, Rig
from chatapi.chatrooms import prompts
from chatapi.ids import uuid7

PROCESSES, THREADS = 2, 16
"""The web's own, as `WEB_CONCURRENCY` and `WEB_THREADS` have it unless set."""


def accepts_by_sql(rig: Rig, people: Sequence[Person], seconds: float) -> float:
    """Return how many prompts a second PostgreSQL takes when nothing but the transaction is done for each."""
    plan = rig.folder / "accept.json"
    plan.write_text(json.dumps({"dsn": rig.connect().dsn, "seconds": seconds, "turns": _turns(rig, people)}))
    command = [sys.executable, "-m", "bench.sql_alone", str(plan)]
    began = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(PROCESSES)]
    return sum(int(process.communicate()[0]) for process in began) / seconds


def _turns(rig: Rig, people: Sequence[Person]) -> list[tuple[str, dict[str, Any]]]:
    """Return, for each person, what is executed when one of their prompts is accepted."""
    with rig.app.app_context():
        return [_recorded(person) for person in people]


def _recorded(person: Person) -> tuple[str, dict[str, Any]]:
    found: list[tuple[str, dict[str, Any]]] = []

    def note(statement: str, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        found.append((statement, dict(parameters)))
        return [("accepted", datetime.now(UTC), None)]

    with patch.object(prompts, "run_alone", note):
        prompts.post_message(UUID(person.id), person.rooms[0], "What is the capital of France?")
    return found[0]


def main() -> None:
    """Accept for as long as the plan says, in many threads, and print how many there were."""
    plan = json.loads(Path(sys.argv[1]).read_text())
    counts: list[int] = []
    ends_at = time.monotonic() + plan["seconds"]

    def accept_on_and_on(first: int) -> None:
        count, turns = 0, plan["turns"]
        connection = psycopg2.connect(plan["dsn"])
        connection.autocommit = True
        with connection.cursor() as cursor:
            while time.monotonic() < ends_at:
                new = {"prompt_id": str(uuid7()), "reply_id": str(uuid7())}
                statement, parameters = turns[(first + count) % len(turns)]
                cursor.execute(statement, {**parameters, **new})
                count += 1
        connection.close()
        counts.append(count)

    threads = [threading.Thread(target=accept_on_and_on, args=[index * 7]) for index in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(sum(counts))


if __name__ == "__main__":
    main()
