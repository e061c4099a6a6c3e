"""The `flask` commands."""

from __future__ import annotations

import signal
import threading
from types import FrameType

import click
from flask import Flask
from flask.cli import with_appcontext

from chatapi.accounts_cli import otp_commands, user_commands
from chatapi.billing_cli import billing_commands
from chatapi.jobs_cli import jobs_commands
from chatapi.replies.sweeper import run_sweeper


@click.command("sweeper")
@with_appcontext
def sweeper() -> None:
    """Ring again for due work that Redis or a dead worker forgot. Runs until it is stopped."""
    stop = threading.Event()

    def end(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    run_sweeper(stop)


def register_commands(app: Flask) -> None:
    """Add our commands to `flask`."""
    for command in (sweeper, user_commands, otp_commands, jobs_commands, billing_commands):
        app.cli.add_command(command)
