"""The request budget: what is counted and to whom, behind which proxies, and what happens when Redis is away."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import pytest
import redis
from flask import Flask
from flask.testing import FlaskClient
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from werkzeug.test import TestResponse

from chatapi.breaker import CircuitOpenError, RedisBreaker
from chatapi.limits import OwnWindows, client_network
from tests.support import Account, Services, race, wait_for

EXEMPT = ("/health/live", "/health/ready", "/metrics", "/webhook/stripe")
NOBODY_THERE = "redis://127.0.0.1:1/0"


def call(client: FlaskClient, path: str = "/health", address: str = "192.0.2.1", **options: Any) -> TestResponse:
    return client.open(path, environ_overrides={"REMOTE_ADDR": address}, **options)


def left(answer: TestResponse) -> int:
    """Return what is left of the budget that a request was charged to."""
    return int(answer.headers["X-RateLimit-Remaining"])


@pytest.fixture(scope="module")
def build(make_app: Callable[..., Flask]) -> Callable[..., Flask]:
    """Return what builds an application, once for the same settings."""
    return lru_cache(make_app)


@pytest.fixture
def limited(build: Callable[..., Flask], services: Services) -> Callable[..., FlaskClient]:
    """Return what makes a client of an application with a small budget, and forgets what others have counted."""

    def limited(most: int = 3, **changes: str) -> FlaskClient:
        with redis.Redis.from_url(services.valkey.url) as store:
            for key in store.scan_iter("chatapi:limits:*"):
                store.delete(key)
        return build(RATE_LIMIT_MAX_REQUESTS=str(most), **changes).test_client()

    return limited


def test_hundred_and_first_request_is_refused_over_all_routes_together(limited: Callable[..., FlaskClient]) -> None:
    client = limited(100)
    found = ("/health", "/", "/openapi.json", "/docs", "/static/docs.js")
    refused = ("/nowhere", "/user/me", "/auth/login", "/chatroom/x", "/?x=1")
    statuses = {call(client, path).status_code for path in (*found, *refused) * 10}

    answer = call(client)

    assert statuses == {200, 401, 404, 405, 422}
    assert (answer.status_code, answer.get_json()["error"]) == (429, "rate_limited")
    assert 0 < int(answer.headers["Retry-After"]) <= 901
    assert (answer.headers["X-RateLimit-Limit"], left(answer)) == ("100", 0)
    assert call(client, address="192.0.2.2").status_code == 200


@pytest.mark.parametrize("path", EXEMPT)
def test_exempt_address_is_neither_counted_nor_refused(limited: Callable[..., FlaskClient], path: str) -> None:
    client = limited(1)
    method = "POST" if path == "/webhook/stripe" else "GET"

    before = [call(client, path, method=method) for _ in range(3)]
    assert call(client).status_code == 200
    assert call(client).status_code == 429
    after = call(client, path, method=method)

    for answer in (*before, after):
        assert answer.status_code != 429
        assert "X-RateLimit-Limit" not in answer.headers


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/nowhere"), ("POST", "/health"), ("POST", "/health/live"), ("GET", "/webhook/stripe"),
        ("OPTIONS", "/"),
        ("HEAD", "/health"), ("GET", "/health/live/"), ("GET", "//health/live"), ("GET", "/static/docs.js"),
        ("GET", "/static/nothing.js"), ("GET", "/docs/assets/swagger-ui.css"), ("TRACE", "/"),
    ],
)  # fmt: skip
def test_all_else_is_counted(limited: Callable[..., FlaskClient], method: str, path: str) -> None:
    client = limited(3)

    assert left(call(client, path, method=method)) == 2
    assert left(call(client)) == 1


def test_headers_say_how_the_budget_stands(limited: Callable[..., FlaskClient]) -> None:
    client, ends = limited(3), []
    for remaining in (2, 1, 0, 0):
        answer = call(client)
        ends.append(int(answer.headers["X-RateLimit-Reset"]))
        assert (answer.headers["X-RateLimit-Limit"], left(answer)) == ("3", remaining)
        assert answer.headers.getlist("X-RateLimit-Remaining") == [str(remaining)]
        assert ("Retry-After" in answer.headers) == (answer.status_code == 429)
        assert "X-Limiter-Retry-After" not in answer.headers

    assert max(ends) - min(ends) <= 1
    assert 890 < ends[0] - time.time() <= 901
    assert abs(int(answer.headers["Retry-After"]) + time.time() - ends[0]) <= 2


def test_budget_is_whole_again_when_its_window_is_over(limited: Callable[..., FlaskClient]) -> None:
    client = limited(1, RATE_LIMIT_WINDOW_MS="1000")
    assert call(client).status_code == 200
    refused = call(client)
    assert refused.status_code == 429

    time.sleep(int(refused.headers["Retry-After"]))

    assert call(client).status_code == 200


def test_no_request_more_is_let_through_when_many_come_at_once(limited: Callable[..., FlaskClient]) -> None:
    app = limited(20).application

    answers = race(60, lambda _: call(app.test_client()))

    assert sorted(answer.status_code for answer in answers) == [200] * 20 + [429] * 40
    assert sorted(left(answer) for answer in answers if answer.status_code == 200) == list(range(20))


def test_budget_is_the_users_own_when_a_token_is_good(
    limited: Callable[..., FlaskClient], sign_in: Callable[..., Account]
) -> None:
    client, account = limited(10), sign_in()
    for index in range(10):
        path = ("/user/me", "/health", "/nowhere")[index % 3]
        assert left(call(client, path, f"192.0.2.{100 + index}", headers=account.headers)) == 9 - index

    assert call(client, "/user/me", "192.0.2.99", headers=account.headers).status_code == 429
    assert call(client, "/health", "192.0.2.99").status_code == 200


@pytest.mark.parametrize("path", ["/user/me", "/health", "/nowhere"])
def test_address_is_charged_when_the_session_of_a_token_has_ended(
    limited: Callable[..., FlaskClient], sign_in: Callable[..., Account], path: str
) -> None:
    client, thief = limited(10), sign_in()
    password = {"new_password": "correct horse battery"}
    assert thief.call("POST", "/auth/change-password", password).status_code == 200
    known = {"mobile_number": thief.mobile_number, "password": password["new_password"]}
    owner = thief.client.post("/auth/login", json=known).get_json()["token"]
    assert thief.call("POST", "/auth/logout").status_code == 204

    # Each process finds it out once, at the owner's cost.
    assert left(call(client, path, "192.0.2.66", headers=thief.headers)) == 9
    assert [left(call(client, path, "192.0.2.66", headers=thief.headers)) for _ in range(3)] == [9, 8, 7]

    assert left(call(client, "/user/me", headers={"Authorization": f"Bearer {owner}"})) == 8


@pytest.mark.parametrize(
    ("one", "other", "is_one"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:3::1", "2001:db8:1:4::1", False),
        ("::ffff:192.0.2.44", "192.0.2.44", True),
    ],
)
def test_ipv6_clients_share_a_budget_by_their_network(
    limited: Callable[..., FlaskClient], one: str, other: str, is_one: bool
) -> None:
    client = limited(5)
    assert left(call(client, address=one)) == 4

    assert left(call(client, address=other)) == (3 if is_one else 4)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"), ("192.0.2.1:5555", "192.0.2.1"), (" 192.0.2.1 ", "192.0.2.1"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"), ("[2001:db8:1:2:3::4]:443", "2001:db8:1:2::/64"),
        ("[2001:db8:1:2:3::4]", "2001:db8:1:2::/64"), ("fe80::1%eth0", "fe80::/64"), ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:DB8:1:2::", "2001:db8:1:2::/64"), ("", "unknown"), (None, "unknown"), ("unknown", "unknown"),
        ("192.0.2.1.evil", "unknown"), ("_hidden:1", "unknown"), ("192.0.2.256", "unknown"),
        ("192.000.002.001", "unknown"),
        ("[", "unknown"), ("%", "unknown"), ("１９２.0.2.1", "unknown"), ("a" * 5000, "unknown"),
    ],
)  # fmt: skip
def test_address_stands_for_what_one_client_has(address: str | None, network: str) -> None:
    assert client_network(address) == network


def budget_behind(client: FlaskClient, chain: str | None, proxy: str = "10.0.0.1") -> int:
    headers = [] if chain is None else [("X-Forwarded-For", chain)]
    return left(call(client, address=proxy, headers=headers))


FORGED = (
    "9.9.9.9",
    "9.9.9.8, 9.9.9.7",
    '9.9.9.9, "x',
    '"',
    "",
    ",,,",
    "::1",
    "unknown",
    "9.9.9.9:80",
    "\\",
    "x" * 2000,
)
"""What a client may send itself; what proxies add stands behind it."""


@pytest.mark.parametrize("forged", FORGED)
def test_forwarded_addresses_mean_nothing_when_no_proxy_is_trusted(
    limited: Callable[..., FlaskClient], forged: str
) -> None:
    client = limited(5)
    assert budget_behind(client, None) == 4

    assert budget_behind(client, forged) == 3
    assert budget_behind(client, None, proxy="10.0.0.2") == 4


@pytest.mark.parametrize("forged", FORGED)
@pytest.mark.parametrize(("hops", "added"), [("1", "203.0.113.7"), ("2", "203.0.113.7, 10.0.0.9")])
def test_forged_addresses_do_not_dodge_the_limit_behind_proxies(
    limited: Callable[..., FlaskClient], hops: str, added: str, forged: str
) -> None:
    client = limited(5, TRUSTED_PROXIES=hops)
    assert budget_behind(client, added) == 4

    assert budget_behind(client, f"{forged}, {added}") == 3
    assert budget_behind(client, f"{forged},{added.replace(' ', '')}", proxy="10.0.0.2") == 2
    assert budget_behind(client, added.replace("203.0.113.7", "203.0.113.8")) == 4


def test_whoever_goes_around_a_proxy_is_counted_by_the_address_it_comes_from(
    limited: Callable[..., FlaskClient],
) -> None:
    client = limited(5, TRUSTED_PROXIES="2")

    assert [budget_behind(client, chain, "203.0.113.5") for chain in (None, "9.9.9.9", "8.8.8.8", "")] == [4, 3, 2, 1]


def test_ipv6_clients_behind_a_proxy_are_counted_by_their_network(limited: Callable[..., FlaskClient]) -> None:
    client = limited(5, TRUSTED_PROXIES="1")

    chains = ("2001:db8:1:2::1", "[2001:db8:1:2::2]:443", "9.9.9.9, 2001:db8:1:2:f::", "2001:db8:1:3::1")
    assert [budget_behind(client, chain) for chain in chains] == [4, 3, 2, 4]


@pytest.fixture
def hung_redis() -> Iterator[str]:
    """The URL of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}/0"


def test_requests_are_counted_by_each_process_when_redis_is_away(limited: Callable[..., FlaskClient]) -> None:
    client = limited(3, RATE_LIMIT_REDIS_URL=NOBODY_THERE)

    answers = [call(client) for _ in range(4)]

    assert [(answer.status_code, left(answer)) for answer in answers] == [(200, 2), (200, 1), (200, 0), (429, 0)]
    assert 0 < int(answers[3].headers["Retry-After"]) <= 901


def test_request_that_uses_redis_often_costs_little_more_when_it_hangs(
    limited: Callable[..., FlaskClient],
    sign_in: Callable[..., Account],
    hung_redis: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    client, account = limited(1000, REDIS_URL=hung_redis), sign_in()
    room = account.open_room(title="hung")
    # Building an application took the handler off.
    logging.getLogger().addHandler(caplog.handler)
    app = client.application

    began = time.monotonic()
    first = call(client, f"/chatroom/{room}/message", method="POST", json={"content": "hello"}, headers=account.headers)
    first_took = time.monotonic() - began
    wait_for(lambda: time.monotonic() > began + 1.5)
    began = time.monotonic()
    lists = race(16, lambda _: call(app.test_client(), "/chatroom", headers=account.headers))
    lists_took = time.monotonic() - began
    began = time.monotonic()
    again = call(client, "/chatroom", headers=account.headers)

    assert first.status_code == 201
    assert {answer.status_code for answer in (*lists, again)} == {200}
    assert 0.25 < first_took < 1
    assert lists_took < 2.5
    assert time.monotonic() - began < 1
    warned = [each for each in caplog.records if "redis_unavailable" in each.getMessage()]
    # The limiter's rest is not over when the lists come, and the cache has its own.
    assert len(warned) == 2
    assert not [each for each in caplog.records if each.exc_info]


def test_prompt_that_is_waited_for_comes_in_time_when_redis_hangs(
    limited: Callable[..., FlaskClient], sign_in: Callable[..., Account], hung_redis: str
) -> None:
    client, account = limited(1000, REDIS_URL=hung_redis), sign_in()
    room, wish = account.open_room(title="hung"), {**account.headers, "Prefer": "wait=1"}

    began = time.monotonic()
    answer = call(client, f"/chatroom/{room}/message", method="POST", json={"content": "hello"}, headers=wish)

    assert (answer.status_code, answer.get_json()["ai_message"]["status"]) == (201, "pending")
    assert 1 <= time.monotonic() - began < 2


def test_counters_of_a_process_begin_anew_and_stay_few() -> None:
    windows = OwnWindows(most=3)
    assert windows.add("a", 60, 1)[0] == 1
    count, ends_at = windows.add("a", 60, 1)
    assert count == 2
    assert 58 < ends_at - time.time() <= 60

    for key in "bcd":
        assert windows.add(key, 60, 1)[0] == 1

    assert windows.add("d", 60, 1)[0] == 2
    assert windows.add("a", 60, 1)[0] == 1  # It was the first to go.
    assert windows.add("soon", 0, 1)[0] == 1
    assert windows.add("soon", 0, 1)[0] == 1


def test_counter_of_a_process_loses_nothing_when_many_count_at_once() -> None:
    windows = OwnWindows()

    counts = race(32, lambda _: windows.add("a", 60, 1)[0])

    assert sorted(counts) == list(range(1, 33))


@pytest.mark.parametrize("planted", ["endless", "list", "text"])
def test_request_is_counted_when_something_else_is_in_its_place(
    limited: Callable[..., FlaskClient], services: Services, planted: str
) -> None:
    client = limited(5, BILLING_GRACE_DAYS=str(ord(planted[0])))  # One each: what fails is not asked again for a while.
    assert left(call(client)) == 4
    with redis.Redis.from_url(services.valkey.url) as store:
        (key,) = store.keys("chatapi:limits:*")
        if planted == "endless":
            store.persist(key)
        else:
            store.delete(key)
            store.rpush(key, "x") if planted == "list" else store.set(key, "x")

        assert left(call(client)) == (3 if planted == "endless" else 4)

        assert planted != "endless" or 0 < store.ttl(key) <= 900


def failing(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        time.sleep(0.05)
        raise error

    return fail


def test_breaker_says_once_that_it_opens_when_many_fail_at_once(caplog: pytest.LogCaptureFixture) -> None:
    breaker = RedisBreaker("test")

    def use(_index: int) -> None:
        with pytest.raises(CircuitOpenError):
            breaker.call(failing(RedisConnectionError("away")), "here")

    race(32, use)

    assert len([each for each in caplog.records if "redis_unavailable" in each.getMessage()]) == 1


@pytest.mark.parametrize(("error", "is_away"), [(RedisConnectionError("away"), True), (ResponseError("full"), False)])
def test_uses_of_one_server_learn_of_each_other_when_it_is_away(error: Exception, is_away: bool) -> None:
    here, elsewhere = f"here {time.monotonic()}", f"elsewhere {time.monotonic()}"
    one, other = RedisBreaker("one"), RedisBreaker("other")

    with pytest.raises(CircuitOpenError):
        one.call(failing(error), here)

    assert one.is_open(here)
    assert other.is_open(here) is is_away
    assert not one.is_open(elsewhere)
    assert not other.is_open(elsewhere)
    wait_for(lambda: not other.is_open(here), 3)
    assert one.is_open(here)
