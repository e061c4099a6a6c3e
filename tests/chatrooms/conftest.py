"""What makes one attempt at a reply in these tests too, and looks at its rows; and answers read piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from flask import Flask

from chatapi.app import create_app
from chatapi.extensions import db
from tests.attempts import attempt, keeper, make_due, model, sql
from tests.support import Account, ReadingClient, Services

__all__ = ["attempt", "keeper", "make_due", "model", "sql"]


@pytest.fixture
def unchecked(services: Services, sign_in: Callable[..., Account]) -> Iterator[tuple[Flask, Account]]:
    """Somebody on an application whose answers are not read before they are on their way."""
    app = create_app(services.environ)
    app.test_client_class = ReadingClient
    yield app, sign_in(via=app.test_client())
    with app.app_context():
        db.engine.dispose()
