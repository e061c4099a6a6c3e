"""When a request has arrived whole, whatever the pieces in which it comes."""

from __future__ import annotations

import pytest

from chatapi import parsing
from chatapi.arrival import MAX_BODY_BYTES, MAX_CHUNKS, MAX_HEAD_BYTES, MAX_LINE_BYTES, Arrival, State

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNKS = CHUNKED + b"5\r\nhello\r\nA;x=y\r\n0\r\n\r\n89012\r\n0\r\n"


def follow(request: bytes, piece: int) -> list[State]:
    """Return how far the request was after each piece, up to its end."""
    arrival, states = Arrival(), []
    for at in range(0, len(request), piece):
        states.append(arrival.add(request[at : at + piece]))
        if states[-1] not in (State.HEAD, State.BODY):
            break
    return states


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    "request_", [GET, POST, CHUNKS + b"\r\n", CHUNKS + b"Trailer: x\r\n\r\n", CHUNKED + b"0\r\n\r\n"]
)
def test_request_is_whole_with_its_last_byte_and_not_before(request_: bytes, piece: int) -> None:
    states = follow(request_, piece)

    assert len(states) == -(-len(request_) // piece)
    assert states[-1] is State.WHOLE
    assert set(states[:-1]) <= {State.HEAD, State.BODY}


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\n", 400),
        (b"GET / HTTP/1.1\r\nA: b\nC", 400),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 6000, 431),
        (CHUNKED + b"nonsense\r\n", 400),
        (CHUNKED + b"-1\r\n", 400),
        (CHUNKED + b"\r\n", 400),
        (CHUNKED + b"5\r\nhelloXX", 400),
        (CHUNKED + b"fffffff\r\n", 413),
        (CHUNKED + b"8000\r\n%s\r\n" % (b"x" * 0x8000) * 70, 413),
        (CHUNKED + b"0" * 2_100_000, 400),
    ],
)
def test_request_that_can_never_be_whole_is_refused_at_once(request_: bytes, status: int) -> None:
    arrival = Arrival()

    assert arrival.add(request_) is State.REFUSED
    assert arrival.refusal == status


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 5\r\nContent-Length: 6",
        b"Content-Length: five",
        b"Content-Length: -5",
        b"Transfer-Encoding: gzip",
        b"X: y",
    ],
)
def test_head_that_the_parser_refuses_by_itself_is_not_waited_on(head: bytes) -> None:
    assert Arrival().add(b"POST / HTTP/1.1\r\n" + head + b"\r\n\r\n") is State.WHOLE


def test_body_is_not_waited_for_when_it_is_longer_than_any_may_be() -> None:
    head = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n"

    assert Arrival().add(head % MAX_BODY_BYTES) is State.BODY
    assert Arrival().add(head % (MAX_BODY_BYTES + 1)) is State.TOO_LONG
    assert max(parsing.MAX_BODY_BYTES, parsing.MAX_WEBHOOK_BYTES) == MAX_BODY_BYTES


def test_long_body_may_come_with_its_head() -> None:
    body = b"x" * (2 * MAX_HEAD_BYTES)

    assert Arrival().add(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body) is State.WHOLE


def test_next_request_does_not_belong_to_the_first() -> None:
    arrival = Arrival()

    assert arrival.add(POST + GET) is State.WHOLE
    assert bytes(arrival.data) == POST + GET
    assert Arrival(GET[:9]).add(GET[9:]) is State.WHOLE
    assert Arrival(GET).state is State.WHOLE


@pytest.mark.parametrize(("version", "is_expected"), [(b"1.1", True), (b"1.0", False)])
def test_client_that_waits_for_a_word_is_known(version: bytes, *, is_expected: bool) -> None:
    arrival = Arrival()
    arrival.add(b"POST / HTTP/%s\r\nExpect: 100-Continue\r\nContent-Length: 5\r\n\r\n" % version)

    assert arrival.state is State.BODY
    assert arrival.expects_continue is is_expected


@pytest.mark.parametrize("digits", [b"0" * 17 + b"50", b"9" * 19, b"9" * 5000])
def test_length_of_too_many_digits_is_refused(digits: bytes) -> None:
    arrival = Arrival()

    assert arrival.add(b"POST / HTTP/1.1\r\nContent-Length: %s\r\n\r\n{" % digits) is State.REFUSED
    assert arrival.refusal == 400


@pytest.mark.parametrize(
    ("chunks", "status"),
    [
        (b"1\r\nx\r\n" * (MAX_CHUNKS + 1), 413),
        (b"1;" + b"x" * MAX_LINE_BYTES, 400),
        (b"0\r\nX: " + b"x" * MAX_HEAD_BYTES, 431),
    ],
    ids=["many chunks", "long size line", "long trailers"],
)
def test_chunks_that_would_cost_much_time_are_refused(chunks: bytes, status: int) -> None:
    arrival = Arrival()

    assert arrival.add(CHUNKED + chunks) is State.REFUSED
    assert arrival.refusal == status


def test_as_many_chunks_as_there_may_be_are_taken() -> None:
    assert Arrival().add(CHUNKED + b"1\r\nx\r\n" * (MAX_CHUNKS - 1) + b"0\r\n\r\n") is State.WHOLE
