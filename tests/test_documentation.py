"""What is written for people, held to the code: names of settings, and where links lead."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from config import ROOT, SettingsSchema

SETTINGS = set(SettingsSchema().fields)
SET_BY_MAKE_RUN = {"STAND_INS"}
PAGES = sorted(
    page.relative_to(ROOT)
    for folder in (ROOT, ROOT / "docs", ROOT / "docs" / "decisions", ROOT / "clients")
    for page in folder.glob("*.md")
)
FENCED = re.compile(r"^( *)(```|~~~).*?^\1\2", re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Return what a link can name in a page, as GitHub makes it of headings."""
    headings = re.findall(r"^#+ +(.*)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    """Return the links of a page to files that are not there, or to headings that these have not."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", page.read_text())):
        name, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", name):
            continue
        found = (page.parent / name).resolve() if name else page
        if not found.exists() or (anchor and found.suffix == ".md" and anchor not in anchors(found)):
            broken.append(target)
    return broken


def test_every_setting_is_in_the_configuration_page_and_nothing_else_is_called_one() -> None:
    of_settings, _, of_others = (ROOT / "docs/configuration.md").read_text().partition("## Not settings of the service")
    rows = re.findall(r"^\| (`[A-Z].*?) \|", of_settings, re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`([A-Z][A-Z_]+)`", row)]
    assert sorted(named) == sorted(SETTINGS - SET_BY_MAKE_RUN)
    assert all(f"`{name}`" in of_others for name in SET_BY_MAKE_RUN)


def test_every_setting_is_in_the_example_and_nothing_else_is() -> None:
    named = set(re.findall(r"^#([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert named == SETTINGS - SET_BY_MAKE_RUN


def test_defaults_in_the_configuration_page_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| (\d+) \|", (ROOT / "docs/configuration.md").read_text(), re.MULTILINE)
    fields = SettingsSchema().load_fields
    assert len(rows) > 20
    assert {name: int(default) for name, default in rows} == {name: fields[name].load_default for name, _ in rows}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(ROOT / page) == []


def test_links_that_lead_nowhere_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One `two`: three\n[a](#one-two-three) [b](#four) [c](gone.md) [d](page.md#four) [e](https://x.y/#z)\n"
    )
    assert broken_links(page) == ["#four", "gone.md", "page.md#four"]
