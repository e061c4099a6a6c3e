"""Two releases on one schema, as in every rolling deployment: the one before the migration, and the one after it."""

from __future__ import annotations

from pathlib import Path

import pytest
from flask import Flask
from flask_migrate import downgrade, upgrade
from sqlalchemy import text

from chatapi.extensions import db
from tests.migrations.support import add_migration

EXPAND = """
op.add_column("messages", sa.Column("mood", sa.Text(), nullable=True))
op.add_column("users", sa.Column("locale", sa.Text(), server_default="en", nullable=False))
op.create_table("moods", sa.Column("id", sa.Uuid(), primary_key=True))
"""
CONTRACT = 'op.drop_table("moods"); op.drop_column("users", "locale"); op.drop_column("messages", "mood")'


@pytest.fixture
def newer(fresh_app: Flask, migrations: Path) -> Path:
    """The migrations of a release to come, which only expands."""
    add_migration(migrations, "9001", fresh_app.config["HEAD_REVISION"], EXPAND, CONTRACT)
    return migrations


def converse(app: Flask, number: str) -> list[int]:
    """Sign somebody in who opens a room, sends a prompt and reads it; return the statuses."""
    client = app.test_client()
    sent = client.post("/auth/send-otp", json={"mobile_number": number})
    body = {"mobile_number": number, "otp": sent.get_json()["otp"]}
    verified = client.post("/auth/verify-otp", json=body)
    headers = {"Authorization": f"Bearer {verified.get_json()['token']}"}
    room = client.post("/chatroom", json={"title": "של"}, headers=headers)
    path = f"/chatroom/{room.get_json()['chatroom']['id']}"
    prompt = client.post(f"{path}/message", json={"content": "مرحبا"}, headers=headers)
    read = client.get(path, headers=headers)
    gone = client.delete("/user/me", headers=headers)
    return [answer.status_code for answer in (sent, verified, room, prompt, read, gone)]


def test_release_before_goes_on_working_when_the_schema_was_expanded(fresh_app: Flask, newer: Path) -> None:
    upgrade()
    before = converse(fresh_app, "+15550100001")
    upgrade(directory=newer)
    after = converse(fresh_app, "+15550100002")

    assert before == after == [200, 200, 201, 201, 200, 204]


def test_readiness_is_503_when_the_schema_is_older_and_200_when_it_is_newer(fresh_app: Flask, newer: Path) -> None:
    client = fresh_app.test_client()
    upgrade(revision="0001")
    older = client.get("/health/ready")
    upgrade()
    same = client.get("/health/ready")
    upgrade(directory=newer)
    later = client.get("/health/ready")
    db.session.execute(text("DELETE FROM alembic_version"))
    db.session.commit()
    none_at_all = client.get("/health/ready")

    assert [answer.status_code for answer in (older, same, later, none_at_all)] == [503, 200, 200, 503]
    assert "flask db upgrade" in older.get_json()["checks"]["postgresql"]


def test_upgrade_of_the_release_before_leaves_a_newer_schema_alone(
    fresh_app: Flask, newer: Path, caplog: pytest.LogCaptureFixture
) -> None:
    upgrade(directory=newer)
    upgrade()

    assert "schema_newer_than_code" in caplog.text
    assert db.session.scalar(text("SELECT version_num FROM alembic_version")) == "9001"


def test_release_before_does_not_take_a_newer_schema_down(fresh_app: Flask, newer: Path) -> None:
    upgrade(directory=newer)
    with pytest.raises(SystemExit):
        downgrade()
    assert db.session.scalar(text("SELECT version_num FROM alembic_version")) == "9001"
    db.session.remove()

    downgrade(directory=newer)
    assert db.session.scalar(text("SELECT version_num FROM alembic_version")) == fresh_app.config["HEAD_REVISION"]
