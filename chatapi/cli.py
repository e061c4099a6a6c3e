"""The `flask` commands, and how `flask` comes to them: also while the settings are refused."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import click
from flask import Flask, current_app
from flask.cli import AppGroup, NoAppException, with_appcontext

from chatapi.accounts_cli import otp_commands, user_commands
from chatapi.billing_cli import billing_commands
from chatapi.broker import ring_patiently
from chatapi.demo.command import seed_demo
from chatapi.doctor.command import doctor
from chatapi.doctor.redis_command import redis_check
from chatapi.jobs_cli import jobs_commands
from chatapi.logs import OutputHandler
from chatapi.replies.sweeper import run_sweeper
from chatapi.terminal import FAULTS, REFUSED_SETTINGS, Service, examples
from config import ConfigError


@click.command("sweeper", cls=Service, epilog=examples("flask sweeper"))
@with_appcontext
def sweeper() -> None:
    """Ring again for due work that Redis or a dead worker forgot. Runs until it is stopped."""
    stop = threading.Event()

    def end(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    ring_patiently(current_app)
    run_sweeper(stop)


COMMANDS: tuple[click.Command, ...] = (
    *(sweeper, doctor, redis_check, seed_demo),
    *(user_commands, otp_commands, jobs_commands, billing_commands),
)


def register_commands(app: Flask) -> None:
    """Add our commands to `flask`."""
    for command in COMMANDS:
        app.cli.add_command(command)


@contextmanager
def quiet_start() -> Iterator[None]:
    """Keep what is logged while the application is made off a command's standard output."""
    if click.get_current_context(silent=True) is None:
        yield
        return
    # The log goes past whatever is put in the place of `sys.stdout`.
    output, sys.__stdout__ = sys.__stdout__, sys.stderr  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        sys.__stdout__ = output  # type: ignore[misc]
    for handler in logging.getLogger().handlers:
        if isinstance(handler, OutputHandler):
            handler.stream = output


def commands_alone(error: ConfigError) -> Flask:
    """Return an application that has our commands and nothing else, for `flask` while the settings are refused.

    Raises `NoAppException` for all others who want the application: servers, and commands of Flask's own.
    """
    sentence = f"{error}\nThe service's own commands are there once that is put right. `flask doctor` is there now."
    context = click.get_current_context(silent=True)
    # Flask looks for a command by the name it was given, or lists them all, before there is one that has a context.
    if context is None or context.parent is not None:
        raise NoAppException(sentence)
    app = Flask("chatapi")
    app.config.update({REFUSED_SETTINGS: sentence, FAULTS: tuple(error.faults)})
    app.cli = _RefusedGroup(sentence)
    register_commands(app)
    return app


class _RefusedGroup(AppGroup):
    def __init__(self, sentence: str) -> None:
        super().__init__()
        self._sentence = sentence

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        found = super().get_command(ctx, name)
        if found is None:
            # Perhaps it is one of an extension's, such as `flask db`: nobody can tell before there is an application.
            raise click.ClickException(self._sentence)
        return found

    def list_commands(self, ctx: click.Context) -> list[str]:
        click.secho(f"Error: {self._sentence}\n", err=True, fg="red")
        return super().list_commands(ctx)
