"""Demo accounts, made by what makes everybody's: the same services, in the same order of locks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import requests
from flask import current_app
from sqlalchemy import func, select

from chatapi.auth.models import User
from chatapi.auth.otp import make_code
from chatapi.auth.passwords import hash_password, verify_password
from chatapi.auth.service import verify_otp
from chatapi.auth.sessions import open_session
from chatapi.catalogue import catalogue
from chatapi.chatrooms.endings import Ending, seize_and_end
from chatapi.chatrooms.models import Chatroom
from chatapi.chatrooms.prompts import add_message
from chatapi.chatrooms.service import create_chatroom, touch_rooms
from chatapi.demo.texts import Room
from chatapi.errors import ChatAPIError
from chatapi.extensions import db, in_transaction
from chatapi.subscriptions.checkout import AlreadySubscribedError, start_checkout
from chatapi.subscriptions.customers import customer_of
from chatapi.subscriptions.gateway import BillingNotConfiguredError, BillingUnavailableError, gateway
from chatapi.subscriptions.setup import STRIPE_ITSELF
from chatapi.subscriptions.sync import sync_customer

PASSWORD = "only-for-demos-2026"  # noqa: S105 - it guards nothing: production refuses these accounts
SECONDS = 5.0
CHARACTERS_PER_TOKEN = 4


class OwnPasswordError(Exception):
    """The number is somebody's who is no demo."""


@dataclass
class Person:
    """A demo account, signed in."""

    id: UUID
    number: str
    name: str
    room_ids: list[UUID]
    rooms_made: int
    token: str
    refresh_token: str
    tier: str = "basic"

    def as_json(self) -> dict[str, object]:
        """Return it in values that JSON has."""
        return {
            "id": str(self.id),
            "mobile_number": self.number,
            "name": self.name,
            "password": PASSWORD,
            "subscription_tier": self.tier,
            "chatrooms": [str(room_id) for room_id in self.room_ids],
            "chatrooms_made": self.rooms_made,
            "token": self.token,
            "refresh_token": self.refresh_token,
        }


def seed_person(number: str, name: str, rooms: Sequence[Room]) -> Person:
    """Return the demo account of `number`, with whichever of `rooms` it has not yet. Raises `OwnPasswordError`."""
    _refuse_stranger(number)
    # Hashing takes its time on purpose, and no row is to be locked meanwhile.
    new_hash = hash_password(PASSWORD)

    def seed() -> Person:
        user = verify_otp(number, make_code(number, "login"), "login", None)
        if user is None:
            raise OwnPasswordError(f"Nobody can sign in to {number} now, as if it were disabled: name another number.")
        user.password_hash = user.password_hash or new_hash
        user.name = user.name or name
        tokens = open_session(user)
        touch_rooms(user.id)
        made = [_make_room(user.id, room) for room in rooms if not _has_room(user.id, room.title)]
        titles = [room.title for room in rooms]
        room_ids = db.session.scalars(
            select(Chatroom.id).where(Chatroom.user_id == user.id, Chatroom.title.in_(titles)).order_by(Chatroom.id)
        )
        return Person(user.id, number, user.name, list(room_ids), len(made), tokens.token, tokens.refresh_token)

    return in_transaction(seed)


def _refuse_stranger(number: str) -> None:
    user = in_transaction(lambda: db.session.scalars(select(User).where(User.mobile_number == number)).one_or_none())
    if user is None or user.verified_at is None:
        return
    if user.password_hash is None or not verify_password(user.password_hash, PASSWORD):
        raise OwnPasswordError(f"The account of {number} is somebody's own, and stays untouched: name another number.")


def _has_room(user_id: UUID, title: str) -> bool:
    query = select(Chatroom.id).where(Chatroom.user_id == user_id, Chatroom.title == title).limit(1)
    return db.session.scalar(query) is not None


def _make_room(user_id: UUID, room: Room) -> UUID:
    """Make a room and its conversation, each prompt accepted and answered as they all are.

    No worker sees the replies unfinished, as all is one transaction; and since no model answered, nothing is counted.
    """
    chatroom = create_chatroom(
        user_id, title=room.title, description=room.description, system_instruction=room.system_instruction
    )
    model = catalogue().default.model
    for prompt, reply in room.exchanges:
        accepted = add_message(user_id, chatroom.id, prompt)
        ending = Ending(
            "completed",
            content=reply,
            model=model,
            prompt_tokens=len(prompt) // CHARACTERS_PER_TOKEN,
            output_tokens=len(reply) // CHARACTERS_PER_TOKEN,
            gives_prompt_back=True,
        )
        seize_and_end(accepted.ai_message.id, lambda _lease, ending=ending: ending)  # type: ignore[misc]
    return chatroom.id


def give_pro(person: Person) -> str | None:
    """Have the account pay for Pro at Stripe's stand-in, unless it has; return why it could not, None if it is Pro."""
    base = current_app.config["STRIPE_API_BASE"].rstrip("/")
    if base == STRIPE_ITSELF:
        return "it would have to pay at Stripe itself, and here is no stand-in (`make run` without a key starts one)."
    try:
        _pay(person.id, base)
        customer_id = in_transaction(lambda: customer_of(person.id))
        if customer_id is not None:
            sync_customer(gateway(), customer_id)
    except BillingNotConfiguredError:
        return "billing is not configured."
    except BillingUnavailableError as error:
        return f"Stripe's stand-in could not be asked ({error.reason})."
    except (requests.RequestException, ChatAPIError) as error:
        return f"Stripe's stand-in did not take its payment ({type(error).__name__})."
    is_pro = in_transaction(lambda: db.session.scalar(select(User.pro_until > func.now()).where(User.id == person.id)))
    person.tier = "pro" if is_pro else "basic"
    return None if is_pro else "it has paid, and Stripe's stand-in does not say so yet: run this again."


def _pay(user_id: UUID, base: str) -> None:
    try:
        checkout = start_checkout(user_id)
    except AlreadySubscribedError:
        return
    answer = requests.post(f"{base}/_control/pay", json={"session_id": checkout.session_id}, timeout=SECONDS)
    answer.raise_for_status()
