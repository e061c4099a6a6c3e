"""Search: whose rooms are found, by what, in which order, and that the index does the work."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask
from sqlalchemy import event, text

from chatapi.chatrooms import search
from chatapi.extensions import db
from tests.support import Account

FILLER = "lorem ipsum dolor sit amet consectetur adipiscing elit sed do eiusmod tempor incididunt ut labore et dolore"


def found(account: Account, q: str, more: str = "") -> dict[str, Any]:
    answer = account.call("GET", f"/chatroom?q={quote(q)}{more}")
    assert answer.status_code == 200, answer.get_json()
    page: dict[str, Any] = answer.get_json()
    return page


def found_ids(account: Account, q: str) -> list[str]:
    return [room["id"] for room in found(account, q)["chatrooms"]]


def fill(app: Flask, account: Account, room_id: str, *contents: str) -> None:
    """Add messages to a room, beyond any quota."""
    with app.app_context():
        for content in contents:
            db.session.execute(
                text(
                    "INSERT INTO messages (id, room_id, user_id, seq, message_type, content, status, created_at)"
                    " SELECT gen_random_uuid(), :room, :user, coalesce(max(seq), 0) + 1, 'ai', :content, 'completed',"
                    " clock_timestamp() FROM messages WHERE room_id = :room"
                ),
                {"room": room_id, "user": account.id, "content": content},
            )
        db.session.commit()


def test_room_is_found_by_title_description_prompt_and_reply(app: Flask, account: Account) -> None:
    titled = account.open_room(title="Growing Zucchini")
    described = account.open_room(title="garden", description="all about zucchini")
    prompted = account.open_room(title="untold")
    account.prompt(prompted, "Is a ZUCCHINI a fruit?")
    answered = account.open_room()
    fill(app, account, answered, "The zucchini is a fruit.")
    account.open_room(title="something else")

    page = found(account, "zucchini")

    assert {room["id"] for room in page["chatrooms"]} == {titled, described, prompted, answered}
    assert (page["cached"], page["next_cursor"]) == (False, None)
    plain = account.call("GET", "/chatroom").get_json()["chatrooms"]
    for room in page["chatrooms"]:
        assert "zucchini" in room.pop("snippet").lower()
        assert room in plain


def test_title_is_worth_more_than_description_and_that_more_than_text(app: Flask, account: Account) -> None:
    titled = account.open_room(title="marmot")
    described = account.open_room(title="animals", description="the marmot")
    once, often = account.open_room(), account.open_room()
    fill(app, account, once, f"a marmot {FILLER}")
    fill(app, account, often, "nothing", "marmot " * 5, "nothing")

    assert found_ids(account, "marmot") == [titled, described, often, once]


def test_newest_activity_comes_first_among_equal_matches(account: Account) -> None:
    rooms = [account.open_room() for _ in range(3)]
    for room_id in (rooms[1], rooms[2], rooms[0]):
        account.prompt(room_id, "a pangolin")

    assert found_ids(account, "pangolin") == [rooms[0], rooms[2], rooms[1]]


def test_room_is_found_once_by_its_best_match(app: Flask, account: Account) -> None:
    room_id = account.open_room()
    fill(app, account, room_id, f"one okapi {FILLER}", "okapi okapi okapi, the best", f"{FILLER} {FILLER} okapi")

    (room,) = found(account, "okapi")["chatrooms"]

    assert (room["id"], room["snippet"]) == (room_id, "okapi okapi okapi, the best")


def test_search_finds_nothing_of_anybody_else(app: Flask, sign_in: Callable[..., Account]) -> None:
    mine, other = sign_in(), sign_in()
    room_id = mine.open_room(title="quokka", description=f"of {other.id}")
    # Whoever writes another's id into a message does not get it into the other's results.
    fill(app, mine, room_id, f"quokka {other.id}")

    assert found_ids(mine, "quokka") == [room_id]
    for q in ("quokka", mine.id, f"quokka or {mine.id}", f'"{mine.id}"', "-nothing", f"quokka -{other.id}"):
        assert found_ids(other, q) == []


def test_search_sees_every_change_at_once(app: Flask, account: Account) -> None:
    room_id = account.open_room(title="before")
    assert found_ids(account, "narwhal") == []
    account.prompt(room_id, "narwhal")
    assert found_ids(account, "narwhal") == [room_id]

    account.call("PUT", f"/chatroom/{room_id}", {"title": "after"})
    assert (found_ids(account, "before"), found_ids(account, "after")) == ([], [room_id])

    account.call("DELETE", f"/chatroom/{room_id}")
    assert (found_ids(account, "after"), found_ids(account, "narwhal")) == ([], [])


@pytest.mark.parametrize(
    ("q", "expected"),
    [
        ("red fox", {"red fox", "fox red", "red big fox"}),
        ('"red fox"', {"red fox"}),
        ('big "red fox"', set()),
        ("fox -big", {"red fox", "fox red"}),
        ('fox -"red fox"', {"fox red", "red big fox"}),
        ("big or blue", {"red big fox", "blue hen"}),
        ('"red fox" or hen', {"red fox", "blue hen"}),
        ("-fox", {"blue hen", "well-known"}),
        ('-"red fox"', {"fox red", "red big fox", "blue hen", "well-known"}),
        ("well-known", {"well-known"}),
        ("known-well", set()),
        ("  RED\tfox ", {"red fox", "fox red", "red big fox"}),
    ],
)
@pytest.mark.parametrize("by_title", [True, False])
def test_operators_work_as_in_a_web_search(
    app: Flask, account: Account, q: str, expected: set[str], by_title: bool
) -> None:
    rooms = {}
    for content in ("red fox", "fox red", "red big fox", "blue hen", "well-known"):
        room_id = account.open_room(title=content if by_title else None)
        rooms[room_id] = content
        if not by_title:
            fill(app, account, room_id, content, "")

    assert {rooms[room_id] for room_id in found_ids(account, q)} == expected


@pytest.mark.parametrize(
    "q",
    ["!!!", '"', '""', "-", "--", "\\", "'", "';", "(", "<->", "&|!", ":*", "%", "or or", '"-', '-""', "' OR 1=1 --",
     "a:*b", "x') @@ to_tsquery('y", "\u202e", "\N{SNOWMAN}", "\N{GRINNING FACE}", "%(q)s", ":q", "{q}", "日本語",
     "מרמיטה", "a" * 200, "a " * 100, '"' + "a " * 99, "é" * 200, "1e999", "a<b>c</b>", "http://x.y/z?a='b'",
     "\x01\x7f", "it's \\'s \\\\"],
)  # fmt: skip
def test_query_is_never_an_error_whatever_its_punctuation(app: Flask, account: Account, q: str) -> None:
    room_id = account.open_room(title="a b")
    fill(app, account, room_id, "some a, b and c")

    answer = account.call("GET", f"/chatroom?q={quote(q)}")

    assert answer.status_code == 200


@pytest.mark.parametrize("q", ["!!!", '""', "-", "<->", "%", "' \" '"])
def test_query_without_a_word_finds_nothing(account: Account, q: str) -> None:
    account.open_room(title="there")

    assert found(account, q) == {"chatrooms": [], "cached": False, "next_cursor": None}


@pytest.mark.parametrize("q", ["", "%20%20", "%00", "a%00b", "x" * 201, "%ED%A0%80%00"])
def test_query_is_refused_when_it_is_no_text_of_1_to_200_characters(account: Account, q: str) -> None:
    answer = account.call("GET", f"/chatroom?q={q}")

    assert (answer.status_code, list(answer.get_json()["errors"])) == (422, ["q"])


def test_snippet_is_short_plain_text_around_the_match(app: Flask, account: Account) -> None:
    room_id = account.open_room()
    fill(app, account, room_id, f"{FILLER}\n\n* {FILLER}\n\n{FILLER} the\n\t **wombat**  digs {FILLER} {FILLER}")
    long_words = account.open_room()
    fill(app, account, long_words, "wombat " + " ".join("x" * 60 for _ in range(20)))

    snippets = {room["id"]: room["snippet"] for room in found(account, "wombat")["chatrooms"]}

    assert "the **wombat** digs lorem" in snippets[room_id]
    assert all("wombat" in snippet and len(snippet) <= 200 for snippet in snippets.values())
    assert len(snippets[long_words]) > 150


def test_snippet_is_made_in_time_when_text_and_query_are_one_word_over_and_over(app: Flask, account: Account) -> None:
    rooms = [account.open_room() for _ in range(20)]
    for room_id in rooms:
        fill(app, account, room_id, "a " * 5000)

    # Past the statement timeout this would be a 503.
    assert set(found_ids(account, '"' + "a " * 98 + '"')) == set(rooms)


def test_found_rooms_are_paged_once_each_when_followed(account: Account) -> None:
    rooms = [account.open_room(title=f"heron {number}") for number in range(7)]

    pages, cursor = [], ""
    while cursor is not None:
        page = found(account, "heron", f"&limit=3{cursor and '&cursor=' + cursor}")
        pages.append([room["id"] for room in page["chatrooms"]])
        cursor = page["next_cursor"]

    newest_first = rooms[::-1]
    assert pages == [newest_first[:3], newest_first[3:6], newest_first[6:]]


def test_cursor_is_refused_with_another_query_or_none(account: Account) -> None:
    for number in range(3):
        account.open_room(title=f"egret {number}")
    listed = account.call("GET", "/chatroom?limit=1").get_json()["next_cursor"]
    searched = found(account, "egret", "&limit=1")["next_cursor"]
    made_up = [
        base64.urlsafe_b64encode(base64.urlsafe_b64decode(searched + "==").replace(b"q 1 ", offset))
        .decode()
        .rstrip("=")
        for offset in (b"q 0 ", b"q -1 ", b"q 99999 ", b"q 1", b"q \xd9\xa1 ", b"")
    ]

    assert account.call("GET", f"/chatroom?q=egret&limit=1&cursor={searched}").status_code == 200
    queries = [f"q=other&cursor={searched}", f"cursor={searched}", f"q=egret&cursor={listed}", "q=egret&cursor=%C3%A9"]
    for query in [*queries, *(f"q=egret&cursor={cursor}" for cursor in made_up)]:
        answer = account.call("GET", f"/chatroom?{query}")
        assert (answer.status_code, list(answer.get_json()["errors"])) == (422, ["cursor"]), query


def test_list_without_query_has_no_snippets_and_is_cached_beside_searches(account: Account) -> None:
    account.open_room(title="ibis")
    for expected in (False, True):
        page = account.call("GET", "/chatroom").get_json()
        assert page["cached"] is expected
        assert "snippet" not in page["chatrooms"][0]
        assert found(account, "ibis")["cached"] is False


@pytest.fixture
def filled(app: Flask, sign_in: Callable[..., Account]) -> Iterator[list[Account]]:
    """Six users with 24,000 messages in all, each with the word `heath`, in statistics that know it."""
    accounts = [sign_in() for _ in range(6)]
    with app.app_context():
        for account in accounts:
            db.session.execute(
                text(
                    "INSERT INTO messages (id, room_id, user_id, seq, message_type, content, status, created_at)"
                    " SELECT gen_random_uuid(), :room, :user, n, 'user', 'heath number' || n || :filler, 'completed',"
                    " now() - make_interval(secs => 4000 - n) FROM generate_series(1, 4000) n"
                ),
                {"room": account.open_room(), "user": account.id, "filler": f" {FILLER}"},
            )
        db.session.commit()
        db.session.execute(text("ANALYZE messages"))
        db.session.commit()
    yield accounts
    with app.app_context():
        db.session.execute(
            text("DELETE FROM users WHERE id = ANY(CAST(:ids AS uuid[]))"), {"ids": [each.id for each in accounts]}
        )
        db.session.commit()


def plan_of(account: Account, app: Flask, q: str) -> list[dict[str, Any]]:
    """Return the nodes of the plan of a search, as it runs."""
    plans = []

    def explain(_connection: Any, cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
        if "ts_rank" in statement:
            cursor.execute("EXPLAIN (ANALYZE, FORMAT JSON) " + statement, parameters)
            plans.append(cursor.fetchone()[0][0]["Plan"])

    with app.app_context():
        event.listen(db.engine, "before_cursor_execute", explain)
        try:
            found(account, q)
        finally:
            event.remove(db.engine, "before_cursor_execute", explain)
    (plan,) = plans
    return list(_nodes(plan))


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", []):
        yield from _nodes(child)


def test_index_finds_the_messages_and_reads_nobody_elses(filled: list[Account], app: Flask) -> None:
    for q in ("heath", "number17", "heath -lorem", '"heath number17"', "-absent", "heath or number17"):
        nodes = plan_of(filled[0], app, q)

        shown = json.dumps(nodes)
        assert "Seq Scan" not in {node["Node Type"] for node in nodes}, shown
        (scan,) = [node for node in nodes if node.get("Index Name") == "ix_messages_search"]
        assert scan["Actual Rows"] * scan["Actual Loops"] <= 4000, shown
        by_id = [node for node in nodes if node.get("Index Name") == "pk_messages"]
        assert by_id, shown
        assert all(node["Actual Loops"] <= search.MOST_READ_FOR_PHRASES for node in by_id), shown


def test_word_of_every_message_finds_the_newest(filled: list[Account], app: Flask) -> None:
    account = filled[1]
    latest = account.open_room()
    account.prompt(latest, "heath")

    assert latest in found_ids(account, "heath")
    assert latest in found_ids(account, "heath -lorem")
