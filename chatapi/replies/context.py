"""What the model is given: the prompt, and the earlier turns of its room that fit."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, text

from chatapi.catalogue import ModelEntry
from chatapi.chatrooms.endings import Lease
from chatapi.extensions import db
from chatapi.replies.gemini.base import GeminiRejected, Prompt, Turn
from chatapi.replies.token_counter import token_counter

TURNS_AT_ONCE = 50

# The prompt that the reply answers. The room is asked for by its owner too: context comes from nobody else's.
_PROMPT = text("""
    SELECT prompt.content, prompt.seq, prompt.room_id, room.system_instruction
    FROM messages AS reply
    JOIN messages AS prompt ON prompt.id = reply.reply_to AND prompt.room_id = reply.room_id
    JOIN chatrooms AS room ON room.id = reply.room_id AND room.user_id = :user_id
    WHERE reply.id = :message_id
""")

# Whole turns, the newest first: a prompt with its completed reply, the newest of several. A reply made again may
# be younger than the prompts after its own, so turns are in the order of their prompts. The lengths of texts are known
# without reading them: a page of long turns costs no more than what can fit.
_EARLIER = text("""
    SELECT seq, prompt, answer FROM (
        SELECT seq, prompt, answer,
               sum(octet_length(prompt) + octet_length(answer)) OVER (ORDER BY seq DESC) AS bytes
        FROM (
            SELECT prompt.seq, prompt.content AS prompt, answer.content AS answer
            FROM messages AS prompt
            CROSS JOIN LATERAL (
                SELECT reply.content FROM messages AS reply
                WHERE reply.reply_to = prompt.id AND reply.room_id = prompt.room_id AND reply.status = 'completed'
                ORDER BY reply.seq DESC LIMIT 1
            ) AS answer
            WHERE prompt.room_id = :room_id AND prompt.seq < :before AND prompt.message_type = 'user'
            ORDER BY prompt.seq DESC LIMIT :turns
        ) AS page
    ) AS measured
    WHERE bytes <= :most_bytes ORDER BY seq DESC
""")


def build_prompt(lease: Lease, entry: ModelEntry, budget_factor: float = 1.0) -> Prompt | None:
    """Return what to ask the model for a reply, or None when the reply was deleted meanwhile.

    It has about `entry.context_tokens` at most, times `budget_factor`: less for a model that found it too long.
    Raises `GeminiRejected` when the prompt alone has more.
    """
    asked = db.session.execute(_PROMPT, {"message_id": lease.message_id, "user_id": lease.user_id}).one_or_none()
    if asked is None:
        return None
    instruction = asked.system_instruction or None
    budget = int(entry.context_tokens * budget_factor) - token_counter.count(entry.model, asked.content)
    if instruction is not None:
        budget -= token_counter.count(entry.model, instruction)
    if budget < 0:
        raise GeminiRejected("The prompt does not fit into the model's context", reason="context_too_long")
    turns = [*_earlier_turns(asked, entry.model, budget), Turn("user", asked.content)]
    return Prompt(entry.model, turns, instruction, entry.max_output_tokens)


def _earlier_turns(asked: Row[Any], model: str, budget: int) -> list[Turn]:
    """Return the newest whole turns before the prompt that fit `budget` tokens, oldest first."""
    fitting: list[Turn] = []
    before = asked.seq
    while True:
        page = _read_page(asked.room_id, before, token_counter.most_bytes(model, budget))
        for row in page:
            if not row.answer.strip():
                continue  # Nothing was answered, and the model takes no empty turn.
            budget -= token_counter.count(model, row.prompt) + token_counter.count(model, row.answer)
            if budget < 0:
                return fitting[::-1]
            fitting += [Turn("model", row.answer), Turn("user", row.prompt)]
        if len(page) < TURNS_AT_ONCE:
            return fitting[::-1]
        before = page[-1].seq


def _read_page(room_id: Any, before: int, most_bytes: int) -> list[Row[Any]]:
    """Return up to `TURNS_AT_ONCE` turns, as far as they have `most_bytes` together; fewer when no more would fit."""
    parameters = {"room_id": room_id, "before": before, "most_bytes": most_bytes, "turns": TURNS_AT_ONCE}
    return list(db.session.execute(_EARLIER, parameters).all())
