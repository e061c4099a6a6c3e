"""Answering one prompt: lease, ask the model, write the end or come again."""

from __future__ import annotations

import dataclasses
import random
import time
from uuid import UUID

import structlog
from flask import current_app
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from chatapi import metrics
from chatapi.catalogue import ModelEntry, catalogue, tier_of
from chatapi.chatrooms.endings import Ending, Lease, conclude
from chatapi.extensions import db, in_transaction
from chatapi.replies import jobs
from chatapi.replies.context import build_prompt
from chatapi.replies.fallback import answer_with_fallback
from chatapi.replies.gemini.base import (
    Answer,
    GeminiCancelled,
    GeminiClient,
    GeminiRejected,
    GeminiRetryable,
    Prompt,
)
from chatapi.replies.leases import HeldLease, LeaseKeeper
from chatapi.replies.metered import metered_call
from chatapi.replies.publisher import LiveText, Publisher
from chatapi.replies.storable import storable
from chatapi.replies.titles import ring_title, wants_title
from chatapi.replies.token_counter import token_counter
from chatapi.request_ids import continue_request

FIRST_BACKOFF_SECONDS = 1.0
MAX_BACKOFF_SECONDS = 60.0

SMALLEST_BUDGET_FACTOR = 0.1
"""Down to which part of its budget a context is cut when the model finds it too long: our count was off."""

WRITE_AGAIN_SECONDS = (0.5, 1.0, 2.0, 4.0)
"""When an end that PostgreSQL could not take is tried again, within the lease: the model need not be asked again."""

KEEPS_PROMPT = frozenset({"safety_blocked"})
"""Failures that give no prompt back: the model did its work, and refused."""

log = structlog.get_logger(__name__)

_ROOM = text("""
    SELECT room.model, coalesce(owner.pro_until > now(), false) AS is_pro
    FROM chatrooms AS room JOIN users AS owner ON owner.id = room.user_id
    WHERE room.id = :room_id
""")


class ReplyMaker:
    """Makes replies with one client, from as many threads as will."""

    def __init__(self, client: GeminiClient, keeper: LeaseKeeper, publisher: Publisher) -> None:
        self._client = client
        self._keeper = keeper
        self._publisher = publisher

    def generate_reply(self, message_id: UUID) -> None:
        """Bring the reply `message_id` one attempt further, if it is its turn. Safe to run any number of times."""
        lease = in_transaction(lambda: jobs.take_lease(message_id))
        if lease is None:
            return
        continue_request(lease.request_id)
        structlog.contextvars.bind_contextvars(reply_id=str(message_id), attempt=lease.attempt)
        log.info("reply_attempt_began", age_seconds=round(lease.age_seconds, 1))
        with self._keeper.hold(lease) as held:
            if lease.attempt > current_app.config["REPLY_MAX_ATTEMPTS"]:
                # Every attempt was counted and none came back to say how it went: the prompt crashes its workers.
                _end(held, failed("internal_error"))
            elif lease.age_seconds > current_app.config["REPLY_MAX_AGE_SECONDS"]:
                _end(held, failed("timed_out"))
            else:
                self._attempt(held)

    def _attempt(self, held: HeldLease) -> None:
        lease, live = held.lease, self._publisher.begin(held.lease)
        try:
            answer = self._answer(held, live)
        except GeminiCancelled:
            # Without a wish to stop, the lease is lost: whoever has it now writes the end.
            if held.is_to_stop:
                _end(held, Ending("stopped", content=live.text, model=held.model, text_token=lease.token))
        except GeminiRejected as error:
            # What users ask for is refused now and then; a key, a model or a quota should not be.
            (log.error if error.reason == "upstream_rejected" else log.info)(
                "reply_rejected", reason=error.reason, status=error.status
            )
            _end(held, failed(error.reason))
        except GeminiRetryable as error:
            _retry_or_give_up(held, error)
        else:
            if answer is not None:
                _end(held, _completed(lease, live, answer))
                if wants_title(lease.room_id):
                    ring_title(lease.room_id)
        finally:
            live.end()

    def _answer(self, held: HeldLease, live: LiveText) -> Answer | None:
        """Ask the model, with less of the room's history if it finds that too long; None if the reply was deleted."""
        entry, factor = _model_for(held.lease), 1.0
        deadline = time.monotonic() + current_app.config["GEMINI_TIMEOUT_SECONDS"]
        while True:
            prompt = build_prompt(held.lease, entry, factor)
            # The model may take a minute. No transaction is open meanwhile, and no connection is held: held ones would
            # bound the replies in flight, and an open one would keep old row versions from being cleaned up.
            db.session.remove()
            if prompt is None:
                return None
            try:
                return self._ask(held, live, entry, prompt, deadline)
            except GeminiRejected as error:
                factor /= 2
                is_shortest = len(prompt.turns) == 1 or factor < SMALLEST_BUDGET_FACTOR
                if error.reason != "context_too_long" or is_shortest:
                    raise

    def _ask(self, held: HeldLease, live: LiveText, entry: ModelEntry, prompt: Prompt, deadline: float) -> Answer:
        def on_text(piece: str) -> None:
            if live.add(piece):
                metrics.first_text(held.lease.age_now)

        def ask(model: str) -> Answer:
            held.model = model
            call = held.call(max(0.1, deadline - time.monotonic()))
            with metered_call(entry.alias):
                return self._client.stream(dataclasses.replace(prompt, model=model), call, on_text)

        answer = answer_with_fallback(entry, ask)
        token_counter.learn_from(prompt, answer)
        return answer


def backoff_seconds(attempt: int, retry_after: float | None) -> float:
    """Return how long to wait after the failed attempt `attempt`, never less than the upstream asked for.

    Exponential with jitter between half and the whole, and up to a quarter on top of what the upstream asked of all, so
    that an outage does not end in a stampede.
    """
    backoff: float = min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** (attempt - 1))
    jitter = random.random()  # noqa: S311 - no secret
    return max(backoff * (0.5 + 0.5 * jitter), (retry_after or 0.0) * (1.0 + 0.25 * jitter))


def failed(reason: str) -> Ending:
    """Return the end of a reply that failed for `reason`."""
    return Ending("failed", error=reason, gives_prompt_back=reason not in KEEPS_PROMPT)


def _model_for(lease: Lease) -> ModelEntry:
    """Return what answers in the room: its own model while its owner's tier may use it, else the default."""
    room = db.session.execute(_ROOM, {"room_id": lease.room_id}).one_or_none()
    if room is None:
        return catalogue().default
    return catalogue().for_room(room.model, tier_of(is_pro=room.is_pro))


def _completed(lease: Lease, live: LiveText, answer: Answer) -> Ending:
    return Ending(
        "completed",
        content=live.text,
        model=storable(answer.model),
        prompt_tokens=answer.prompt_tokens,
        output_tokens=answer.output_tokens,
        text_token=lease.token,
    )


def _retry_or_give_up(held: HeldLease, error: GeminiRetryable) -> None:
    lease = held.lease
    delay = backoff_seconds(lease.attempt, error.retry_after)
    is_last = lease.attempt >= current_app.config["REPLY_MAX_ATTEMPTS"]
    is_too_late = lease.age_now + delay > current_app.config["REPLY_MAX_AGE_SECONDS"]
    reason = "timed_out" if error.timed_out or is_too_late else "upstream_unavailable"
    if is_last or is_too_late:
        log.warning("reply_given_up", reason=str(error))
        _end(held, failed(reason))
        return
    held.is_ending = True
    is_ours = in_transaction(lambda: jobs.schedule_retry(lease, delay, str(error)))
    log.warning("reply_attempt_failed", reason=str(error), delay_seconds=round(delay, 1), lease_lost=not is_ours)
    metrics.retried(reason)


def _end(held: HeldLease, ending: Ending) -> None:
    """Write the end; with PostgreSQL away for a moment, again and again within the lease."""
    held.is_ending = True
    for pause in WRITE_AGAIN_SECONDS:
        try:
            conclude(held.lease, ending)
        except OperationalError as error:
            log.warning("reply_end_not_written", reason=type(error).__name__, retry_seconds=pause)
            db.session.remove()
            time.sleep(pause)
        else:
            return
    conclude(held.lease, ending)
