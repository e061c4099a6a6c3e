"""Applications on empty databases of their own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg2
import pytest
from flask import Flask

from chatapi.app import create_app
from chatapi.extensions import db
from tests.migrations.support import copy_migrations
from tests.support import Services

_numbers = itertools.count()


@pytest.fixture
def fresh_app(services: Services) -> Iterator[Flask]:
    """An application on an empty database of its own."""
    name = f"migrations_{next(_numbers)}"
    connection = psycopg2.connect(services.postgres.url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
        app = create_app(
            {**services.environ, "DATABASE_URL": services.postgres.url.replace("@/postgres?", f"@/{name}?")}
        )
        with app.app_context():
            yield app
            db.session.remove()
            db.engine.dispose()
        cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")
    connection.close()


@pytest.fixture
def connect(fresh_app: Flask) -> Iterator[Callable[[], psycopg2.extensions.connection]]:
    """Return what opens one more connection to that database, past the application's own."""
    opened: list[psycopg2.extensions.connection] = []

    def connect() -> psycopg2.extensions.connection:
        url = fresh_app.config["DATABASE_URL"].replace("postgresql+psycopg2://", "postgresql://")
        opened.append(psycopg2.connect(url))
        return opened[-1]

    yield connect
    for connection in opened:
        connection.close()


@pytest.fixture
def migrations(tmp_path: Path) -> Path:
    """A copy of the migrations, for adding to."""
    return copy_migrations(tmp_path)
