"""Search: the user's chatrooms that hold what was asked for, the best match first.

The index finds the messages; all that must read their text, such as phrases, ranks and snippets, reads no more of it
than the bounds here allow. So a word that is in ten thousand messages costs some milliseconds more than a rare one.
"""

from __future__ import annotations

import base64
import hashlib
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Row, select, text

from chatapi.chatrooms.models import CHATROOM_DOCUMENT, MESSAGE_DOCUMENT, Chatroom
from chatapi.chatrooms.service import fields_of
from chatapi.errors import ValidationFailedError
from chatapi.extensions import db

MOST_MESSAGES = 500
"""How many messages that match are weighed, the newest of them, and as many rooms by their titles."""

MOST_READ_FOR_PHRASES = 2_000
"""How many messages with all words of a phrase are read to see whether the words stand together."""

RANKED_CHARACTERS = 1_000
"""What counts for a message's rank is its beginning: weighing 500 long texts whole would cost half a second."""

SNIPPET_SOURCE_CHARACTERS = 4_000
SNIPPET_CHARACTERS = 200

MOST_WORDS_SHOWN = 10
"""A snippet shows words of a query this long as they stand together; a phrase of 100 would cost seconds per page."""

_CURSOR = re.compile(r"q (?P<offset>[1-9][0-9]{0,3}) (?P<hash>[0-9a-f]{32})", re.ASCII)
_PHRASE = re.compile(r" <(?:-|[0-9]{1,5})> ", re.ASCII)
"""The operator of a phrase as PostgreSQL writes it. No word holds it: words hold no blanks."""

_WORD = re.compile(r"'(?:[^']|'')+'")

# For this transaction only. To the planner, reading all messages and parsing each may seem cheap if many match; and
# a bitmap of them that does not fit into the usual 4 MB forgets which of a page's rows it meant, so all get parsed.
_PARSE = text("""
    SELECT CAST(words AS text) AS words, querytree(words) AS indexable,
           set_config('enable_seqscan', 'off', true), set_config('jit', 'off', true),
           set_config('work_mem', '64MB', true)
    FROM websearch_to_tsquery('simple', :q) AS words
""")

# What the planner knows of words it knows only of constants, so they are written out wherever they are used. Newest
# goes by `created_at`, as no index has it: one in this order would tempt the planner to read along it and parse.
_SEARCH = text(f"""
    WITH newest AS MATERIALIZED (
        SELECT id FROM messages
        WHERE ({MESSAGE_DOCUMENT}) @@ (CAST(:loose AS tsquery) && CAST(:owner AS tsquery))
          AND user_id = :user_id AND content <> ''
          AND room_id NOT IN (SELECT id FROM chatrooms WHERE former_user_id = :user_id)
        ORDER BY created_at DESC, seq DESC LIMIT :most_read
    ), found AS MATERIALIZED (
        SELECT message.id, message.room_id, left(message.content, {RANKED_CHARACTERS}) AS beginning
        FROM newest JOIN messages AS message ON message.id = newest.id
        WHERE NOT :has_phrase OR to_tsvector('simple', message.content) @@ CAST(:words AS tsquery)
        ORDER BY message.id DESC LIMIT {MOST_MESSAGES}
    ), titled AS MATERIALIZED (
        SELECT id, setweight(to_tsvector('simple', coalesce(title, '')), 'A')
            || setweight(to_tsvector('simple', coalesce(description, '')), 'B') AS document
        FROM chatrooms
        WHERE ({CHATROOM_DOCUMENT}) @@ (CAST(:words AS tsquery) && CAST(:owner AS tsquery))
          AND user_id = :user_id AND coalesce(title, description, '') <> ''
        ORDER BY activity_at DESC LIMIT {MOST_MESSAGES}
    ), matches AS (
        SELECT room_id, id AS message_id, ts_rank(to_tsvector('simple', beginning), CAST(:words AS tsquery)) AS rank
        FROM found
        UNION ALL
        SELECT id, NULL, ts_rank(document, CAST(:words AS tsquery)) FROM titled
    ), best AS (
        SELECT DISTINCT ON (room_id) room_id, message_id, rank
        FROM matches ORDER BY room_id, rank DESC, message_id DESC NULLS FIRST
    ), page AS MATERIALIZED (
        SELECT room.id, best.message_id, best.rank, room.activity_at,
               coalesce(room.title, '') || ' ' || coalesce(room.description, '') AS about
        FROM best JOIN chatrooms AS room ON room.id = best.room_id AND room.user_id = :user_id
        ORDER BY best.rank DESC, room.activity_at DESC, room.id DESC
        LIMIT :limit + 1 OFFSET :offset
    )
    SELECT page.id, ts_headline(
        'simple', coalesce(left(message.content, {SNIPPET_SOURCE_CHARACTERS}), page.about), CAST(:shown AS tsquery),
        'StartSel="", StopSel="", MaxFragments=1, MaxWords=25, MinWords=10'
    ) AS snippet
    FROM page LEFT JOIN messages AS message ON message.id = page.message_id
    ORDER BY page.rank DESC, page.activity_at DESC, page.id DESC
""")  # noqa: S608 - put together from our own constants


@dataclass(frozen=True)
class FoundPage:
    """A page of what was found: the fields of chatrooms, each with `snippet`, and the cursor of the next page."""

    chatrooms: list[dict[str, Any]]
    next_cursor: str | None


def search_chatrooms(user_id: UUID, q: str, limit: int, cursor: str | None) -> FoundPage:
    """Return up to `limit` of the user's chatrooms that match `q`, the best first, then those with newer activity.

    A room matches by its title and description, or by any one of its messages; `q` is as in a web search: words,
    "phrases", or, -not. Raises `ValidationFailedError` for a cursor that is not of the same search.
    """
    offset = 0 if cursor is None else _parse_cursor(cursor, q)
    rows = _find(user_id, q, limit, offset)
    ids = [row.id for row in rows[:limit]]
    rooms = {
        room.id: room
        for room in db.session.scalars(select(Chatroom).where(Chatroom.id.in_(ids), Chatroom.user_id == user_id))
    }
    found = [{**fields_of(rooms[row.id]), "snippet": _snippet(row.snippet)} for row in rows[:limit] if row.id in rooms]
    return FoundPage(found, _cursor_of(offset + limit, q) if len(rows) > limit else None)


def _find(user_id: UUID, q: str, limit: int, offset: int) -> list[Row[Any]]:
    """Return id and snippet of up to `limit` + 1 rooms; none if there is no word in `q`."""
    query = db.session.execute(_PARSE, {"q": q}).one()
    if not query.words:
        return []
    has_phrase = _PHRASE.search(query.words) is not None
    parameters = {
        "user_id": user_id,
        "owner": f"'{user_id}'",
        "words": query.words,
        "shown": _shown_words(query.words, query.indexable),
        "loose": _without_phrases(query.indexable) if has_phrase else query.words,
        "has_phrase": has_phrase,
        "most_read": MOST_READ_FOR_PHRASES if has_phrase else MOST_MESSAGES,
        "limit": limit,
        "offset": offset,
    }
    return list(db.session.execute(_SEARCH, parameters).all())


def _without_phrases(indexable: str) -> str:
    """Return a query that the index answers alone and that finds whatever the one with phrases finds, and more.

    `querytree` has left out what is negated; `T` is all that it leaves of a query that any text may match.
    """
    return "" if indexable == "T" else _PHRASE.sub(" & ", indexable)


def _shown_words(words: str, indexable: str) -> str:
    """Return the query that a snippet is to show: `words` itself if it is short, else any of its first words."""
    if len(_WORD.findall(words)) <= MOST_WORDS_SHOWN:
        return words
    return " | ".join(list(dict.fromkeys(_WORD.findall(indexable)))[:MOST_WORDS_SHOWN])


def _snippet(headline: str) -> str:
    collapsed = " ".join(headline.split())
    if len(collapsed) <= SNIPPET_CHARACTERS:
        return collapsed
    return collapsed[: SNIPPET_CHARACTERS - 1].rstrip() + "…"


def _hash(q: str) -> str:
    return hashlib.sha256(q.encode()).hexdigest()[:32]


def _cursor_of(offset: int, q: str) -> str:
    return base64.urlsafe_b64encode(f"q {offset} {_hash(q)}".encode()).decode().rstrip("=")


def _parse_cursor(cursor: str, q: str) -> int:
    """Return the offset that a cursor of the search for `q` holds."""
    with suppress(ValueError):
        decoded = base64.b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        found = _CURSOR.fullmatch(decoded.decode("ascii"))
        if found and found["hash"] == _hash(q):
            return int(found["offset"])
    raise ValidationFailedError(errors={"cursor": ["Not a cursor of this search."]})
