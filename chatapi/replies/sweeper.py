"""The sweeper: finds in PostgreSQL what Redis or a dead worker forgot, and rings for it again.

Any number may run, and none leads: each due row goes to one of them (`FOR UPDATE SKIP LOCKED`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from uuid import UUID

import structlog
from flask import current_app
from sqlalchemy.exc import SQLAlchemyError

from chatapi import metrics
from chatapi.auth.delivery import prune_outbox, ring_delivery, take_due_deliveries
from chatapi.auth.limits import prune_limits, try_take
from chatapi.auth.otp import prune_codes
from chatapi.auth.service import prune_signups
from chatapi.auth.sessions import prune_sessions
from chatapi.broker import BILLING_QUEUE, CHORES_QUEUE, read_lengths, ring
from chatapi.chatrooms.endings import Ending, conclude
from chatapi.chatrooms.idempotency import prune_keys
from chatapi.chatrooms.prompts import REPLIES_QUEUE, ring_reply
from chatapi.chatrooms.service import prune_rooms
from chatapi.chatrooms.stops import stopped, streamed_text
from chatapi.extensions import db, in_batches, in_transaction
from chatapi.replies.jobs import seize_overdue, take_due_jobs
from chatapi.replies.monitor import SWEEPS
from chatapi.subscriptions.closures import CLOSE_CUSTOMER, take_due_closures
from chatapi.subscriptions.events import HANDLE_EVENT, prune_events, take_due_events
from chatapi.subscriptions.reconcile import RECONCILE, take_due_reconciliation

SWEEP_EVERY_SECONDS = 1.0
BEAT_EVERY_SECONDS = 10.0
CLEAN_EVERY_SECONDS = 60.0
CLEAN_SECONDS = 1.0
"""For each kind of thing: nothing is rung for meanwhile. What is left waits for the next time."""
OVERDUE_EVERY_SECONDS = 5.0
CLEAR_EVERY_SECONDS = 5.0
STOP_GRACE_SECONDS = 10.0
"""How long whoever stops a reply has to end it; if they died over it, the sweeper does."""
BATCH = 200

DUE: tuple[tuple[str, Callable[[int], list[UUID]], Callable[[UUID], object]], ...] = (
    (REPLIES_QUEUE, take_due_jobs, ring_reply),
    (CHORES_QUEUE, take_due_deliveries, ring_delivery),
    (BILLING_QUEUE, take_due_events, partial(ring, HANDLE_EVENT, BILLING_QUEUE)),
    (BILLING_QUEUE, take_due_closures, partial(ring, CLOSE_CUSTOMER, BILLING_QUEUE)),
    (BILLING_QUEUE, take_due_reconciliation, partial(ring, RECONCILE, BILLING_QUEUE)),
)
"""What the sweeper rings for: on which queue, how due rows are taken, and what is rung for each."""

BOUNDED_QUEUES = (CHORES_QUEUE, BILLING_QUEUE)
"""Not that of replies, which are rung for less and less often and by as many messages as there are prompts."""
FULL_QUEUE = 1000
"""From so many messages on, nothing more is rung for on a bounded queue. Its process is slow or away, and was told of
most of what is due; telling it again would not hurry it."""

log = structlog.get_logger(__name__)


def run_sweeper(stop: threading.Event) -> None:
    """Sweep every second until `stop` is set. PostgreSQL being away is waited out."""
    metrics.started("sweeper")
    cleaned_at = cleared_at = ended_at = beaten_at = float("-inf")
    while not stop.is_set():
        try:
            sweep()
            if time.monotonic() - beaten_at >= BEAT_EVERY_SECONDS:
                in_transaction(beat)
                beaten_at = time.monotonic()
            if time.monotonic() - ended_at >= OVERDUE_EVERY_SECONDS:
                end_overdue()
                ended_at = time.monotonic()
            if time.monotonic() - cleaned_at >= CLEAN_EVERY_SECONDS:
                clean()
                cleaned_at = time.monotonic()
            # Last, and not again at once when it fails: nothing else is to wait for it.
            if time.monotonic() - cleared_at >= CLEAR_EVERY_SECONDS:
                cleared_at = time.monotonic()
                clear_rooms()
        except SQLAlchemyError as error:
            log.warning("sweep_failed", reason=type(error).__name__)
        finally:
            db.session.remove()
        stop.wait(SWEEP_EVERY_SECONDS)


def sweep() -> int:
    """Ring for everything that is due, in batches; return how much it was.

    With Redis away nothing is taken, and with a queue that is full nothing of its kind: what is due stays due, and is
    rung for as soon as that is over.
    """
    rung = 0
    while (queued := read_lengths(BOUNDED_QUEUES)) is not None:
        batches = [_ring_batch(take, ring_one) for queue, take, ring_one in DUE if queued.get(queue, 0) < FULL_QUEUE]
        rung += sum(batches)
        if max(batches) < BATCH:
            break
    if rung:
        log.info("swept", rung=rung)
    return rung


def _ring_batch(take: Callable[[int], list[UUID]], ring_one: Callable[[UUID], object]) -> int:
    """Ring for some of what is due of one kind; return how much it was."""
    due = in_transaction(lambda: take(BATCH))
    for row_id in due:
        ring_one(row_id)
    return len(due)


def beat() -> None:
    """Note in PostgreSQL that a round is done, for whoever looks whether there is a sweeper at all."""
    try_take(SWEEPS, b"")


def end_overdue() -> int:
    """End replies that nobody works on and nobody shall, in batches; return how many.

    They are too old, be it that no worker runs or that the room's earlier replies took so long; or they were to be
    stopped, and whoever stopped them died over it. It needs no Redis.
    """
    ended = 0
    max_age = current_app.config["REPLY_MAX_AGE_SECONDS"]
    while seized := in_transaction(lambda: seize_overdue(BATCH, max_age, STOP_GRACE_SECONDS)):
        for lease, is_to_stop in seized:
            conclude(lease, stopped(lease, streamed_text(lease.message_id)) if is_to_stop else _too_old())
        ended += len(seized)
    return ended


def _too_old() -> Ending:
    return Ending("failed", error="timed_out", gives_prompt_back=True)


def clear_rooms() -> None:
    """Delete what deleted rooms have left, in batches; of very much a part, and the rest the next time."""
    in_batches(prune_rooms, CLEAN_SECONDS)


def clean() -> None:
    """Delete what is past its life: codes, also undelivered ones, sign-ups, sessions, and what limits were counted by.

    In batches, each in a transaction of its own, so that none is long whatever has gathered.
    """
    for prune in (prune_codes, prune_outbox, prune_signups, prune_sessions, prune_limits, prune_keys, prune_events):
        in_batches(prune, CLEAN_SECONDS)
