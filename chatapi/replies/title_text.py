"""What of a model's answer is a title."""

from __future__ import annotations

import re
from unicodedata import category

from marshmallow import ValidationError

from chatapi.schemas import Name

MOST_TITLE_CHARACTERS = 200

_JOINERS = "\u200c\u200d"
"""Format characters that belong to words and emoji; all others, such as bidirectional controls, only garble."""

_LEAD = re.compile(r"\A(?:[#>\s]+|[-*+]\s+|[*_]*title[*_]*\s*:[*_]*\s*)", re.IGNORECASE)
"""What comes before a title: marks of a heading, a quotation or a list, and the word itself."""

_WRAPPINGS = (
    *(("**", "**"), ("__", "__"), ("*", "*"), ("_", "_"), ("`", "`"), ('"', '"'), ("'", "'")),
    *(("\u201c", "\u201d"), ("\u201e", "\u201c"), ("\u2018", "\u2019"), ("\u00ab", "\u00bb"), ("「", "」")),
)


def clean_title(answer: str) -> str | None:
    """Return the first line of `answer` that says something, bare, and as `Name` would take it from a user.

    None when there is no such line.
    """
    lines = (_bare(_plain(line)) for line in answer.splitlines())
    title = next(filter(_says_something, lines), "")
    if len(title) > MOST_TITLE_CHARACTERS:
        title = title[: MOST_TITLE_CHARACTERS - 1].rstrip() + "…"
    try:
        return str(Name(shortest=1, longest=MOST_TITLE_CHARACTERS, trim=True).deserialize(title))
    except ValidationError:
        return None


def _plain(line: str) -> str:
    """Return `line` with single blanks, and without controls, stray format characters and lone surrogates."""
    kept = (
        character
        for character in line.replace("\t", " ")
        if character in _JOINERS or category(character) not in ("Cc", "Cf", "Cs")
    )
    return " ".join("".join(kept).split())


def _bare(line: str) -> str:
    """Return `line` without marks before and around it, and without its full stop."""
    while (barer := _LEAD.sub("", _unwrapped(line), count=1).rstrip(".。 ")) != line:
        line = barer
    return line


def _unwrapped(line: str) -> str:
    """Return what one pair of marks is around; two quotations in a line are no such pair."""
    for opening, closing in _WRAPPINGS:
        if len(line) > len(opening + closing) and line.startswith(opening) and line.endswith(closing):
            inner = line[len(opening) : -len(closing)]
            if opening not in inner and closing not in inner:
                return inner.strip()
    return line


def _says_something(line: str) -> bool:
    return any(category(character)[0] in "LN" or category(character) == "So" for character in line)
