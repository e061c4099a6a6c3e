"""The `flask jobs` commands: what is owed a reply, how it stands, and what an operator may do about it."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import click
from sqlalchemy.exc import SQLAlchemyError

from chatapi.extensions import db, in_transaction
from chatapi.replies import interventions, monitor
from chatapi.replies.interventions import RefusedError
from chatapi.schemas import rfc3339
from chatapi.terminal import ID, Group, as_json, examples, for_each

jobs_commands = Group("jobs", help="Replies that are not finished: show, hurry, end them.")


def reply_ids(*, required: bool) -> Callable[..., Any]:
    """Return the argument that names replies."""
    about = "Ids of replies, as `flask jobs list` shows them."
    return click.argument("reply_ids", metavar="REPLY_ID...", nargs=-1, type=ID, required=required, help=about)


@jobs_commands.command("status", epilog=examples("flask jobs status", "flask jobs status --json"))
@as_json
def show_status(is_json: bool) -> None:
    """Count unfinished replies, and what waits in Redis.

    Tells too how those that were asked for within the last hour have ended.
    """
    summary, last_hour = in_transaction(lambda: (monitor.read_summary(), monitor.read_last_hour()))
    queues = monitor.read_queues()
    if is_json:
        click.echo(json.dumps({**asdict(summary), "queues": queues, "last_hour": last_hour}, indent=2))
        return
    for name, value in asdict(summary).items():
        click.echo(f"{name:<18} {value:.1f}" if isinstance(value, float) else f"{name:<18} {value}")
    if queues is None:
        click.echo("\nRedis cannot be reached. Once it is back, the sweeper rings for what is due.")
    else:
        click.echo("\nMessages in Redis:")
        for queue, lengths in queues.items():
            click.echo(f"{queue:<18} " + ", ".join(f"{length} {name}" for name, length in lengths.items()))
    click.echo("\nAsked for within the last hour, and ended:")
    for row in last_hour:
        click.echo(f"{row['status']:<18} {row['count']} {row['error'] or ''}".rstrip())


@jobs_commands.command(
    "list", epilog=examples("flask jobs list --state retrying", "flask jobs list --newest --limit 5 --json")
)
@click.option("--state", type=click.Choice(monitor.STATES), help="Only those in this state.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="At most so many.")
@click.option("--newest", is_flag=True, help="Newest first, not oldest.")
@as_json
def list_jobs(state: str | None, limit: int, newest: bool, is_json: bool) -> None:
    """List unfinished replies, oldest first."""
    jobs = in_transaction(lambda: monitor.list_jobs(state, limit, is_newest_first=newest))
    if is_json:
        click.echo(json.dumps([monitor.as_json(job) for job in jobs], indent=2))
        return
    for job in jobs:
        click.echo(
            f"{job.reply_id}  room {job.room_id}  user {job.user_id}  {job.state:<8}  attempt {job.attempt}"
            f"  age {job.age_seconds:.0f} s  next {rfc3339(job.next_run_at)}"
            f"  lease {rfc3339(job.lease_until) if job.lease_until else '-'}  {job.last_error or '-'}"
        )


@jobs_commands.command(
    "retry", epilog=examples("flask jobs retry 01a204ab-fbfd-7256-96e6-1a950ac03bd1", "flask jobs retry --all")
)
@reply_ids(required=False)
@click.option("--all", "is_all", is_flag=True, help="Every reply that waits for a retry.")
def retry(reply_ids: tuple[UUID, ...], is_all: bool) -> None:
    """Let the next attempt at REPLY_ID... be due now instead of at its time.

    Replies that have ended are refused: their owner can have them made anew.
    """
    if is_all == bool(reply_ids):
        raise click.UsageError("Name replies, or say --all.")
    if is_all:
        click.echo(f"{interventions.retry_all()} replies are due now.")
        return
    for_each(reply_ids, lambda reply_id: f"{reply_id} {interventions.retry_reply(reply_id)}.", RefusedError)


@jobs_commands.command(
    "fail", epilog=examples("flask jobs fail 01a204ab-fbfd-7256-96e6-1a950ac03bd1 --reason internal_error")
)
@reply_ids(required=True)
@click.option(
    "--reason",
    type=click.Choice(interventions.REASONS),
    default="upstream_unavailable",
    show_default=True,
    help="What their owner is told.",
)
def fail(reply_ids: tuple[UUID, ...], reason: str) -> None:
    """End the unfinished replies REPLY_ID... as failed, and give their prompts back.

    A worker that is at one loses it at once, and what it still brings is refused.
    """

    def end(reply_id: UUID) -> str:
        interventions.fail_reply(reply_id, reason)
        return f"{reply_id} has failed ({reason})."

    for_each(reply_ids, end, RefusedError)


@jobs_commands.command("watch", epilog=examples("flask jobs watch --interval 1"))
@click.option("--interval", type=click.FloatRange(0.1, 3600), default=2.0, show_default=True, help="Seconds.")
def watch(interval: float) -> None:
    """Print a line of the state of things every few seconds, until Ctrl-C."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        while not stop.is_set():
            click.echo(_line())
            stop.wait(interval)
    except BrokenPipeError:
        # Whoever read has enough, as `head` does. The interpreter would fail once more, at flushing what is left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _line() -> str:
    now = rfc3339(datetime.now(UTC))
    try:
        summary = in_transaction(monitor.read_summary)
    except SQLAlchemyError:
        return f"{now}  PostgreSQL does not answer"
    finally:
        db.session.remove()
    queues = monitor.read_queues()
    ready = "away" if queues is None else " ".join(f"{name}:{lengths['ready']}" for name, lengths in queues.items())
    return (
        f"{now}  waiting {summary.waiting}  running {summary.running}  retrying {summary.retrying}"
        f"  stopping {summary.stopping}  oldest {summary.oldest_seconds:.0f} s"
        f"  queue age {summary.queue_age_seconds:.1f} s  redis {ready}"
    )
