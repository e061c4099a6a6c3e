"""Accepting a prompt, or a second reply to one: one transaction, after which it cannot be lost, then the doorbell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Any
from uuid import UUID

import structlog
from flask import current_app
from sqlalchemy import select

from chatapi import metrics, quota
from chatapi.broker import ring
from chatapi.chatrooms import service
from chatapi.chatrooms.idempotency import KeyedRequest, claim_key
from chatapi.chatrooms.models import FINAL, Message
from chatapi.errors import ChatAPIError, ConflictError, NotFoundError, ServiceUnavailableError, UnauthorizedError
from chatapi.extensions import db, in_transaction, run_alone
from chatapi.ids import parse_id, uuid7
from chatapi.request_ids import current_request_id

GENERATE_REPLY = "generate_reply"
REPLIES_QUEUE = "replies"

RING_GRACE_SECONDS = 5
"""How long the sweeper leaves a fresh job alone: the ring after commit is normally enough."""

IN_FLIGHT_RETRY_AFTER_SECONDS = 5
BUSY_RETRY_AFTER_SECONDS = 10

log = structlog.get_logger(__name__)

Run = Callable[[str, Mapping[str, Any]], Sequence[Sequence[Any]]]
"""Runs a statement with psycopg2's placeholders, and returns its rows."""

_ACCEPT = """
    SELECT outcome, decided_at, used_today
    FROM accept_prompt(
        %(user_id)s, %(room_id)s, %(prompt_id)s, %(reply_id)s, %(content)s,
        %(daily_limit)s, %(max_in_flight)s, %(max_backlog)s, %(ring_grace)s, %(request_id)s
    )
"""
"""All of it is one function of the database (docs/decisions/0037), which is called with psycopg2's placeholders."""


class TooManyInFlightError(ChatAPIError):
    """The user has too many unfinished replies."""

    status = HTTPStatus.TOO_MANY_REQUESTS
    slug = "too_many_in_flight"
    message = "Too many of your prompts are unanswered; wait for some of the replies"


class TooBusyError(ServiceUnavailableError):
    """There is no room for more work at the moment."""

    slug = "too_busy"
    message = "Too much is going on right now, try again shortly"


class NotAReplyError(ConflictError):
    """A user's message cannot be stopped, streamed or made again."""

    slug = "not_a_reply"
    message = "This is a prompt, not a reply"


class NotFinishedError(ConflictError):
    """A prompt has one unfinished reply at the most."""

    slug = "not_finished"
    message = "This prompt has a reply that is not finished; stop it or wait for it"


@dataclass(frozen=True)
class AcceptedPrompt:
    """A prompt that is stored, and its reply, pending; as they are now if it was accepted earlier (`is_replay`)."""

    user_message: Message
    ai_message: Message
    is_replay: bool = False


def post_message(user_id: UUID, chatroom_id: str, content: str, keyed: KeyedRequest | None = None) -> AcceptedPrompt:
    """Accept a prompt in a transaction of its own.

    Raises `NotFoundError` when the room is not the user's, `DailyLimitReachedError` when a Basic user has no prompt
    left, `TooManyInFlightError`, `TooBusyError`, and what `claim_key` raises; in each case nothing is stored or
    counted.
    """
    room_id = parse_id(chatroom_id, "Chatroom")
    if keyed is None:
        return _add(run_alone, user_id, room_id, uuid7(), content)

    def accept(reply_id: UUID) -> AcceptedPrompt:
        return _add(_run_in_session, user_id, room_id, reply_id, content)

    return in_transaction(lambda: _once(user_id, keyed, accept))


def add_message(user_id: UUID, room_id: UUID, content: str) -> AcceptedPrompt:
    """Accept a prompt as `post_message` does, in the session's transaction; what it raises must end that."""
    return _add(_run_in_session, user_id, room_id, uuid7(), content)


def regenerate(user_id: UUID, chatroom_id: str, message_id: str, keyed: KeyedRequest | None = None) -> AcceptedPrompt:
    """Accept another reply to the prompt that the reply `message_id` answers; it counts as one prompt.

    It is done in a transaction of its own. Raises as `post_message` does, `NotAReplyError` for a prompt, and
    `NotFinishedError` while a reply to the prompt is under way.
    """
    room_id = parse_id(chatroom_id, "Message")

    def accept(reply_id: UUID) -> AcceptedPrompt:
        service.touch_rooms(user_id)
        prompt = _prompt_of(service.find_owned_message(user_id, chatroom_id, message_id))
        times = _accept(_run_in_session, user_id, room_id, prompt.id, reply_id, None)
        return AcceptedPrompt(prompt, _pending(reply_id, prompt.id, times))

    return in_transaction(lambda: _once(user_id, keyed, accept))


def announce(accepted: AcceptedPrompt) -> None:
    """Log and count a prompt whose acceptance is committed, and wake a worker up for it."""
    if accepted.is_replay:
        return
    log.info("reply_accepted", reply_id=str(accepted.ai_message.id))
    metrics.accepted()
    ring_reply(accepted.ai_message.id)


def ring_reply(reply_id: UUID) -> None:
    """Wake a worker up for a reply whose job is committed."""
    ring(GENERATE_REPLY, REPLIES_QUEUE, reply_id)


def _once(user_id: UUID, keyed: KeyedRequest | None, accept: Callable[[UUID], AcceptedPrompt]) -> AcceptedPrompt:
    """Accept, or return what was accepted under the request's key earlier."""
    reply_id = uuid7()
    earlier = claim_key(user_id, keyed, reply_id) if keyed is not None else None
    return accept(reply_id) if earlier is None else _replay(earlier)


def _replay(reply_id: UUID) -> AcceptedPrompt:
    reply = service.read_message(reply_id)
    prompt = reply and db.session.get(Message, reply.reply_to)
    if reply is None or prompt is None:
        raise NotFoundError("Chatroom not found")  # Deleted since, with all that was in it.
    return AcceptedPrompt(prompt, reply, is_replay=True)


def _prompt_of(reply: Message) -> Message:
    if reply.message_type != "ai":
        raise NotAReplyError
    siblings = db.session.scalars(select(Message.status).where(Message.reply_to == reply.reply_to)).all()
    if not FINAL.issuperset(siblings):
        raise NotFinishedError
    return db.session.get_one(Message, reply.reply_to)


def _run_in_session(statement: str, parameters: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
    return db.session.connection().exec_driver_sql(statement, dict(parameters)).all()


def _add(run: Run, user_id: UUID, room_id: UUID, reply_id: UUID, content: str) -> AcceptedPrompt:
    prompt_id = uuid7()
    times = _accept(run, user_id, room_id, prompt_id, reply_id, content)
    prompt = Message(id=prompt_id, message_type="user", content=content, status="completed", **times)
    return AcceptedPrompt(prompt, _pending(reply_id, prompt_id, times))


def _accept(
    run: Run, user_id: UUID, room_id: UUID, prompt_id: UUID, reply_id: UUID, content: str | None
) -> dict[str, datetime]:
    """Store what is accepted, without `content` a reply alone, and return when that was."""
    config = current_app.config
    ids = {"user_id": user_id, "room_id": room_id, "prompt_id": prompt_id, "reply_id": reply_id}
    ((outcome, decided_at, used_today),) = run(
        _ACCEPT,
        {
            **{name: str(value) for name, value in ids.items()},
            "content": content,
            "daily_limit": config["BASIC_DAILY_PROMPTS"],
            "max_in_flight": config["MAX_IN_FLIGHT_PER_USER"],
            "max_backlog": config["MAX_BACKLOG"],
            "ring_grace": RING_GRACE_SECONDS,
            "request_id": current_request_id(),
        },
    )
    if outcome != "accepted":
        raise _refusal(outcome, decided_at, used_today)
    return {"created_at": decided_at, "updated_at": decided_at}


def _refusal(outcome: str, decided_at: datetime, used_today: int) -> ChatAPIError:
    """Return what is answered for an outcome of `accept_prompt` that stands against it."""
    match outcome:
        case "daily_limit_reached":
            return quota.limit_reached(used_today, decided_at)
        case "too_many_in_flight":
            return TooManyInFlightError(retry_after=IN_FLIGHT_RETRY_AFTER_SECONDS)
        case "too_busy":
            return TooBusyError(retry_after=BUSY_RETRY_AFTER_SECONDS)
        case "no_room":
            return NotFoundError("Chatroom not found")
        case _:  # The account was erased meanwhile.
            return UnauthorizedError()


def _pending(reply_id: UUID, prompt_id: UUID, times: dict[str, datetime]) -> Message:
    return Message(id=reply_id, message_type="ai", content="", status="pending", reply_to=prompt_id, **times)
