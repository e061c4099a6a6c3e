"""Migrations: one head, the models' own schema, and a way down and up again that works on a filled database."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg2
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from flask import Flask
from flask_migrate import downgrade, upgrade
from sqlalchemy import text

from chatapi.app import MIGRATIONS, create_app
from chatapi.auth.sessions import hash_token
from chatapi.extensions import Base, db
from tests.support import Services


@pytest.fixture
def fresh_app(services: Services) -> Iterator[Flask]:
    """An application on an empty database of its own."""
    connection = psycopg2.connect(services.postgres.url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("CREATE DATABASE migrations")
    url = services.postgres.url.replace("@/postgres?", "@/migrations?")
    app = create_app({**services.environ, "DATABASE_URL": url})
    with app.app_context():
        yield app
        db.session.remove()
        db.engine.dispose()
    with connection.cursor() as cursor:
        cursor.execute("DROP DATABASE migrations")
    connection.close()


def test_migrations_have_one_head() -> None:
    assert len(ScriptDirectory(str(MIGRATIONS)).get_heads()) == 1


def test_migrations_make_what_the_models_say(fresh_app: Flask) -> None:
    upgrade()

    with db.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []


def test_migrations_go_down_and_up_when_there_are_rows(fresh_app: Flask) -> None:
    upgrade()
    db.session.execute(text("INSERT INTO users (id, mobile_number, number_hash) VALUES (gen_random_uuid(), '+15', '')"))
    db.session.execute(text("INSERT INTO chatrooms (id, user_id) SELECT gen_random_uuid(), id FROM users"))
    db.session.commit()
    db.session.remove()

    downgrade(revision="base")
    assert db.inspect(db.engine).get_table_names() == ["alembic_version"]
    upgrade()

    assert set(db.inspect(db.engine).get_table_names()) == {"alembic_version", *Base.metadata.tables}


def test_refresh_tokens_go_on_when_sessions_come_and_go(fresh_app: Flask) -> None:
    upgrade(revision="0001")
    token = "a refresh token of the earlier release"
    db.session.execute(text("INSERT INTO users (id, mobile_number, number_hash) VALUES (gen_random_uuid(), '+15', '')"))
    db.session.execute(
        text(
            "INSERT INTO refresh_tokens (id, user_id, family_id, token_hash, expires_at) "
            "SELECT gen_random_uuid(), id, gen_random_uuid(), :hash, now() + interval '1 day' FROM users"
        ),
        {"hash": hash_token(token)},
    )
    db.session.commit()
    db.session.remove()

    upgrade()
    answer = fresh_app.test_client().post("/auth/refresh", json={"refresh_token": token})
    assert answer.status_code == 200
    headers = {"Authorization": f"Bearer {answer.get_json()['token']}"}
    assert fresh_app.test_client().get("/user/me", headers=headers).status_code == 200
    db.session.remove()
    downgrade(revision="0001")

    left = db.session.execute(text("SELECT user_id, token_hash FROM refresh_tokens")).all()
    users = db.session.scalars(text("SELECT id FROM users")).all()
    assert [(row.user_id, bytes(row.token_hash)) for row in left] == [
        (users[0], hash_token(answer.get_json()["refresh_token"]))
    ]


def test_readiness_is_503_when_the_schema_is_older_and_200_when_it_is_newer(fresh_app: Flask) -> None:
    upgrade()
    client = fresh_app.test_client()
    fresh_app.config["KNOWN_REVISIONS"] |= {"9999"}
    fresh_app.config["HEAD_REVISION"] = "9999"

    older = client.get("/health/ready")
    db.session.execute(text("UPDATE alembic_version SET version_num = 'from-the-future'"))
    db.session.commit()
    newer = client.get("/health/ready")
    db.session.execute(text("DELETE FROM alembic_version"))
    db.session.commit()
    none_at_all = client.get("/health/ready")

    assert [answer.status_code for answer in (older, newer, none_at_all)] == [503, 200, 503]
    assert "flask db upgrade" in older.get_json()["checks"]["postgresql"]
