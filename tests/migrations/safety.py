"""What in a migration could break the release before it, or keep others waiting: found in the SQL that it renders.

Known harmless kinds of statements pass, all others are findings: what nobody thought of is one too. A migration that
must do such a thing says so itself, in `RISKS`: the beginning of the statement, and why it will do.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from io import StringIO

from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import Script

_LITERAL = r"('[^']*'(::\w+)?|-?[0-9.]+|true|false|NULL|now\(\)|CURRENT_TIMESTAMP)"
_NO_TYPE = r"NOT|NULL|DEFAULT|GENERATED|REFERENCES|UNIQUE|PRIMARY|CHECK|\w*SERIAL"
_TYPE_WORD = rf"(?!({_NO_TYPE})\b)\w+(\(\))?(\[\])?"
_COLUMN = rf"\w+( {_TYPE_WORD})+( DEFAULT {_LITERAL}( NOT NULL)?)?( NULL)?"

HARMLESS = (
    r"(BEGIN|COMMIT)$",
    r"CREATE (TABLE|SEQUENCE|FUNCTION) ",
    r"COMMENT ON ",
    r"ANALYZE \w+$",
    r"INSERT INTO ",
    r"CREATE (UNIQUE )?INDEX CONCURRENTLY ",
    r"DROP INDEX CONCURRENTLY IF EXISTS \w+$",
    # A default that is the same for all rows is written once, and not into each of them.
    rf"ALTER TABLE \w+ ADD COLUMN (IF NOT EXISTS )?{_COLUMN}$",
    r"ALTER TABLE \w+ ADD CONSTRAINT \w+ (CHECK|FOREIGN KEY)\b.*NOT VALID$",
    r"ALTER TABLE \w+ ADD CONSTRAINT \w+ (UNIQUE|PRIMARY KEY) USING INDEX \w+$",
    r"ALTER TABLE \w+ VALIDATE CONSTRAINT \w+$",
)
ON_TABLE = r"(?:CREATE (?:UNIQUE )?INDEX \S+ ON|ALTER TABLE|UPDATE|DELETE FROM) (\w+)"


def rendered(work: Callable[[], None]) -> list[str]:
    """Return the statements of a migration's `upgrade` or `downgrade`, each on one line."""
    output = StringIO()
    options = {"as_sql": True, "output_buffer": output, "literal_binds": True}
    with Operations.context(MigrationContext.configure(dialect_name="postgresql", opts=options)):
        work()
    without_bodies = re.sub(r"\$\$.*?\$\$", "$$$$", output.getvalue(), flags=re.DOTALL)  # of functions
    return [" ".join(statement.split()) for statement in re.split(r";\n", without_bodies) if statement.strip()]


def findings(script: Script) -> list[str]:
    """Return the statements of an upgrade that are not known to be harmless."""
    statements = rendered(script.module.upgrade)
    # Nobody uses a table yet that is made here.
    made = {match[1] for each in statements if (match := re.match(r"CREATE TABLE (?:IF NOT EXISTS )?(\w+)", each))}

    def is_harmless(statement: str) -> bool:
        # Text in parentheses may hold commas; a comma outside of them begins a second change.
        bare = re.sub(r"\((?:[^()]|\([^()]*\))+\)", "()", statement)
        match = re.match(ON_TABLE, statement)
        return bool(match and match[1] in made) or any(re.match(kind, bare, re.IGNORECASE) for kind in HARMLESS)

    return [each for each in statements if not is_harmless(each)]


def faults(script: Script) -> list[str]:
    """Return what is wrong with a migration: risks that it does not name, and names of what it does not do."""
    risks: dict[str, str] = getattr(script.module, "RISKS", {})
    found = findings(script)
    unnamed = [each for each in found if not any(each.startswith(risk) for risk in risks)]
    unused = [f"nothing begins with {risk!r}" for risk in risks if not any(each.startswith(risk) for each in found)]
    unexplained = [f"no reason for {risk!r}" for risk, reason in risks.items() if len(reason) < len("a reason")]
    return unnamed + unused + unexplained
