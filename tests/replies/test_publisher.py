"""What a worker publishes of a reply: the first text at once, then batches; the whole anew when the stream was lost."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from uuid import uuid4

import pytest
import redis
from flask import Flask

from chatapi.chatrooms.endings import Lease
from chatapi.chatrooms.live import BEGINNING, LiveReplies, Piece, Written
from chatapi.dev.embedded import EmbeddedValkey, free_port
from chatapi.replies.publisher import PUBLISH_EVERY_SECONDS, Publisher
from tests.support import Services, wait_for

_tokens = itertools.count(1)


@pytest.fixture
def live(app: Flask) -> LiveReplies:
    replies: LiveReplies = app.extensions["live_replies"]
    wait_for(lambda: not replies._breaker.is_open(replies._writer.place_of("")), 3)  # Other tests take Redis away.
    return replies


@pytest.fixture
def publisher(app: Flask, live: LiveReplies) -> Publisher:
    return Publisher(app)


@pytest.fixture
def lease() -> Lease:
    return Lease(uuid4(), uuid4(), uuid4(), next(_tokens), 1, 0.0, None)


def joined(written: list[Written]) -> str:
    """What a reader has in the end, who drops what they have already."""
    text = ""
    for entry in written:
        assert entry.offset <= len(text)
        text += entry.text[len(text) - entry.offset :]
    return text


def test_beginning_is_published_before_there_is_text(publisher: Publisher, live: LiveReplies, lease: Lease) -> None:
    publisher.begin(lease)

    (written,) = wait_for(lambda: live.read(lease.message_id, BEGINNING), 2, every=0.01)

    assert (written.token, written.offset, written.text, written.is_end) == (lease.token, 0, "", False)


def test_first_text_is_published_at_once(
    publisher: Publisher, live: LiveReplies, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatapi.replies.publisher.PUBLISH_EVERY_SECONDS", 5.0)
    text = publisher.begin(lease)
    (beginning,) = wait_for(lambda: live.read(lease.message_id, BEGINNING), 2, every=0.01)
    begun = time.monotonic()

    assert text.add("first")

    (written,) = live.read(lease.message_id, beginning.position, wait_seconds=1)
    assert time.monotonic() - begun < 1
    assert (written.token, written.offset, written.text) == (lease.token, 0, "first")
    assert not text.add("second")
    assert live.read(lease.message_id, written.position, wait_seconds=0.5) == []


def test_rest_is_published_in_batches_without_gap_or_repeat(
    publisher: Publisher, live: LiveReplies, lease: Lease
) -> None:
    text = publisher.begin(lease)
    begun = time.monotonic()
    for number in range(100):
        text.add(f"wörd {number} 🙂 ")
        time.sleep(0.005)
    wait_for(lambda: joined(live.read(lease.message_id, BEGINNING)) == text.text, 2)

    written = live.read(lease.message_id, BEGINNING)

    assert 4 <= len(written) <= (time.monotonic() - begun) / PUBLISH_EVERY_SECONDS + 3
    offset = 0
    for entry in written:
        assert entry.offset == offset
        offset += len(entry.text)
    assert text.text == "".join(f"wörd {number} 🙂 " for number in range(100))


def test_replies_written_at_once_are_not_mixed_up(publisher: Publisher, live: LiveReplies) -> None:
    leases = [Lease(uuid4(), uuid4(), uuid4(), next(_tokens), 1, 0.0, None) for _ in range(20)]
    texts = [publisher.begin(lease) for lease in leases]
    for number in range(30):
        for index, text in enumerate(texts):
            text.add(f"{index}.{number} ")
        time.sleep(0.01)

    for index, lease in enumerate(leases):
        whole = "".join(f"{index}.{number} " for number in range(30))
        wait_for(lambda lease=lease, whole=whole: joined(live.read(lease.message_id, BEGINNING)) == whole, 2)


def test_whole_text_is_published_again_when_the_stream_was_lost(
    services: Services, publisher: Publisher, live: LiveReplies, lease: Lease
) -> None:
    text = publisher.begin(lease)
    text.add("before ")
    wait_for(lambda: joined(live.read(lease.message_id, BEGINNING)) == "before ", 2)
    with redis.Redis.from_url(services.environ["REDIS_URL"]) as server:
        server.flushall()
    assert live.read(lease.message_id, BEGINNING) == []

    text.add("after")

    wait_for(lambda: joined(live.read(lease.message_id, BEGINNING)) == "before after", 2)
    beginning, *rest = live.read(lease.message_id, BEGINNING)
    assert (beginning.offset, beginning.text) == (0, "")
    assert rest[0].offset == 0
    assert {entry.token for entry in (beginning, *rest)} == {lease.token}


def test_publishing_goes_on_after_a_failure_that_nobody_foresaw(
    publisher: Publisher, live: LiveReplies, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_pieces: Sequence[Piece]) -> list[bool | None]:
        monkeypatch.undo()
        raise ValueError

    monkeypatch.setattr(live, "append", fail)

    publisher.begin(lease).add("whole")

    wait_for(lambda: joined(live.read(lease.message_id, BEGINNING)) == "whole", 5)


def test_stream_that_another_attempt_began_is_gone_on_with(
    publisher: Publisher, live: LiveReplies, lease: Lease
) -> None:
    first = publisher.begin(lease)
    first.add("of the first")
    wait_for(lambda: joined(live.read(lease.message_id, BEGINNING)) == "of the first", 2)
    first.end()
    second = Lease(lease.message_id, lease.room_id, lease.user_id, next(_tokens), 2, 0.0, None)

    publisher.begin(second).add("of the second")

    wait_for(lambda: "of the second" in [entry.text for entry in live.read(lease.message_id, BEGINNING)], 2)
    tokens = [entry.token for entry in live.read(lease.message_id, BEGINNING)]
    assert tokens == sorted(tokens)
    assert [entry.offset for entry in live.read(lease.message_id, BEGINNING) if entry.token == second.token] == [0, 0]


def test_nothing_is_published_after_the_end(publisher: Publisher, live: LiveReplies, lease: Lease) -> None:
    text = publisher.begin(lease)
    text.add("before")
    wait_for(lambda: joined(live.read(lease.message_id, BEGINNING)) == "before", 2)

    text.add(" and")
    text.end()
    text.add(" after")
    time.sleep(0.4)

    assert joined(live.read(lease.message_id, BEGINNING)) in {"before", "before and"}
    assert text.text == "before and after"


def test_what_no_store_can_hold_is_replaced(publisher: Publisher, live: LiveReplies, lease: Lease) -> None:
    text = publisher.begin(lease)
    text.add("a\x00b\ud800c")

    wait_for(lambda: joined(live.read(lease.message_id, BEGINNING)) == "a\ufffdb\ufffdc", 2)
    assert text.text == "a\ufffdb\ufffdc"


@pytest.fixture
def valkey(tmp_path: Path) -> EmbeddedValkey:
    """A Valkey that is not running yet."""
    valkey = EmbeddedValkey(tmp_path / "valkey", free_port())
    valkey.prepare()
    return valkey


def test_what_was_written_while_redis_was_away_is_published_later(
    tmp_path: Path, valkey: EmbeddedValkey, make_app: Callable[..., Flask], lease: Lease
) -> None:
    app = make_app(REDIS_URL=valkey.url)
    live: LiveReplies = app.extensions["live_replies"]
    text = Publisher(app).begin(lease)
    for _ in range(5):
        begun = time.monotonic()
        text.add("away ")
        assert time.monotonic() - begun < 0.25
        time.sleep(0.1)
    process = valkey.child(log=tmp_path / "valkey.log")
    process.start()
    try:
        assert valkey.wait_ready()
        wait_for(lambda: not live._breaker.is_open(live._writer.place_of("")), 3)

        text.add("and back")

        wait_for(lambda: joined(live.read(lease.message_id, BEGINNING)) == "away " * 5 + "and back", 5)
    finally:
        process.stop()
    text.add(" and away again")
    time.sleep(0.5)
    text.end()
    assert text.text.endswith("and away again")


def test_one_thread_publishes_for_all(publisher: Publisher) -> None:
    before = [thread for thread in threading.enumerate() if thread.name == "publisher"]
    for _ in range(10):
        publisher.begin(Lease(uuid4(), uuid4(), uuid4(), next(_tokens), 1, 0.0, None))

    after = [thread for thread in threading.enumerate() if thread.name == "publisher"]
    assert len(after) == len(before) + 1


def test_piece_of_a_lost_stream_is_not_there(live: LiveReplies, lease: Lease) -> None:
    lost = Piece(lease.message_id, lease.token, 5, "later", is_first=False)

    assert live.append([lost]) == [False]
    assert live.append([Piece(lease.message_id, lease.token, 0, "", is_first=True), lost]) == [True, True]
