"""One chatroom as a file, JSON or Markdown, streamed to its owner only."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from flask import Flask
from sqlalchemy import text
from werkzeug.test import TestResponse

from chatapi.chatrooms import export
from chatapi.exports import PIECE_CHARACTERS
from chatapi.extensions import db
from tests.support import Account


def read_export(account: Account, room_id: str, form: str | None = None) -> TestResponse:
    answer = account.call("GET", f"/chatroom/{room_id}/export{f'?format={form}' if form else ''}")
    assert answer.status_code == 200, answer.get_json()
    return answer


def fill(app: Flask, account: Account, room_id: str, count: int, filler: str = "") -> None:
    """Add `count` prompts, each with its reply, beyond any quota."""
    with app.app_context():
        db.session.execute(
            text(
                "WITH prompts AS (INSERT INTO messages (id, room_id, user_id, seq, message_type, content, status)"
                " SELECT gen_random_uuid(), :room, :user, 2 * n - 1, 'user', 'prompt ' || n || :filler, 'completed'"
                " FROM generate_series(1, :count) n RETURNING id, seq)"
                " INSERT INTO messages (id, room_id, user_id, seq, message_type, content, status, reply_to, model,"
                " prompt_tokens, output_tokens)"
                " SELECT gen_random_uuid(), :room, :user, seq + 1, 'ai', 'reply ' || (seq + 1) / 2 || :filler,"
                " 'completed', id, 'some-model', 3, 4 FROM prompts"
            ),
            {"room": room_id, "user": account.id, "count": count, "filler": filler},
        )
        db.session.commit()


def add_reply(app: Flask, account: Account, prompt_id: str, **columns: Any) -> None:
    """Add another reply to a prompt, behind all messages of its room."""
    with app.app_context():
        db.session.execute(
            text(
                "INSERT INTO messages (id, room_id, user_id, seq, message_type, content, status, reply_to, error)"
                " SELECT gen_random_uuid(), room_id, user_id, (SELECT max(seq) + 1 FROM messages AS other"
                " WHERE other.room_id = prompt.room_id), 'ai', :content, :status, id, :error"
                " FROM messages AS prompt WHERE id = :prompt"
            ),
            {"prompt": prompt_id, "error": None, **columns},
        )
        db.session.commit()


def test_json_holds_the_room_and_every_message_as_the_api_shows_them(app: Flask, account: Account) -> None:
    room_id = account.open_room(title='a "title" \N{SNOWMAN}', description="about\nit", system_instruction="be brief")
    fill(app, account, room_id, 225)
    prompt = account.call("GET", f"/chatroom/{room_id}?limit=2").get_json()["chatroom"]["messages"][0]
    add_reply(app, account, prompt["id"], content='another "answer"\n\u202b', status="completed")
    add_reply(app, account, prompt["id"], content="", status="failed", error="safety_blocked")

    answer = read_export(account, room_id)

    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Content-Disposition"] == f'attachment; filename="chatroom-{room_id}.json"'
    document = json.loads(answer.get_data())
    assert document.keys() == {"exported_at", "chatroom", "messages"}
    shown = account.call("GET", f"/chatroom/{room_id}?limit=200").get_json()["chatroom"]
    assert document["chatroom"] == {name: shown[name] for name in shown if name not in ("messages", "has_more")}
    assert len(document["messages"]) == 452
    assert document["messages"][-200:] == shown["messages"]
    assert [each["content"] for each in document["messages"][:3]] == ["prompt 1", "reply 1", "prompt 2"]
    assert [each["reply_to"] for each in document["messages"][-3:]] == [prompt["id"]] * 3


def test_markdown_has_a_section_for_every_message(app: Flask, account: Account) -> None:
    room_id = account.open_room(title="Talk", description="first line\nsecond line")
    fill(app, account, room_id, 225)
    messages = account.call("GET", f"/chatroom/{room_id}?limit=2").get_json()["chatroom"]["messages"]
    prompt_id = messages[0]["id"]
    add_reply(app, account, prompt_id, content="# As it is *\n\n- \N{SNOWMAN}", status="completed")
    add_reply(app, account, prompt_id, content="half a", status="stopped")
    add_reply(app, account, prompt_id, content="", status="failed", error="safety_blocked")
    add_reply(app, account, prompt_id, content="", status="pending")

    answer = read_export(account, room_id, "markdown")

    assert answer.headers["Content-Type"] == "text/markdown; charset=utf-8"
    assert answer.headers["Content-Disposition"] == f'attachment; filename="chatroom-{room_id}.md"'
    document = answer.get_data().decode()
    assert document.startswith("# Talk\n\n> first line\n> second line\n\n## User, 20")
    sections = re.split(r"^## (User|Assistant), (\S+Z)\n", document, flags=re.MULTILINE)
    assert sections[1::3] == ["User", "Assistant"] * 225 + ["Assistant"] * 4
    assert sections[-14] == messages[1]["created_at"]
    texts = [section.strip("\n") for section in sections[3::3]]
    assert texts[:3] == ["prompt 1", "reply 1", "prompt 2"]
    assert texts[-4:] == [
        "# As it is *\n\n- \N{SNOWMAN}",
        "*(stopped)*\n\nhalf a",
        "*(failed: safety_blocked)*",
        "*(pending)*",
    ]


def test_heading_of_markdown_stays_one_line_of_text_whatever_the_title(app: Flask, account: Account) -> None:
    room_id = account.open_room(title="x", description="# not a heading\n\n</div> ## nor this\n## User, now")
    title = "*a*\n# [b](javascript:x) <script> `c` \\ &amp; ~d~ |\u2028## User, now ##"
    with app.app_context():
        db.session.execute(text("UPDATE chatrooms SET title = :title WHERE id = :id"), {"title": title, "id": room_id})
        db.session.commit()

    document = read_export(account, room_id, "markdown").get_data().decode()

    assert document.splitlines() == [
        r"# \*a\* \# \[b\](javascript:x) \<script\> \`c\` \\ \&amp; \~d\~ \| \#\# User, now \#\#",
        "",
        r"> \# not a heading",
        ">",
        r"> \</div\> \#\# nor this",
        r"> \#\# User, now",
    ]


@pytest.mark.parametrize("form", ["json", "markdown"])
def test_empty_room_without_a_title_is_exported(account: Account, form: str) -> None:
    room_id = account.open_room()

    document = read_export(account, room_id, form).get_data().decode()

    if form == "json":
        assert json.loads(document)["messages"] == []
    else:
        assert document == "# Untitled chatroom\n"


@pytest.mark.parametrize("form", ["json", "markdown"])
def test_somebody_elses_room_is_not_exported(sign_in: Callable[..., Account], form: str) -> None:
    owner, other = sign_in(), sign_in()
    room_id = owner.open_room(title="theirs")
    never_was = "01890a5d-ac96-774b-bcce-b302099a8057"

    answers = [other.call("GET", f"/chatroom/{each}/export?format={form}") for each in (room_id, never_was, "x", "%00")]

    assert [answer.status_code for answer in answers] == [404] * 4
    assert len({answer.get_data() for answer in answers}) == 1
    # No slot is taken for what was not found.
    assert read_export(other, other.open_room()).status_code == 200


@pytest.mark.parametrize("query", ["format=xml", "format=", "format=JSON", "format=json%00", "form=json"])
def test_export_is_refused_in_a_format_that_is_not(account: Account, query: str) -> None:
    answer = account.call("GET", f"/chatroom/{account.open_room()}/export?{query}")

    assert (answer.status_code, list(answer.get_json()["errors"])) == (422, [query.split("=", maxsplit=1)[0]])


def test_export_holds_no_connection_between_pages(
    app: Flask, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "MESSAGES_AT_ONCE", 2)
    room_id = account.open_room()
    fill(app, account, room_id, 3)
    with app.app_context():
        seen = []
        for message in export.read_messages(UUID(room_id)):
            seen.append(message.content)
            assert db.engine.pool.checkedout() == 0  # type: ignore[attr-defined]

    assert seen == ["prompt 1", "reply 1", "prompt 2", "reply 2", "prompt 3", "reply 3"]


@pytest.mark.parametrize("form", ["json", "markdown"])
def test_export_ends_well_when_the_room_is_deleted_in_the_middle(unchecked: tuple[Flask, Account], form: str) -> None:
    app, account = unchecked
    room_id = account.open_room()
    fill(app, account, room_id, 450, "x" * 1000)
    path = f"/chatroom/{room_id}/export?format={form}"
    with account.client.get(path, headers=account.headers, buffered=False) as answer:
        pieces = [next(answer.iter_encoded())]
        other = Account(account.id, account.mobile_number, account.token, app.test_client())
        assert other.call("DELETE", f"/chatroom/{room_id}").status_code == 200
        pieces += list(answer.iter_encoded())

    document = b"".join(pieces).decode()
    assert max(map(len, pieces)) == PIECE_CHARACTERS
    count = len(json.loads(document)["messages"]) if form == "json" else document.count("\n## ")
    assert count == 200  # The page that had been read by then.


def test_one_export_at_a_time_be_it_of_a_room_or_of_the_account(unchecked: tuple[Flask, Account]) -> None:
    _app, account = unchecked
    room = f"/chatroom/{account.open_room()}/export"
    for first, second in ((room, room), (room, "/user/me/export"), ("/user/me/export", room)):
        with account.client.get(first, headers=account.headers, buffered=False) as under_way:
            assert under_way.status_code == 200

            refused = account.call("GET", second)

            assert (refused.status_code, refused.get_json()["error"]) == (429, "rate_limited")
            assert int(refused.headers["Retry-After"]) > 0
        assert account.call("GET", second).status_code == 200


def test_exports_of_rooms_and_accounts_share_their_threads(
    sign_in: Callable[..., Account], make_app: Callable[..., Flask]
) -> None:
    client = make_app(WEB_THREADS="8").test_client()
    accounts = [sign_in(via=client) for _ in range(3)]
    rooms = [f"/chatroom/{account.open_room()}/export" for account in accounts]
    paths = [rooms[0], "/user/me/export"]
    under_way = [
        client.get(path, headers=account.headers, buffered=False)
        for path, account in zip(paths, accounts, strict=False)
    ]
    assert [answer.status_code for answer in under_way] == [200, 200]

    third = accounts[2].call("GET", rooms[2])

    assert (third.status_code, third.get_json()["error"]) == (503, "service_unavailable")
    under_way[0].close()
    assert accounts[2].call("GET", rooms[2]).status_code == 200
    under_way[1].close()


def test_both_media_types_are_documented(account: Account) -> None:
    operation = account.call("GET", "/openapi.json").get_json()["paths"]["/chatroom/{chatroom_id}/export"]["get"]

    content = operation["responses"]["200"]["content"]
    assert content["application/json"]["schema"] == {"$ref": "#/components/schemas/ExportedChatroom"}
    assert content["text/markdown"]["schema"] == {"type": "string"}
    assert {"404", "429", "503", "422"} <= operation["responses"].keys()
    (form,) = [each for each in operation["parameters"] if each["name"] == "format"]
    assert form["schema"] == {"type": "string", "default": "json", "enum": ["json", "markdown"]}
