"""Flask-Migrate is there for whoever asks, and not before."""

from __future__ import annotations

import subprocess
import sys
from ast import literal_eval
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from flask import Flask

from chatapi.app import MIGRATIONS
from chatapi.migrating import read_revisions
from config import ROOT
from tests.support import Services

START = "import sys; from wsgi import app; print(sorted(sys.modules))"


def test_web_process_has_neither_alembic_nor_an_sdk_of_a_model(services: Services) -> None:
    done = subprocess.run(
        [sys.executable, "-c", START], env=services.environ, cwd=ROOT, capture_output=True, text=True, check=True
    )

    found = set(literal_eval(done.stdout.splitlines()[-1]))
    assert "sqlalchemy" in found
    assert sorted(found & {"alembic", "mako", "flask_migrate", "google.generativeai", "google.genai", "grpc"}) == []


def test_revisions_are_those_that_alembic_finds() -> None:
    scripts = ScriptDirectory(str(MIGRATIONS))

    found = read_revisions(MIGRATIONS)

    assert found.known == {each.revision for each in scripts.walk_revisions()}
    assert found.head == scripts.get_current_head()


@pytest.mark.parametrize(
    ("files", "head"),
    [
        ({}, None),
        ({"1": "None", "2": '"1"'}, "2"),
        ({"1": "None", "2": '"1"', "3": '"1"'}, None),
        ({"1": "None", "2": '"1"', "3": '"1"', "4": '("2", "3")'}, "4"),
    ],
)
def test_head_is_the_one_revision_that_no_other_builds_on(
    tmp_path: Path, files: dict[str, str], head: str | None
) -> None:
    (tmp_path / "versions").mkdir()
    for revision, down in files.items():
        path = tmp_path / "versions" / f"{revision}_change.py"
        path.write_text(f'revision = "{revision}"\ndown_revision: str | None = {down}\n')

    found = read_revisions(tmp_path)

    assert (found.known, found.head) == (set(files), head)


def test_commands_for_migrations_are_listed_and_run(app: Flask) -> None:
    runner = app.test_cli_runner()

    everything, listed, heads = (runner.invoke(args=args) for args in (["--help"], ["db", "--help"], ["db", "heads"]))

    assert "db" in everything.output.split()
    assert {"upgrade", "downgrade", "migrate"} <= set(listed.output.split())
    assert heads.exit_code == 0
