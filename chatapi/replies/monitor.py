"""What operators see of the replies that are not finished."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import redis
from flask import current_app
from sqlalchemy import text

from chatapi.auth.limits import Limit
from chatapi.bell import NAMESPACE
from chatapi.broker import BILLING_QUEUE, CHORES_QUEUE, QueueBroker
from chatapi.chatrooms.prompts import REPLIES_QUEUE
from chatapi.extensions import db
from chatapi.replies.titles import TITLES_QUEUE

QUEUES = (REPLIES_QUEUE, TITLES_QUEUE, CHORES_QUEUE, BILLING_QUEUE)
SWEEPS = Limit("sweeps", ((1, 10), (10, 60)))
"""The sweepers' sign of life: whichever is the first of all to count one that may be counted again."""

STATES = ("waiting", "running", "retrying", "stopping")

# In work, by a lease that holds; else between two attempts or after one whose worker died; else never tried.
_STATE = """
    CASE WHEN lease_expires_at > clock_timestamp() THEN 'running' WHEN attempts > 0 THEN 'retrying' ELSE 'waiting' END
"""

# What waits its turn in a room is not late, however long the one before it takes.
_QUEUE_AGE = """
    SELECT extract(epoch FROM clock_timestamp() - min(run_at))::float FROM reply_jobs AS job
    WHERE run_at <= clock_timestamp() AND (lease_expires_at IS NULL OR lease_expires_at <= clock_timestamp())
      AND NOT EXISTS (SELECT FROM reply_jobs AS earlier WHERE earlier.room_id = job.room_id AND earlier.seq < job.seq)
"""

_SUMMARY = text(f"""
    SELECT count(*) FILTER (WHERE state = 'waiting') AS waiting, count(*) FILTER (WHERE state = 'running') AS running,
           count(*) FILTER (WHERE state = 'retrying') AS retrying,
           count(*) FILTER (WHERE stop_requested_at IS NOT NULL) AS stopping,
           coalesce(max(attempts), 0) AS most_attempts,
           coalesce(extract(epoch FROM clock_timestamp() - min(created_at)), 0)::float AS oldest_seconds,
           greatest(coalesce(({_QUEUE_AGE}), 0), 0) AS queue_age_seconds
    FROM (SELECT *, {_STATE} AS state FROM reply_jobs) AS jobs
""")  # noqa: S608 - of our own constants

# The sweeper passes over what waits its turn in a room, and sees to all else whose time has come.
_SWEEPING = text("""
    SELECT (
        SELECT greatest(coalesce(extract(epoch FROM clock_timestamp() - min(ring_at)), 0), 0)::float
        FROM reply_jobs AS job
        WHERE ring_at <= clock_timestamp() AND NOT EXISTS (
            SELECT FROM reply_jobs AS earlier WHERE earlier.room_id = job.room_id AND earlier.seq < job.seq
        )
    ) AS unrung_seconds, (
        SELECT greatest(extract(epoch FROM clock_timestamp() - hits[cardinality(hits)]), 0)::float
        FROM auth_limits WHERE name = :name AND subject = ''
    ) AS swept_seconds
""")

_LIST = text(f"""
    SELECT * FROM (
        SELECT message_id AS reply_id, room_id, user_id,
               CASE WHEN stop_requested_at IS NOT NULL THEN 'stopping' ELSE {_STATE} END AS state,
               attempts AS attempt, extract(epoch FROM clock_timestamp() - created_at)::float AS age_seconds,
               run_at AS next_run_at, lease_expires_at AS lease_until, last_error
        FROM reply_jobs
    ) AS jobs
    WHERE CAST(:state AS text) IS NULL OR state = :state
    ORDER BY CASE WHEN :is_newest_first THEN -age_seconds ELSE age_seconds END DESC, reply_id LIMIT :limit
""")  # noqa: S608

# By the key, whose first 48 bits are milliseconds: what this costs depends on the hour's traffic, not on the table.
_LAST_HOUR = text("""
    SELECT status, error, count(*) AS count FROM messages
    WHERE id >= :since AND message_type = 'ai' AND status IN ('completed', 'failed', 'stopped')
    GROUP BY status, error ORDER BY status, error
""")


@dataclass(frozen=True)
class Summary:
    """How many replies are unfinished, and how long they have been.

    `queue_age_seconds` is for how long what a worker could take has been waiting for one.
    """

    waiting: int
    running: int
    retrying: int
    stopping: int
    most_attempts: int
    oldest_seconds: float
    queue_age_seconds: float


@dataclass(frozen=True)
class Sweeping:
    """For how long sweepers have left alone what they should see to, and how long ago one gave a sign of life.

    `swept_seconds` is None when none ever did.
    """

    unrung_seconds: float
    swept_seconds: float | None


@dataclass(frozen=True)
class Job:
    """An unfinished reply."""

    reply_id: UUID
    room_id: UUID
    user_id: UUID
    state: str
    attempt: int
    age_seconds: float
    next_run_at: datetime
    lease_until: datetime | None
    last_error: str | None


def read_summary() -> Summary:
    """Return what is unfinished, in one query over its jobs alone."""
    return Summary(**db.session.execute(_SUMMARY).one()._asdict())


def read_sweeping() -> Sweeping:
    """Return whether there is a sweeper, by what it does and by its sign of life."""
    return Sweeping(**db.session.execute(_SWEEPING, {"name": SWEEPS.name}).one()._asdict())


def read_last_hour() -> list[dict[str, Any]]:
    """Return how the replies that were asked for within the last hour have ended."""
    since = UUID(int=int((time.time() - 3600) * 1000) << 80)
    return [row._asdict() for row in db.session.execute(_LAST_HOUR, {"since": since})]


def list_jobs(state: str | None, limit: int, *, is_newest_first: bool = False) -> list[Job]:
    """Return up to `limit` unfinished replies, those in `state` alone if it is given."""
    parameters = {"state": state, "limit": limit, "is_newest_first": is_newest_first}
    return [Job(**row._asdict()) for row in db.session.execute(_LIST, parameters)]


def read_queues() -> dict[str, dict[str, int]] | None:
    """Return the lengths of Dramatiq's lists by queue: `ready`, `delayed` and `dead`. None when Redis is away."""
    broker: QueueBroker = current_app.extensions["broker"]

    def read(client: redis.Redis) -> list[int]:
        pipeline = client.pipeline(transaction=False)
        for queue in QUEUES:
            pipeline.llen(f"{NAMESPACE}:{queue}")
            pipeline.llen(f"{NAMESPACE}:{queue}.DQ")
            pipeline.zcard(f"{NAMESPACE}:{queue}.XQ")
        return pipeline.execute()

    try:
        found = iter(broker.nodes.run(NAMESPACE, read))
    except (redis.RedisError, OSError):
        return None
    return {queue: {name: next(found) for name in ("ready", "delayed", "dead")} for queue in QUEUES}


def as_json(job: Job) -> dict[str, Any]:
    """Return `job` in values that JSON has."""
    return {
        name: value.isoformat() if isinstance(value, datetime) else str(value) if isinstance(value, UUID) else value
        for name, value in asdict(job).items()
    }
