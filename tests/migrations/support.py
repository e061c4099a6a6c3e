"""Databases of one's own, copies of the migrations with more in them, and what a schema consists of."""

from __future__ import annotations

import shutil
from pathlib import Path
from textwrap import indent

from sqlalchemy import text

from chatapi.app import MIGRATIONS
from chatapi.extensions import db

SCHEMA = """
    SELECT 'column', table_name, concat_ws(' ', column_name, data_type, is_nullable, column_default)
    FROM information_schema.columns WHERE table_schema = 'public'
    UNION ALL
    SELECT 'index', tablename, indexdef FROM pg_indexes WHERE schemaname = 'public'
    UNION ALL
    SELECT 'constraint', conrelid::regclass::text, concat_ws(' ', conname, convalidated, pg_get_constraintdef(oid))
    FROM pg_constraint WHERE connamespace = 'public'::regnamespace
    UNION ALL
    SELECT 'sequence', sequencename, data_type::text FROM pg_sequences WHERE schemaname = 'public'
"""


def schema() -> set[tuple[str, ...]]:
    """Return what the database's schema consists of; the order of columns is no part of it."""
    parts = {tuple(row) for row in db.session.execute(text(SCHEMA))}
    db.session.remove()
    return parts


def copy_migrations(to: Path) -> Path:
    """Return a copy of the migrations, for adding to."""
    return Path(shutil.copytree(MIGRATIONS, to / "migrations", ignore=shutil.ignore_patterns("__pycache__")))


def add_migration(
    folder: Path, revision: str, down_revision: str, upgrade: str, downgrade: str = "pass", *, risks: str = ""
) -> None:
    """Write one more migration, of these lines."""
    lines = [
        '"""Made up."""',
        "import sqlalchemy as sa",
        "from alembic import op",
        f"revision = {revision!r}",
        f"down_revision = {down_revision!r}",
        risks,
        "def upgrade():\n" + indent(upgrade, "    "),
        "def downgrade():\n" + indent(downgrade, "    "),
    ]
    (folder / "versions" / f"{revision}_made_up.py").write_text("\n".join(lines) + "\n")
