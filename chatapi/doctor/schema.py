"""How the schema of the database stands to the migrations of this code."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection, text

from chatapi.doctor.findings import Finding, failed, ok, warning
from config import ROOT

MIGRATIONS = ROOT / "migrations"


def check_schema(connection: Connection) -> Iterator[Finding]:
    """Yield how the schema stands to the migrations of this code."""
    from alembic.script import ScriptDirectory  # noqa: PLC0415 - web processes know this command, and not Alembic

    name, upgrade = "migrations", "Run `flask db upgrade` (it is safe while the service runs)."
    scripts = ScriptDirectory(str(MIGRATIONS))
    heads, known = scripts.get_heads(), [each.revision for each in scripts.walk_revisions()]
    if len(heads) > 1:
        yield failed(
            name, f"this code has {len(heads)} heads: {', '.join(heads)}", "Join them: `flask db merge heads`."
        )
        return
    if connection.scalar(text("SELECT to_regclass('alembic_version')")) is None:
        yield failed(name, "there is no schema yet", upgrade)
        return
    current = sorted(connection.scalars(text("SELECT version_num FROM alembic_version")))
    if current == heads:
        yield ok(name, f"up to date ({heads[0]})")
    elif not current:
        yield failed(name, "there is no schema yet", upgrade)
    elif len(current) > 1:
        yield failed(name, f"the database is at {', '.join(current)} at once", "Run `flask db upgrade heads`.")
    elif current[0] in known:
        behind = known.index(current[0])
        yield failed(name, f"the schema is {behind} behind this code: {current[0]}, not {heads[0]}", upgrade)
    else:
        advice = "This is as it should be while a newer release is rolled out. Else, is this the right code?"
        yield warning(name, f"the schema, {current[0]}, is newer than this code ({heads[0]})", advice)
