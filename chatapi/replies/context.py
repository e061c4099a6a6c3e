"""What the model is given: the prompt, and the earlier turns of its room that fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, text

from chatapi.extensions import db
from chatapi.replies.gemini.base import Prompt, Turn
from chatapi.replies.jobs import Lease

CONTEXT_TOKEN_BUDGET = 32_000
MAX_EARLIER_TURNS = 200

BYTES_PER_TOKEN = 4
TOKENS_PER_TURN = 4
"""About what Gemini's tokenizer makes of text (its documentation says four characters); bytes, so that scripts of
many bytes a character are not underrated."""

# The prompt that the reply answers. The room is asked for by its owner too: context comes from nobody else's.
_PROMPT = text("""
    SELECT prompt.content, prompt.seq, room.system_instruction
    FROM messages AS reply
    JOIN messages AS prompt ON prompt.id = reply.reply_to AND prompt.room_id = reply.room_id
    JOIN chatrooms AS room ON room.id = reply.room_id AND room.user_id = :user_id
    WHERE reply.id = :message_id
""")

# Whole turns, the newest first: a prompt with its completed reply, and of several replies the newest.
_EARLIER = text("""
    SELECT prompt.content AS prompt, answer.content AS answer
    FROM messages AS prompt
    CROSS JOIN LATERAL (
        SELECT content FROM messages AS reply
        WHERE reply.reply_to = prompt.id AND reply.status = 'completed' ORDER BY reply.seq DESC LIMIT 1
    ) AS answer
    WHERE prompt.room_id = :room_id AND prompt.seq < :before AND prompt.message_type = 'user'
    ORDER BY prompt.seq DESC LIMIT :most
""")


def build_prompt(lease: Lease, model: str) -> Prompt | None:
    """Return what to ask the model for a reply, or None when the reply was deleted meanwhile."""
    asked = db.session.execute(_PROMPT, {"message_id": lease.message_id, "user_id": lease.user_id}).one_or_none()
    if asked is None:
        return None
    earlier = db.session.execute(
        _EARLIER, {"room_id": lease.room_id, "before": asked.seq, "most": MAX_EARLIER_TURNS}
    ).all()
    budget = CONTEXT_TOKEN_BUDGET - count_tokens(asked.content) - count_tokens(asked.system_instruction or "")
    turns = [*fit_turns(earlier, budget), Turn("user", asked.content)]
    return Prompt(model, turns, asked.system_instruction)


def fit_turns(newest_first: Sequence[Row[Any]], budget: int) -> list[Turn]:
    """Return the newest whole turns that fit `budget` tokens, oldest first."""
    fitting: list[Turn] = []
    for row in newest_first:
        budget -= count_tokens(row.prompt) + count_tokens(row.answer)
        if budget < 0:
            break
        fitting += [Turn("model", row.answer), Turn("user", row.prompt)]
    return fitting[::-1]


def count_tokens(content: str) -> int:
    """Return about how many tokens the model will make of `content`."""
    return len(content.encode()) // BYTES_PER_TOKEN + TOKENS_PER_TURN
