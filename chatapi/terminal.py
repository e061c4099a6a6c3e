"""What all commands share: how they read their arguments, and how they say what went wrong."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import click
import redis
from flask import current_app
from flask.cli import AppGroup
from marshmallow import ValidationError
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError, SQLAlchemyError

from chatapi.errors import ChatAPIError, NotFoundError
from chatapi.extensions import db
from chatapi.ids import parse_id
from chatapi.logs import logs_to_stderr
from chatapi.schemas import MobileNumber

REFUSED_SETTINGS = "REFUSED_SETTINGS"
"""In the configuration of an application that has commands and nothing else: why there is no other one."""

FAULTS = "FAULTS"
"""There too: each of the faults."""

SCHEMA_IS_ANOTHER = ("42P01", "42703")
"""undefined_table and undefined_column."""
TOOK_TOO_LONG = ("55P03", "57014", "25P03")
"""lock_not_available, query_canceled and idle_in_transaction_session_timeout."""


class Command(click.Command):
    """A command whose failures are sentences; `needs_settings` says that it is of no use while those are refused."""

    needs_settings = True

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments. What is no UTF-8 is no id, number or name of anything here."""
        for word in args:
            if not _is_utf8(word):
                raise click.UsageError(f"{os.fsencode(word)!r} is not UTF-8.", ctx)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        self.refuse_without_settings()
        with at_terminal():
            return super().invoke(ctx)

    def refuse_without_settings(self) -> None:
        """Say in the command's place that the settings are refused, if they are."""
        refused = current_app.config.get(REFUSED_SETTINGS) if current_app else None
        if refused is not None and self.needs_settings:
            raise click.ClickException(refused)


class Service(Command):
    """A command that is a process of the service: its log goes where theirs go."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run it until it is stopped."""
        self.refuse_without_settings()
        return click.Command.invoke(self, ctx)


class Group(AppGroup):
    """A group of such commands."""

    command_class = Command


@contextmanager
def at_terminal() -> Iterator[None]:
    """Keep logs off standard output, and say in a sentence what is away or refused."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names may have characters that the terminal has not.
        sys.stdout.reconfigure(errors="backslashreplace")
    with logs_to_stderr():
        try:
            yield
        except SQLAlchemyError as error:
            if current_app:
                db.session.rollback()
            raise click.ClickException(_sentence(error)) from None
        except redis.RedisError as error:
            raise click.ClickException(f"Redis does not answer as it should ({type(error).__name__}).") from None
        except ChatAPIError as error:
            raise click.ClickException(f"{error.message.rstrip('.')}.") from None


def examples(*lines: str) -> str:
    """Return the epilog of a command's help, as click leaves it alone."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


class NumberType(click.ParamType[str]):
    """A mobile number, in its one canonical form."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return `value` as `+` and digits."""
        try:
            return str(MobileNumber().deserialize(value))
        except ValidationError as error:
            self.fail(" ".join(error.messages), param, ctx)


class IdType(click.ParamType[UUID]):
    """An id of ours."""

    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> UUID:
        """Return `value` as an id."""
        try:
            return parse_id(str(value), repr(value))
        except NotFoundError:
            self.fail(f"{value!r} is not an id.", param, ctx)


NUMBER = NumberType()
ID = IdType()
as_json = click.option("--json", "is_json", is_flag=True, help="Print JSON.")


def for_each(names: tuple[Any, ...], work: Callable[[Any], str], refused: type[Exception]) -> None:
    """Do `work` to each and say what came of it; what is refused goes to standard error, and the status is 1."""
    is_refused = False
    for name in names:
        try:
            click.echo(work(name))
        except refused as error:
            click.echo(str(error), err=True)
            is_refused = True
    if is_refused:
        raise click.exceptions.Exit(1)


def _sentence(error: SQLAlchemyError) -> str:
    state = getattr(error.orig, "pgcode", None) if isinstance(error, DBAPIError) else None
    if state in TOOK_TOO_LONG:
        return "PostgreSQL took too long: somebody holds what this needs, or it has too much to do. Try again."
    if isinstance(error, ProgrammingError) and state in SCHEMA_IS_ANOTHER:
        return "The schema of the database is not that of this code: run `flask db upgrade`."
    if isinstance(error, OperationalError) or not isinstance(error, DBAPIError):
        return "PostgreSQL does not answer: is DATABASE_URL right, and is it up?"
    return f"PostgreSQL refuses this ({type(error).__name__}, {state or 'no code'})."


def _is_utf8(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True
