"""One chatroom with all its messages, as JSON or as Markdown, read and written piece by piece.

Each page is read in a short transaction of its own: no connection is held while a slow client reads. So the document
is of no single moment; what is deleted meanwhile is missing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy import select

from chatapi.chatrooms.models import Message, is_owned
from chatapi.extensions import db, in_transaction
from chatapi.schemas import rfc3339

MESSAGES_AT_ONCE = 200

_SPEAKERS = {"user": "User", "ai": "Assistant"}
_MARKUP = re.compile(r"[\\`*_\[\]<>#&~|$]")


@dataclass(frozen=True)
class ExportFormat:
    """A way to write a chatroom: its media type, the ending of the file's name, and what yields the document.

    The chatroom and the messages are given to it as the API shows them.
    """

    mimetype: str
    extension: str
    write: Callable[[dict[str, Any], Iterable[dict[str, Any]]], Iterator[str]]


def read_messages(room_id: UUID) -> Iterator[Message]:
    """Yield the messages of a room in their order."""
    last = 0
    while True:
        page = in_transaction(partial(_read_page, room_id, last))
        yield from page
        if len(page) < MESSAGES_AT_ONCE:
            return
        last = page[-1].seq


def _read_page(room_id: UUID, after: int) -> Sequence[Message]:
    query = select(Message).where(Message.room_id == room_id, Message.seq > after, is_owned(room_id))
    return db.session.scalars(query.order_by(Message.seq).limit(MESSAGES_AT_ONCE)).all()


def write_json(chatroom: dict[str, Any], messages: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield one JSON document: `exported_at`, `chatroom`, `messages`."""
    head = {"exported_at": rfc3339(datetime.now(UTC)), "chatroom": chatroom}
    yield json.dumps(head, ensure_ascii=False)[:-1] + ', "messages": ['
    for index, message in enumerate(messages):
        yield ("," if index else "") + json.dumps(message, ensure_ascii=False)
    yield "]}"


def write_markdown(chatroom: dict[str, Any], messages: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield a Markdown document: the title as its heading, the description quoted, a section for each message.

    The text of messages stays as it is, being mostly Markdown itself.
    """
    yield f"# {_inline(chatroom['title'] or 'Untitled chatroom')}\n"
    if chatroom["description"]:
        quoted = "\n".join(f"> {_inline(line)}".rstrip() for line in chatroom["description"].splitlines())
        yield f"\n{quoted}\n"
    for message in messages:
        speaker = _SPEAKERS[message["message_type"]]
        yield f"\n## {speaker}, {message['created_at']}\n"
        if message["status"] != "completed":
            reason = f": {message['error']}" if message.get("error") else ""
            yield f"\n*({message['status']}{reason})*\n"
        if message["content"]:
            yield f"\n{message['content']}\n"


def _inline(text: str) -> str:
    """Return `text` on one line and without a meaning as markup (CommonMark, 2.4)."""
    return _MARKUP.sub(r"\\\g<0>", " ".join(text.split()))


EXPORT_FORMATS = {
    "json": ExportFormat("application/json", "json", write_json),
    "markdown": ExportFormat("text/markdown", "md", write_markdown),
}
