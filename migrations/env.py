"""Alembic's environment: runs migrations over DATABASE_DIRECT_URL, which may lead past a pooler."""

from alembic import context
from flask import current_app
from sqlalchemy import create_engine, pool, text

import chatapi.auth.models
import chatapi.chatrooms.models
import chatapi.quota
import chatapi.subscriptions.models  # noqa: F401 - all models must be known before a comparison
from chatapi.extensions import Base

LOCK_TIMEOUT = "5s"
"""A migration that waits for a lock makes everybody behind it wait too: it gives up instead, and is run again."""


def run_migrations() -> None:
    """Run what is asked for in one transaction, one runner at a time."""
    url = current_app.config["DATABASE_DIRECT_URL"]
    engine = create_engine(url, poolclass=pool.NullPool, connect_args={"connect_timeout": 5})
    with engine.connect() as connection:
        context.configure(connection=connection, target_metadata=Base.metadata, compare_server_default=True)
        with context.begin_transaction():
            connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))
            connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('chatapi-migrations'))"))
            context.run_migrations()
    engine.dispose()


if context.is_offline_mode():
    context.configure(url=current_app.config["DATABASE_DIRECT_URL"], target_metadata=Base.metadata, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()
else:
    run_migrations()
