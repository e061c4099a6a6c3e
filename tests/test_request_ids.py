"""Whose work a thread does, as its log lines say, and that it does not stay with the thread."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest
import structlog
from dramatiq import Worker
from flask import Flask

from chatapi.broker import NAMESPACE, declare_actor, ring, worker_broker
from chatapi.request_ids import continue_request, current_request_id, on_behalf_of
from tests.support import wait_for

QUEUE = "whose"


@pytest.fixture(autouse=True)
def _nobodys_thread() -> Iterator[None]:
    """Begin with a thread that works for nobody, whatever earlier tests did in it."""
    structlog.contextvars.clear_contextvars()
    yield
    structlog.contextvars.clear_contextvars()


def bound() -> dict[str, Any]:
    return structlog.contextvars.get_contextvars()


def test_work_of_another_is_named_within_the_block_and_not_after_it() -> None:
    with on_behalf_of("theirs"):
        assert bound() == {"request_id": "theirs"}

    assert bound() == {}


def test_work_of_another_is_named_beside_the_request_being_served() -> None:
    continue_request("ours")

    with on_behalf_of("theirs"):
        assert bound() == {"request_id": "ours", "prompt_request_id": "theirs"}
    with on_behalf_of("ours"):
        assert bound() == {"request_id": "ours"}

    assert bound() == {"request_id": "ours"}


def test_nobody_is_named_when_it_is_not_known_whose_work_it_is() -> None:
    with on_behalf_of(None):
        assert bound() == {}
    continue_request("somebody")
    continue_request(None)

    assert current_request_id() is None


def test_thread_forgets_whose_message_it_had_when_the_next_comes(app: Flask) -> None:
    seen: dict[UUID, dict[str, Any]] = {}

    def work(row_id: UUID) -> None:
        seen[row_id] = dict(bound())
        # As after an attempt: what is bound here holds for what is logged of this message later on.
        continue_request("of the row")
        structlog.contextvars.bind_contextvars(reply_id=str(row_id))

    broker = worker_broker(app)
    broker.client.delete(f"{NAMESPACE}:{QUEUE}")
    declare_actor(broker, "note_whose", QUEUE, work)
    worker = Worker(broker, queues={QUEUE}, worker_threads=1)
    worker.start()
    told, untold = uuid4(), uuid4()
    try:
        with app.app_context():
            assert ring("note_whose", QUEUE, told, request_id="of the message")
            assert ring("note_whose", QUEUE, untold)
        wait_for(lambda: len(seen) == 2, every=0.01)
    finally:
        worker.stop()
        broker.client.close()

    assert seen == {told: {"request_id": "of the message"}, untold: {}}
