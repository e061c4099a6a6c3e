"""Fixtures that make one attempt at a reply, and look at its rows; the packages that need them import them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pytest
from flask import Flask
from sqlalchemy import Row, text

from chatapi.extensions import db
from chatapi.replies.gemini.generativeai import GenerativeAIClient
from chatapi.replies.generate import ReplyMaker
from chatapi.replies.leases import LeaseKeeper
from chatapi.replies.publisher import Publisher
from tests.support import Services

TIMEOUT_SECONDS = 1.0


@pytest.fixture(scope="module")
def model(services: Services) -> Iterator[GenerativeAIClient]:
    client = GenerativeAIClient(api_key=None, endpoint=services.gemini.url, timeout_seconds=TIMEOUT_SECONDS)
    yield client
    client.close()


@pytest.fixture
def keeper(app: Flask) -> LeaseKeeper:
    return LeaseKeeper(app, most_seconds=60)


@pytest.fixture
def attempt(
    app: Flask, model: GenerativeAIClient, keeper: LeaseKeeper, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """Return what makes one attempt at a reply, as the actor does, each in an application context of its own."""
    monkeypatch.setitem(app.config, "GEMINI_TIMEOUT_SECONDS", TIMEOUT_SECONDS)

    publisher = Publisher(app)

    def attempt(reply_id: str, client: Any = model) -> None:
        with app.app_context():
            ReplyMaker(client, keeper, publisher).generate_reply(UUID(reply_id))

    return attempt


@pytest.fixture
def sql(app: Flask) -> Callable[..., Row[Any] | None]:
    """Return what runs one statement and commits; it returns the row, if there is one."""

    def sql(statement: str, **parameters: Any) -> Row[Any] | None:
        with app.app_context():
            result = db.session.execute(text(statement), parameters)
            row = result.one_or_none() if result.returns_rows else None
            db.session.commit()
            return row

    return sql


@pytest.fixture
def make_due(sql: Callable[..., Any]) -> Callable[[str], None]:
    """Return what ends the wait before the next attempt."""
    return lambda reply_id: sql("UPDATE reply_jobs SET run_at = now() WHERE message_id = :id", id=reply_id)
