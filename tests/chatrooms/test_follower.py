"""What one reader of a reply gets: nothing twice, nothing missing, wherever they left off and whatever was lost."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import pytest

from chatapi.chatrooms.follower import Event, Follower, end_id
from chatapi.chatrooms.live import Written

ALPHABET = "abc äöü 漢字 🦊\n"


def written(token: int, offset: int, text: str) -> Written:
    return Written("1-1", token, offset, text)


def finished(content: str, status: str = "completed") -> dict[str, Any]:
    return {"content": content, "status": status, "error": "timed_out" if status == "failed" else None}


def told(events: Iterable[Event]) -> list[tuple[str, str]]:
    return [(event.name, event.data.get("text", "")) for event in events]


def follow(follower: Follower, *entries: Written) -> list[tuple[str, str]]:
    for entry in entries:
        follower.take(entry)
    return told(follower.events())


def test_text_comes_in_its_order_with_ids_to_go_on_from() -> None:
    follower = Follower(None)
    follower.take(written(7, 0, ""))
    follower.take(written(7, 0, "Hello"))
    (first,) = follower.events()
    follower.take(written(7, 5, " world"))
    (second,) = follower.events()

    assert (first.data, second.data) == ({"text": "Hello"}, {"text": " world"})
    assert first.id != second.id
    assert follow(Follower(first.id), written(7, 0, ""), written(7, 0, "Hello"), written(7, 5, " world")) == [
        ("delta", " world")
    ]
    assert follow(Follower(second.id), written(7, 0, "Hello"), written(7, 5, " world")) == []


def test_event_on_the_wire_is_one_line_of_json_whatever_the_text() -> None:
    follower = Follower(None)
    follower.take(written(1, 0, "a\n\r\n\ndata: {}\u2028\x85"))

    (event,) = follower.events()

    lines = event.encode().split("\n")
    assert [line.split(":")[0] for line in lines] == ["id", "event", "data", "", ""]
    assert "\r" not in event.encode()


def test_new_attempt_resets_who_has_seen_an_earlier_one_and_nobody_else() -> None:
    early, late = Follower(None), Follower(None)
    assert follow(early, written(1, 0, "half a")) == [("delta", "half a")]

    assert follow(early, written(2, 0, ""), written(2, 0, "whole")) == [("reset", ""), ("delta", "whole")]
    assert follow(late, written(1, 0, "half a"), written(2, 0, ""), written(2, 0, "whole")) == [("delta", "whole")]


def test_what_an_older_attempt_writes_late_is_dropped() -> None:
    follower = Follower(None)

    assert follow(follower, written(2, 0, "new"), written(1, 0, "frozen"), written(2, 3, "er")) == [("delta", "newer")]


def test_gap_waits_for_the_stored_text() -> None:
    follower = Follower(None)
    assert follow(follower, written(1, 0, "one ")) == [("delta", "one ")]
    assert follow(follower, written(1, 8, "three")) == []

    assert told(follower.finish(finished("one two three"), 1, None)) == [("delta", "two three"), ("done", "")]


def test_whole_text_again_is_not_repeated() -> None:
    follower = Follower(None)
    assert follow(follower, written(1, 0, "one ")) == [("delta", "one ")]

    assert follow(follower, written(1, 0, ""), written(1, 0, "one two")) == [("delta", "two")]


@pytest.mark.parametrize("last_event_id", ["junk", "-1", "9999-x", "99999999999999999999-1", "12-3\n", "٣-1", "5-end"])
def test_unknown_position_starts_anew_with_a_reset(last_event_id: str) -> None:
    follower = Follower(last_event_id)

    assert follow(follower, written(1, 0, "text")) == [("reset", ""), ("delta", "text")]


def test_position_in_another_reply_starts_anew_with_a_reset() -> None:
    assert told(Follower("4-100").finish(finished("short"), 9, None)) == [
        ("reset", ""),
        ("delta", "short"),
        ("done", ""),
    ]
    assert told(Follower("9-100").finish(finished("short"), 9, None))[0] == ("reset", "")


def test_end_says_how_and_takes_back_the_text_of_a_failed_reply() -> None:
    reader = Follower(None)
    assert follow(reader, written(1, 0, "half")) == [("delta", "half")]

    reset, error = reader.finish(finished("", "failed"), None, "too late")

    assert (reset.name, error.name) == ("reset", "error")
    assert error.data == {"error": "timed_out", "detail": "too late", "message": finished("", "failed")}
    assert error.id == end_id(None)
    assert told(Follower(None).finish(finished("", "failed"), None, None)) == [("error", "")]
    assert told(Follower(None).finish(finished("so far", "stopped"), 3, None)) == [("delta", "so far"), ("stopped", "")]


def test_stored_text_that_is_not_what_was_streamed_replaces_it() -> None:
    reader = Follower(None)
    assert follow(reader, written(1, 0, "streamed too far")) == [("delta", "streamed too far")]

    assert told(reader.finish(finished("streamed", "stopped"), 1, None)) == [
        ("reset", ""),
        ("delta", "streamed"),
        ("stopped", ""),
    ]


@pytest.mark.parametrize("seed", range(200))
def test_deltas_since_the_last_reset_are_the_stored_content_whatever_is_cut_or_lost(seed: int) -> None:
    """Attempts that fail, entries that are lost or come late, readers cut at any event: all at random."""
    chance = random.Random(seed)  # noqa: S311
    entries, content, token = history(chance)
    client, written_so_far = Client(), 0
    while written_so_far < len(entries):
        written_so_far += chance.randrange(1, 9)
        there = entries[:written_so_far]
        if chance.random() < 0.3:
            there = [entry for entry in there if chance.random() > 0.1]
        follower = Follower(client.last_event_id)
        for entry in there:
            follower.take(entry)
            if chance.random() < 0.5 and client.is_cut(follower.events(), chance):
                break
    follower = Follower(client.last_event_id)
    client.is_cut(follower.finish(finished(content), token, None))

    assert client.text == content
    assert client.last_event_id == end_id(token)


def history(chance: random.Random) -> tuple[list[Written], str, int]:
    entries: list[Written] = []
    content, token = "", 0
    for _ in range(chance.randrange(1, 4)):
        token += chance.randrange(1, 5)
        stale = entries[-1:]
        content = "".join(chance.choices(ALPHABET, k=chance.randrange(1, 200)))
        entries.append(written(token, 0, ""))
        offset = 0
        while offset < len(content):
            length = chance.randrange(1, 20)
            entries.append(written(token, offset, content[offset : offset + length]))
            offset += length
        entries += stale
    return entries, content, token


class Client:
    """Does with events what a client does, until its connection is cut."""

    def __init__(self) -> None:
        self.text = ""
        self.last_event_id: str | None = None

    def is_cut(self, events: Iterable[Event], chance: random.Random | None = None) -> bool:
        for event in events:
            if event.name == "reset":
                self.text = ""
            self.text += event.data.get("text", "")
            self.last_event_id = event.id
            if chance is not None and chance.random() < 0.2:
                return True
        return False
