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
from uuid import UUID

import click
from flask.cli import AppGroup
from sqlalchemy.exc import SQLAlchemyError

from chatapi.accounts_cli import as_json, at_terminal
from chatapi.errors import NotFoundError
from chatapi.extensions import db, in_transaction
from chatapi.ids import parse_id
from chatapi.replies import interventions, monitor
from chatapi.replies.interventions import RefusedError
from chatapi.schemas import rfc3339

jobs_commands = AppGroup("jobs", help="Replies that are not finished: show them, hurry them, end them.")

REPLY_IDS = click.argument("reply_ids", metavar="REPLY_ID...", nargs=-1)


@jobs_commands.command("status")
@as_json
@at_terminal()
def show_status(is_json: bool) -> None:
    """Count the unfinished replies, the messages in Redis, and how the last hour's replies ended."""
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


@jobs_commands.command("list")
@click.option("--state", type=click.Choice(monitor.STATES), help="Only those in this state.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@click.option("--newest", is_flag=True, help="Newest first, not oldest.")
@as_json
@at_terminal()
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


@jobs_commands.command("retry")
@REPLY_IDS
@click.option("--all", "is_all", is_flag=True, help="Every reply that waits for a retry.")
@at_terminal()
def retry(reply_ids: tuple[str, ...], is_all: bool) -> None:
    """Let the next attempt at REPLY_ID... be due now instead of at its time.

    Replies that have ended are refused: their owner can have them made anew.
    """
    if is_all == bool(reply_ids):
        raise click.UsageError("Name replies, or say --all.")
    if is_all:
        click.echo(f"{interventions.retry_all()} replies are due now.")
        return
    _each(reply_ids, lambda reply_id: f"{reply_id} {interventions.retry_reply(reply_id)}.")


@jobs_commands.command("fail")
@REPLY_IDS
@click.option(
    "--reason",
    type=click.Choice(interventions.REASONS),
    default="upstream_unavailable",
    show_default=True,
    help="What their owner is told.",
)
@at_terminal()
def fail(reply_ids: tuple[str, ...], reason: str) -> None:
    """End the unfinished replies REPLY_ID... as failed, and give their prompts back.

    A worker that is at one loses it at once, and what it still brings is refused.
    """
    if not reply_ids:
        raise click.UsageError("Name replies.")

    def end(reply_id: UUID) -> str:
        interventions.fail_reply(reply_id, reason)
        return f"{reply_id} has failed ({reason})."

    _each(reply_ids, end)


@jobs_commands.command("watch")
@click.option("--interval", type=click.FloatRange(0.1, 3600), default=2.0, show_default=True, help="Seconds.")
@at_terminal()
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


def _each(reply_ids: tuple[str, ...], work: Callable[[UUID], str]) -> None:
    """Do `work` to each reply and say what came of it; what is refused goes to standard error and makes it exit 1."""
    is_refused = False
    for reply_id in _parsed(reply_ids):
        try:
            click.echo(work(reply_id))
        except RefusedError as error:
            click.echo(str(error), err=True)
            is_refused = True
    if is_refused:
        raise click.exceptions.Exit(1)


def _parsed(reply_ids: tuple[str, ...]) -> list[UUID]:
    """Return the ids, or end the command with status 1 before anything is done when one is none."""
    try:
        return [parse_id(reply_id, repr(reply_id)) for reply_id in reply_ids]
    except NotFoundError as error:
        raise click.ClickException(f"{error.message}: that is no id of a reply.") from None
