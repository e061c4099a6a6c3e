"""Answering one prompt: lease, ask the model, write the end or come again."""

from __future__ import annotations

import random
from uuid import UUID

import structlog
from flask import current_app

from chatapi.chatrooms.prompts import ring_reply
from chatapi.extensions import db, in_transaction
from chatapi.replies import jobs
from chatapi.replies.context import build_prompt
from chatapi.replies.gemini.base import Answer, GeminiClient, GeminiRejected, GeminiRetryable
from chatapi.replies.jobs import Ending, Lease
from chatapi.replies.leases import LeaseKeeper

FIRST_BACKOFF_SECONDS = 1.0
MAX_BACKOFF_SECONDS = 60.0

KEEPS_PROMPT = frozenset({"safety_blocked"})
"""Failures that give no prompt back: the model did its work, and refused."""

log = structlog.get_logger(__name__)


class LeaseLostError(Exception):
    """Another worker has the job now; nothing of ours may be stored."""


def generate_reply(message_id: UUID, client: GeminiClient, keeper: LeaseKeeper) -> None:
    """Bring the reply `message_id` one attempt further, if it is its turn. Safe to run any number of times."""
    lease = in_transaction(lambda: jobs.take_lease(message_id))
    if lease is None:
        return
    structlog.contextvars.bind_contextvars(reply_id=str(message_id), attempt=lease.attempt)
    with keeper.hold(lease):
        if lease.attempt > current_app.config["REPLY_MAX_ATTEMPTS"]:
            # Every attempt was counted and none came back to say how it went: the prompt crashes its workers.
            _end(lease, _failed("internal_error"))
        elif lease.age_seconds > current_app.config["REPLY_MAX_AGE_SECONDS"]:
            _end(lease, _failed("timed_out"))
        else:
            _attempt(lease, client)


def backoff_seconds(attempt: int, retry_after: float | None) -> float:
    """Return how long to wait after the failed attempt `attempt`, never less than the upstream asked for.

    Exponential with jitter between half and the whole, so that an outage does not end in a stampede.
    """
    backoff: float = min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** (attempt - 1))
    return max(backoff * random.uniform(0.5, 1.0), retry_after or 0.0)  # noqa: S311 - jitter is no secret


def _attempt(lease: Lease, client: GeminiClient) -> None:
    prompt = build_prompt(lease, current_app.config["GEMINI_MODEL"])
    # The model may take a minute. No transaction is open meanwhile, and no connection is held: held ones would
    # bound the replies in flight, and an open one would keep old row versions from being cleaned up.
    db.session.remove()
    if prompt is None:
        return
    try:
        answer = client.generate(prompt)
    except GeminiRejected as error:
        _end(lease, _failed(error.reason))
    except GeminiRetryable as error:
        _retry_or_give_up(lease, error)
    else:
        _end(lease, _completed(answer))


def _retry_or_give_up(lease: Lease, error: GeminiRetryable) -> None:
    delay = backoff_seconds(lease.attempt, error.retry_after)
    is_last = lease.attempt >= current_app.config["REPLY_MAX_ATTEMPTS"]
    is_too_late = lease.age_seconds + delay > current_app.config["REPLY_MAX_AGE_SECONDS"]
    if is_last or is_too_late:
        _end(lease, _failed("timed_out" if error.timed_out or is_too_late else "upstream_unavailable"))
        return
    is_ours = in_transaction(lambda: jobs.schedule_retry(lease, delay))
    log.warning("reply_attempt_failed", reason=str(error), delay_seconds=round(delay, 1), lease_lost=not is_ours)


def _end(lease: Lease, ending: Ending) -> None:
    """Write the end, then ring for the next reply of the room."""

    def write() -> None:
        if not jobs.end_reply(lease, ending):
            raise LeaseLostError

    try:
        in_transaction(write)
    except LeaseLostError:
        log.warning("late_reply_refused")
        return
    log.info("reply_ended", status=ending.status, error=ending.error, age_seconds=round(lease.age_seconds, 1))
    waiting = jobs.next_in_room(lease.room_id)
    if waiting is not None:
        ring_reply(waiting)


def _completed(answer: Answer) -> Ending:
    return Ending(
        status="completed",
        content=storable(answer.text),
        model=storable(answer.model),
        prompt_tokens=answer.prompt_tokens,
        output_tokens=answer.output_tokens,
    )


def _failed(reason: str) -> Ending:
    return Ending(status="failed", error=reason, gives_prompt_back=reason not in KEEPS_PROMPT)


def storable(content: str) -> str:
    """Return `content` without what PostgreSQL cannot hold: NUL and lone surrogates become U+FFFD."""
    return content.replace("\x00", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
