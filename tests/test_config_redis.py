"""Where Redis may be, and how that is written."""

from __future__ import annotations

import pytest

from config_redis import redis_address


@pytest.mark.parametrize(
    ("url", "nodes", "place"),
    [
        ("redis://", (("localhost", 6379),), "localhost:6379"),
        ("redis://h/3", (("h", 6379),), "h:6379/3"),
        ("rediss://:p%2Fw@h:1", (("h", 1),), "h:1"),
        ("redis://[::1]:7/0", (("::1", 7),), "[::1]:7"),
        ("unix:///run/r.sock", (), "/run/r.sock"),
        ("redis+cluster://u:p@a:1,b", (("a", 1), ("b", 6379)), "a:1,b:6379"),
        ("rediss+cluster://[2001:db8::1]:1,b:2/", (("2001:db8::1", 1), ("b", 2)), "[2001:db8::1]:1,b:2"),
        ("redis+sentinel://a,b:5/chat", (("a", 26379), ("b", 5)), "a:26379,b:5/chat"),
        ("redis+sentinel://a/chat/2", (("a", 26379),), "a:26379/chat/2"),
        ("redis+sentinel://a/my%20chat?sentinel_password=x", (("a", 26379),), "a:26379/my chat"),
        ("rediss://h?ssl_ca_certs=/ca.pem&client_name=x", (("h", 6379),), "h:6379"),
        ("unix:///run/r.sock?db=2", (), "/run/r.sock"),
    ],
)
def test_address_is_taken_to_pieces(url: str, nodes: tuple[tuple[str, int], ...], place: str) -> None:
    address = redis_address(url)

    assert address.nodes == nodes
    assert address.place == place


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("http://h", "must begin with"),
        ("redis://a,b", "several hosts"),
        ("redis://h/name", "number of a database"),
        ("redis://h:99999", "hosts and ports"),
        ("redis://h:0", "hosts and ports"),
        ("redis://a b", "hosts and ports"),
        ("redis+cluster://a,,b", "hosts and ports"),
        ("redis+cluster://a/1", "a cluster has one database"),
        ("redis+sentinel://a", "name of the service"),
        ("redis+sentinel://a/chat/x", "name of the service"),
        ("redis://[::1", "is not a URL"),
        ("redis+cluster://:se/cret@a:1", "hosts and ports"),
        ("redis+cluster://u:cret@a,u:cret@b", "a comma in them"),
        ("redis://:1#cret@h", "%23"),
        ("unix://run/r.sock", "unix:///path"),
        ("redis://h?foo=cret", "not one of client_name, db,"),
        ("redis://h?socket_timeout=2", "not one of client_name, db,"),
        ("redis+cluster://h?db=2", "not one of client_name,"),
        ("redis+sentinel://h/chat?sentinel_foo=1", "sentinel_password"),
        ("redis://h?ssl_ca_certs=cret", "redis-py does not know"),
        ("redis://h?db=cret", "redis-py does not know"),
    ],
)
def test_url_is_refused_without_quoting_it_when_it_cannot_be_read(url: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault) as caught:
        redis_address(url)

    assert "cret" not in str(caught.value)


def test_url_of_a_node_has_the_credentials_and_options_of_all() -> None:
    address = redis_address("rediss+sentinel://u:p%40w@a:1,b:2/chat?ssl_ca_certs=%2Fca.pem&sentinel_password=other")

    assert address.url_of("c", 3) == "rediss://u:p%40w@c:3/0?ssl_ca_certs=%2Fca.pem"
    assert address.url_of("::1", 3).startswith("rediss://u:p%40w@[::1]:3/0")
