"""Flask-Migrate, loaded when it is asked for: Alembic would take a tenth of the memory of each web process."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from flask import Flask
from flask.cli import AppGroup

from chatapi.extensions import db

_REVISION = re.compile(r"""^revision(?:: str)? = ["'](\w+)["']""", re.MULTILINE)
_DOWN_REVISION = re.compile(r"""^down_revision(?:: [^=]+)? = (.*)$""", re.MULTILINE)
_QUOTED = re.compile(r"""["'](\w+)["']""")


@dataclass(frozen=True)
class Revisions:
    """The migrations that this code comes with; no head when there are none, or several."""

    known: frozenset[str]
    head: str | None


def read_revisions(migrations: Path) -> Revisions:
    """Return what the migrations folder holds, from what is written there."""
    texts = [path.read_text() for path in (migrations / "versions").glob("*.py")]
    known = frozenset(revision for text in texts for revision in _REVISION.findall(text))
    built_on = {
        revision for text in texts for line in _DOWN_REVISION.findall(text) for revision in _QUOTED.findall(line)
    }
    heads = list(known - built_on)
    return Revisions(known, heads[0] if len(heads) == 1 else None)


def init_migrations(app: Flask, folder: Path) -> None:
    """Give the application `flask db`, and what `flask_migrate.upgrade()` and its kin look for."""

    def load() -> Any:
        from flask_migrate import Migrate  # noqa: PLC0415 - see above

        Migrate().init_app(app, db, directory=str(folder))
        return app.extensions["migrate"]

    app.extensions["migrate"] = _Migrations(load)
    app.cli = _Commands(load, app.cli)


class _Migrations:
    """Stands for Flask-Migrate's own object, which takes its place once something of it is wanted."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self._load = load

    def __getattr__(self, name: str) -> Any:
        return getattr(self._load(), name)


class _Commands(AppGroup):
    """An application's commands, with `db` among them."""

    def __init__(self, load: Callable[[], Any], others: click.Group) -> None:
        super().__init__(others.name, commands=others.commands)
        self._load = load

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), "db"})

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name == "db" and name not in self.commands:
            self._load()  # It adds the command.
        return super().get_command(ctx, name)
