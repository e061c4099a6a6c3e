"""Where Redis is: one server, a cluster, or whichever server Sentinels name.

- `redis://[user:password@]host[:port][/database]`, `rediss://` with TLS, `unix:///path`
- `redis+cluster://[user:password@]host[:port],host[:port],…`: some of a cluster's nodes, which tell of the others
- `redis+sentinel://[user:password@]host[:port],host[:port],…/service[/database]`: the Sentinels, and what they watch

With TLS those begin with `rediss+`. User and password are those of the servers; for Sentinels that want some there are
`sentinel_username` and `sentinel_password` in the query. There `client_name` may stand too, and with TLS redis-py's
options for that (`?ssl_ca_certs=/path`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import redis
from marshmallow import ValidationError, fields

SCHEMES = ("redis", "rediss", "unix")
CLUSTER_SCHEMES = ("redis+cluster", "rediss+cluster")
SENTINEL_SCHEMES = ("redis+sentinel", "rediss+sentinel")
OF_SENTINELS = "sentinel_"
DEFAULT_PORT = 6379
SENTINEL_PORT = 26379

_NODE = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s:\[\]/@,]+)(:(?P<port>[0-9]{1,5}))?")

Options = tuple[tuple[str, str], ...]
"""Names and values of a URL's query."""


@dataclass(frozen=True)
class RedisAddress:
    """A Redis URL taken to pieces. `nodes` are hosts and ports, of one server, of cluster nodes or of Sentinels.

    A `service` is there for Sentinels alone, and so are `sentinel_options`, for connections to themselves; `options`
    are for those to servers. A Unix socket has a `path` and no nodes.
    """

    scheme: str
    credentials: str
    nodes: tuple[tuple[str, int], ...]
    service: str | None
    database: int
    options: Options
    sentinel_options: Options = ()
    path: str = ""

    @property
    def is_cluster(self) -> bool:
        """Whether the slots of the keys say where they are."""
        return self.scheme in CLUSTER_SCHEMES

    @property
    def is_sentinel(self) -> bool:
        """Whether Sentinels say which server it is."""
        return self.scheme in SENTINEL_SCHEMES

    @property
    def has_tls(self) -> bool:
        """Whether servers, and Sentinels, are spoken to by TLS."""
        return self.scheme.startswith("rediss")

    @property
    def servers(self) -> str:
        """Where that is, whichever database is meant."""
        if self.scheme == "unix":
            return self.path
        return ",".join(bracketed(*node) for node in self.nodes) + ("" if self.service is None else f"/{self.service}")

    @property
    def place(self) -> str:
        """Where that is, without who we are there."""
        return self.servers + (f"/{self.database}" if self.database else "")

    def url_of(self, host: str, port: int) -> str:
        """Return the URL of one server, to be spoken to as this address says."""
        query = urlencode(self.options)
        scheme = "rediss" if self.has_tls else "redis"
        who = f"{self.credentials}@" if self.credentials else ""
        return f"{scheme}://{who}{bracketed(host, port)}/{self.database}" + (f"?{query}" if query else "")


def redis_address(url: str) -> RedisAddress:
    """Take a URL to pieces. Raises `ValueError` with what is wrong with it, without quoting it."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError("is not a URL; in passwords, / is written %2F, and so is whatever means something") from None
    if parts.scheme not in (*SCHEMES, *CLUSTER_SCHEMES, *SENTINEL_SCHEMES):
        wanted = " or ".join(f"{name}://" for name in SCHEMES)
        raise ValueError(f"must begin with {wanted}, or redis+cluster:// or redis+sentinel:// (rediss+ with TLS)")
    credentials, _, hosts = parts.netloc.rpartition("@")
    if parts.fragment or "#" in url:
        raise ValueError("has a #, which is written %23 in passwords")
    if parts.scheme not in SCHEMES and "," in credentials:
        raise ValueError("has a comma before its last @; user and password stand there once, a comma in them as %2C")
    options, sentinel_options = _options(parts.scheme, parts.query)
    if parts.scheme == "unix":
        if hosts or not parts.path:
            raise ValueError("must be unix:// and the whole path of a socket, with three strokes: unix:///path")
        return RedisAddress(parts.scheme, credentials, (), None, 0, options, path=parts.path)
    usual_port = SENTINEL_PORT if parts.scheme in SENTINEL_SCHEMES else DEFAULT_PORT
    nodes = tuple(_node(word, usual_port) for word in (hosts or "localhost").split(","))
    if parts.scheme in SCHEMES and len(nodes) > 1:
        raise ValueError("names several hosts, which is for redis+cluster:// and redis+sentinel://")
    service, database = _service(parts.scheme, parts.path)
    return RedisAddress(parts.scheme, credentials, nodes, service, database, options, sentinel_options)


class RedisUrl(fields.String):
    """The URL of a Redis in one of the forms above."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> str:
        url = str(super()._deserialize(value, attr, data, **kwargs))
        try:
            redis_address(url)
        except ValueError as error:
            raise ValidationError(str(error)) from None
        return url


def _options(scheme: str, query: str) -> tuple[Options, Options]:
    """Return the options of the servers, and those of the Sentinels, whose names have lost what marks them.

    Raises `ValueError` if there is one beside those of TLS and of names.
    What else connections of redis-py can be told is for us to say: time-outs, how many there are, what they return.
    """
    options = parse_qsl(query, keep_blank_values=True)
    known = {"client_name", *(() if scheme in CLUSTER_SCHEMES else ("db",))}
    if scheme in SENTINEL_SCHEMES:
        known |= {f"{OF_SENTINELS}username", f"{OF_SENTINELS}password"}
    strange = [name for name, _ in options if name not in known and not name.startswith("ssl_")]
    if strange:
        raise ValueError(f"has an option behind its ? that is not one of {', '.join(sorted(known))}, ssl_ca_certs, …")
    of_servers = tuple((name, value) for name, value in options if not name.startswith(OF_SENTINELS))
    of_sentinels = tuple(
        (name.removeprefix(OF_SENTINELS), value) for name, value in options if name.startswith(OF_SENTINELS)
    )
    place = "unix:///socket" if scheme == "unix" else f"{scheme.partition('+')[0]}://localhost"
    try:
        redis.ConnectionPool.from_url(f"{place}?{urlencode(of_servers)}").make_connection()  # Which connects nothing.
    except (TypeError, ValueError, redis.RedisError):
        raise ValueError("has an option behind its ? that redis-py does not know, or not so") from None
    return of_servers, of_sentinels


def _node(word: str, usual_port: int) -> tuple[str, int]:
    """Return a host, without brackets, and its port."""
    found = _NODE.fullmatch(word)
    port = int(found["port"] or usual_port) if found else 0
    if found is None or not 0 < port < 2**16:
        raise ValueError(
            "is not a URL of hosts and ports; in passwords, / is written %2F, and so is whatever means something"
        )
    return found["host"].strip("[]"), port


def _service(scheme: str, path: str) -> tuple[str | None, int]:
    """Return what Sentinels watch, None where there are none, and the number of the database."""
    if scheme in CLUSTER_SCHEMES:
        if path not in ("", "/", "/0"):
            raise ValueError("must end in its hosts: a cluster has one database")
        return None, 0
    if scheme in SENTINEL_SCHEMES:
        found = re.fullmatch(r"/(?P<service>[^/]+)(/(?P<database>[0-9]{0,5}))?", path)
        if found is None:
            raise ValueError("must end in the name of the service that the Sentinels watch, and a database if any")
        return unquote(found["service"]), int(found["database"] or 0)
    if not re.fullmatch(r"(/[0-9]{0,5})?", path):
        raise ValueError("must end in the number of a database, or in nothing")
    return None, int(path.strip("/") or 0)


def bracketed(host: str, port: int) -> str:
    """Return host and port as URLs have them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
