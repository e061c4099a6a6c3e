"""The sweeper: finds in PostgreSQL what Redis or a dead worker forgot, and rings for it again.

Any number may run, and none leads: each due row goes to one of them (`FOR UPDATE SKIP LOCKED`).
"""

from __future__ import annotations

import threading
import time

import structlog
from flask import current_app
from sqlalchemy.exc import SQLAlchemyError

from chatapi.auth.delivery import prune_outbox, ring_delivery, take_due_deliveries
from chatapi.auth.limits import prune_limits
from chatapi.auth.otp import prune_codes
from chatapi.auth.service import prune_signups
from chatapi.auth.sessions import prune_sessions
from chatapi.broker import is_reachable
from chatapi.chatrooms.endings import Ending, conclude
from chatapi.chatrooms.idempotency import prune_keys
from chatapi.chatrooms.prompts import ring_reply
from chatapi.chatrooms.stops import stopped
from chatapi.extensions import db, in_batches, in_transaction
from chatapi.replies.jobs import seize_overdue, take_due_jobs

SWEEP_EVERY_SECONDS = 1.0
CLEAN_EVERY_SECONDS = 60.0
CLEAN_SECONDS = 1.0
"""For each kind of thing: nothing is rung for meanwhile. What is left waits for the next time."""
OVERDUE_EVERY_SECONDS = 5.0
STOP_GRACE_SECONDS = 10.0
"""How long whoever stops a reply has to end it; if they died over it, the sweeper does."""
BATCH = 200

log = structlog.get_logger(__name__)


def run_sweeper(stop: threading.Event) -> None:
    """Sweep every second until `stop` is set. PostgreSQL being away is waited out."""
    cleaned_at = ended_at = float("-inf")
    while not stop.is_set():
        try:
            sweep()
            if time.monotonic() - ended_at >= OVERDUE_EVERY_SECONDS:
                end_overdue()
                ended_at = time.monotonic()
            if time.monotonic() - cleaned_at >= CLEAN_EVERY_SECONDS:
                clean()
                cleaned_at = time.monotonic()
        except SQLAlchemyError as error:
            log.warning("sweep_failed", reason=type(error).__name__)
        finally:
            db.session.remove()
        stop.wait(SWEEP_EVERY_SECONDS)


def sweep() -> int:
    """Ring for everything that is due, in batches; return how much it was.

    With Redis away nothing is taken: what is due stays due, and is rung for as soon as Redis is back.
    """
    rung = 0
    while is_reachable():
        replies = in_transaction(lambda: take_due_jobs(BATCH))
        deliveries = in_transaction(lambda: take_due_deliveries(BATCH))
        for message_id in replies:
            ring_reply(message_id)
        for outbox_id in deliveries:
            ring_delivery(outbox_id)
        rung += len(replies) + len(deliveries)
        if len(replies) < BATCH and len(deliveries) < BATCH:
            break
    if rung:
        log.info("swept", rung=rung)
    return rung


def end_overdue() -> int:
    """End replies that nobody works on and nobody shall, in batches; return how many.

    They are too old, be it that no worker runs or that the room's earlier replies took so long; or they were to be
    stopped, and whoever stopped them died over it. It needs no Redis.
    """
    ended = 0
    max_age = current_app.config["REPLY_MAX_AGE_SECONDS"]
    while seized := in_transaction(lambda: seize_overdue(BATCH, max_age, STOP_GRACE_SECONDS)):
        for lease, is_to_stop in seized:
            conclude(lease, stopped(lease) if is_to_stop else _too_old())
        ended += len(seized)
    return ended


def _too_old() -> Ending:
    return Ending("failed", error="timed_out", gives_prompt_back=True)


def clean() -> None:
    """Delete what is past its life: codes, also undelivered ones, sign-ups, sessions, and what limits were counted by.

    In batches, each in a transaction of its own, so that none is long whatever has gathered.
    """
    for prune in (prune_codes, prune_outbox, prune_signups, prune_sessions, prune_limits, prune_keys):
        in_batches(prune, CLEAN_SECONDS)
