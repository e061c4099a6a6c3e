"""The main walk, by nothing but the client that was generated from the OpenAPI document: `walk.py URL`.

Sign-in, chatroom, prompt, reply, Pro. Fails with an assertion where an answer is not of the type that is expected.
"""

from __future__ import annotations

import sys
import time
from typing import TypeVar
from urllib.request import urlopen

from chatapi_client import AuthenticatedClient, Client
from chatapi_client.api.auth import send_otp, verify_otp
from chatapi_client.api.chatrooms import create_chatroom, read_chatroom
from chatapi_client.api.messages import read_message, send_message
from chatapi_client.api.subscriptions import read_status, subscribe
from chatapi_client.api.users import erase_me, read_me
from chatapi_client.models import (
    ChatroomAnswer,
    ChatroomDetail,
    Checkout,
    CreateChatroom,
    Error,
    Message,
    MessageAnswer,
    MessageStatus,
    Otp,
    OtpRequest,
    ProfileAnswer,
    SendMessage,
    SentMessage,
    Session,
    Status,
    VerifyOtp,
)

SECONDS = 30.0

T = TypeVar("T")


def expect(kind: type[T], answer: object) -> T:
    """Return `answer` if it is a `kind`, and fail with what it is else, such as an `Error`."""
    assert isinstance(answer, kind), answer
    return answer


def sign_in(url: str) -> AuthenticatedClient:
    """Sign a new user in by a code."""
    number = f"+1{time.time_ns() % 10**12:012d}"
    with Client(base_url=url) as anybody:
        code = expect(Otp, send_otp.sync(client=anybody, body=OtpRequest(mobile_number=number))).otp
        body = VerifyOtp(mobile_number=number, otp=expect(str, code))
        session = expect(Session, verify_otp.sync(client=anybody, body=body))
    return AuthenticatedClient(base_url=url, token=session.token)


def ask(client: AuthenticatedClient, room_id: str, content: str) -> Message:
    """Send a prompt, and poll until its reply has ended."""
    sent = expect(SentMessage, send_message.sync(room_id, client=client, body=SendMessage(content=content)))
    deadline = time.monotonic() + SECONDS
    while True:
        found = read_message.sync(room_id, str(sent.ai_message.id), client=client)
        reply = expect(MessageAnswer, found).message
        if reply.status not in (MessageStatus.PENDING, MessageStatus.PROCESSING):
            assert reply.reply_to == sent.user_message.id
            return reply
        assert time.monotonic() < deadline, reply
        time.sleep(0.2)


def become_pro(client: AuthenticatedClient) -> None:
    """Pay on the page of Stripe's stand-in, and wait until it counts."""
    checkout = expect(Checkout, subscribe.sync(client=client))
    with urlopen(checkout.checkout_url, b"action=pay", timeout=10) as page:  # noqa: S310 - our own stand-in's
        page.read()
    deadline = time.monotonic() + SECONDS
    while expect(Status, read_status.sync(client=client)).usage.tier != "pro":
        assert time.monotonic() < deadline, "still not Pro"
        time.sleep(0.2)


def walk(url: str) -> None:
    """Make the walk; raises `AssertionError`."""
    with sign_in(url) as client:
        room = expect(
            ChatroomAnswer, create_chatroom.sync(client=client, body=CreateChatroom(title="Engines"))
        ).chatroom
        room_id = str(room.id)
        reply = ask(client, room_id, "What is an analytical engine?")
        assert reply.status == MessageStatus.COMPLETED, reply
        assert reply.content

        for _ in range(4):
            ask(client, room_id, "And then?")
        refused = send_message.sync_detailed(room_id, client=client, body=SendMessage(content="One too many"))
        assert refused.status_code == 429, refused
        error = expect(Error, refused.parsed)
        assert error.error == "daily_limit_reached", error
        assert error.additional_properties["limit"] == 5, error

        become_pro(client)
        assert ask(client, room_id, "One too many?").status == MessageStatus.COMPLETED
        detail = expect(ChatroomDetail, read_chatroom.sync(room_id, client=client)).chatroom
        assert len(detail.messages) == detail.message_count == 12, detail
        assert expect(ProfileAnswer, read_me.sync(client=client)).user.stats.message_count == 12

        assert erase_me.sync_detailed(client=client).status_code == 204
        assert read_me.sync_detailed(client=client).status_code == 401


if __name__ == "__main__":
    walk(sys.argv[1])
