"""What can be seen of migrations without running them: one line of them, back and forth, and nothing that hurts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory

from chatapi.app import MIGRATIONS
from tests.migrations.safety import faults, rendered
from tests.migrations.support import add_migration

SCRIPTS = list(reversed(list(ScriptDirectory(str(MIGRATIONS)).walk_revisions())))


def heads_of(folder: Path) -> list[str]:
    return ScriptDirectory(str(folder)).get_heads()


def faults_of(folder: Path, revision: str) -> list[str]:
    script = ScriptDirectory(str(folder)).get_revision(revision)
    assert script
    return faults(script)


def test_migrations_have_one_head() -> None:
    assert len(heads_of(MIGRATIONS)) == 1


def test_second_head_is_seen_when_two_migrations_follow_the_same(migrations: Path) -> None:
    add_migration(migrations, "8001", SCRIPTS[-1].revision, "pass")
    add_migration(migrations, "8002", SCRIPTS[-1].revision, "pass")

    assert sorted(heads_of(migrations)) == ["8001", "8002"]


def test_migrations_are_numbered_in_their_order() -> None:
    names = [Path(script.path).name for script in SCRIPTS]

    assert [script.revision for script in SCRIPTS] == [f"{number:04d}" for number in range(1, len(SCRIPTS) + 1)]
    assert sorted(names) == names == sorted(path.name for path in (MIGRATIONS / "versions").glob("*.py"))
    for script, name in zip(SCRIPTS, names, strict=True):
        assert re.fullmatch(rf"{script.revision}_[a-z0-9_]+\.py", name)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.revision)
def test_migration_has_a_way_back_and_names_its_risks(script: object) -> None:
    assert faults(script) == []
    assert bool(rendered(script.module.downgrade)) == bool(rendered(script.module.upgrade))
    assert script.doc, "what it is for"


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE messages ADD COLUMN mood text",
        "ALTER TABLE messages ADD COLUMN IF NOT EXISTS mood numeric(10, 2)",
        "ALTER TABLE messages ADD COLUMN seen_at TIMESTAMP WITH TIME ZONE",
        "ALTER TABLE messages ADD COLUMN seen_at timestamptz DEFAULT now() NOT NULL",
        "ALTER TABLE messages ADD COLUMN mood varchar(20) DEFAULT 'well' NOT NULL",
        "ALTER TABLE messages ADD COLUMN words text[]",
        "ALTER TABLE messages ADD CONSTRAINT ck_mood CHECK (mood IN ('well', 'ill')) NOT VALID",
        "ALTER TABLE messages ADD CONSTRAINT fk_a FOREIGN KEY(a) REFERENCES b (id) ON DELETE CASCADE NOT VALID",
        "ALTER TABLE messages VALIDATE CONSTRAINT ck_mood",
        "ALTER TABLE messages ADD CONSTRAINT uq_mood UNIQUE USING INDEX uq_mood",
        "CREATE INDEX CONCURRENTLY IF NOT EXISTS ix_mood ON messages (mood)",
        "CREATE UNIQUE INDEX CONCURRENTLY uq_mood ON messages (mood)",
        "DROP INDEX CONCURRENTLY IF EXISTS ix_mood",
        "CREATE TABLE moods (id uuid PRIMARY KEY)",
        "CREATE FUNCTION mood() RETURNS text LANGUAGE plpgsql AS $$ BEGIN\n PERFORM 1;\n RETURN 'well';\nEND $$",
    ],
)
def test_statement_passes_when_it_only_adds(migrations: Path, statement: str) -> None:
    add_migration(migrations, "8001", SCRIPTS[-1].revision, f"op.execute({statement!r})")

    assert faults_of(migrations, "8001") == []


RISKY = (
    "DROP TABLE messages",
    "TRUNCATE messages",
    "ALTER TABLE messages DROP COLUMN model",
    "ALTER TABLE messages RENAME COLUMN model TO alias",
    "ALTER TABLE messages RENAME TO texts",
    "ALTER TABLE messages ALTER COLUMN model SET NOT NULL",
    "ALTER TABLE messages ALTER COLUMN seq TYPE numeric",
    "ALTER TABLE messages ALTER COLUMN seq DROP DEFAULT",
    "ALTER TABLE messages ADD COLUMN mood text NOT NULL",
    "ALTER TABLE messages ADD COLUMN mood text DEFAULT 'well', DROP COLUMN model",
    "ALTER TABLE messages ADD COLUMN mood uuid DEFAULT gen_random_uuid() NOT NULL",
    "ALTER TABLE messages ADD COLUMN mood bigserial",
    "ALTER TABLE messages ADD COLUMN mood text GENERATED ALWAYS AS (lower(content)) STORED",
    "ALTER TABLE messages ADD COLUMN mood uuid REFERENCES moods (id)",
    "ALTER TABLE messages ADD CONSTRAINT ck_mood CHECK (mood IN ('well', 'ill'))",
    "ALTER TABLE messages ADD CONSTRAINT fk_a FOREIGN KEY(a) REFERENCES b (id)",
    "ALTER TABLE messages ADD CONSTRAINT uq_mood UNIQUE (mood)",
    "ALTER TABLE messages DROP CONSTRAINT fk_messages_room_id_chatrooms",
    "ALTER TABLE messages DISABLE TRIGGER ALL",
    "CREATE INDEX ix_mood ON messages (mood)",
    "CREATE UNIQUE INDEX uq_mood ON messages (mood)",
    "DROP INDEX ix_messages_search",
    "UPDATE messages SET model = NULL",
    "DELETE FROM messages",
    "LOCK TABLE messages",
    "VACUUM FULL messages",
    "CREATE OR REPLACE FUNCTION accept_prompt() RETURNS text LANGUAGE sql RETURN 'no'",
    "DROP FUNCTION accept_prompt",
    "CREATE TRIGGER t BEFORE INSERT ON messages FOR EACH ROW EXECUTE FUNCTION f()",
)


@pytest.mark.parametrize("statement", RISKY)
def test_statement_is_a_fault_when_it_may_break_or_block_and_the_migration_does_not_say_so(
    migrations: Path, statement: str
) -> None:
    add_migration(migrations, "8001", SCRIPTS[-1].revision, f"op.execute({statement!r})")
    add_migration(
        migrations, "8002", "8001", f"op.execute({statement!r})", risks=f"RISKS = {{{statement!r}: 'for a reason'}}"
    )

    assert faults_of(migrations, "8001") == [statement]
    assert faults_of(migrations, "8002") == []


def test_risk_is_a_fault_when_nothing_takes_it_or_nothing_is_said_for_it(migrations: Path) -> None:
    add_migration(migrations, "8001", SCRIPTS[-1].revision, "pass", risks="RISKS = {'DROP TABLE x': 'for a reason'}")
    add_migration(migrations, "8002", "8001", "op.drop_table('x')", risks="RISKS = {'DROP TABLE x': ''}")

    assert faults_of(migrations, "8001") == ["nothing begins with 'DROP TABLE x'"]
    assert faults_of(migrations, "8002") == ["no reason for 'DROP TABLE x'"]
