"""The limits of sign-in. They live in PostgreSQL, so they hold, for all processes together, whatever Redis does.

A limit keeps the times of what it counted, so no hour ever sees more than the limit of an hour, wherever the hour
begins. What is counted hangs on a keyed hash of a number or an address: it outlives accounts, and names nobody.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from flask import current_app
from sqlalchemy import delete, func, select, text

from chatapi.auth.models import AuthFailures, AuthLimit, KnownNetwork
from chatapi.errors import RateLimitedError
from chatapi.extensions import db, delete_some, in_transaction
from chatapi.keys import keyed_hash

MINUTE, HOUR, DAY = 60, 3600, 24 * 3600

IP_WINDOW_SECONDS = 15 * MINUTE
FAILURES_WINDOW_SECONDS = 10 * MINUTE
FAILURES_BUCKET_SECONDS = 10
UNKNOWN_NETWORK_LIMIT = 5
"""Requests that an address not seen before has per 15 minutes while failures abound: enough to sign up once."""
KNOWN_NETWORK_DAYS = 90

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Limit:
    """At most so many within so many seconds, for each of `windows`: (most, seconds)."""

    name: str
    windows: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Hit:
    """Something that was counted; `give_back` takes it off again."""

    limit: Limit
    subject: bytes
    at: datetime


class OtpRateLimitedError(RateLimitedError):
    """Too many codes were asked for."""

    slug = "otp_rate_limited"
    message = "Too many codes were asked for, try again later"


CODES = Limit("codes", ((5, HOUR), (10, DAY)))
"""Codes to one number, of whatever purpose: what a stranger can make its owner receive, or us pay."""

CODE_TRIES = Limit("code_tries", ((15, HOUR), (30, DAY)))
"""Failed checks of a number's codes, over all of them: asking for another code buys few further guesses."""

PASSWORD_TRIES = Limit("password_tries", ((10, HOUR), (30, DAY)))
"""Failed checks of a number's password. Its owner can still sign in with a code meanwhile."""

SIGN_UPS = Limit("sign_ups", ((5, HOUR), (10, DAY)))
"""Sign-ups of one number that nobody has verified."""

SIGN_UP_CONFLICTS = Limit("sign_up_conflicts", ((5, HOUR),))
"""Answers `already_registered` to one address: the only place that tells a registered number from another."""

_ALERTS = Limit("alerts", ((1, FAILURES_WINDOW_SECONDS),))


def code_spacing(purpose: str) -> Limit:
    """Return the limit that keeps codes of one purpose a minute apart."""
    return Limit(f"code_spacing:{purpose}", ((1, MINUTE),))


# One statement reads, decides and counts; the row lock makes a race a queue. The clock is read after the lock is
# had, as a transaction's own time would be that of its beginning.
_TAKE = text("""
    INSERT INTO auth_limits AS held (name, subject, hits, expires_at)
    VALUES (:name, :subject, ARRAY[clock_timestamp()], clock_timestamp() + make_interval(secs => :longest))
    ON CONFLICT (name, subject) DO UPDATE SET
        hits = ARRAY(
            SELECT hit FROM unnest(held.hits) AS hit
            WHERE hit > clock_timestamp() - make_interval(secs => :longest) ORDER BY hit
        ) || clock_timestamp(),
        expires_at = excluded.expires_at
    WHERE NOT EXISTS (
        SELECT FROM unnest(CAST(:most AS integer[]), CAST(:seconds AS integer[])) AS span (most, seconds)
        WHERE span.most <= (
            SELECT count(*) FROM unnest(held.hits) AS hit
            WHERE hit > clock_timestamp() - make_interval(secs => span.seconds)
        )
    )
    RETURNING hits[cardinality(hits)]
""")

_GIVE_BACK = text("""
    UPDATE auth_limits SET hits = array_remove(hits, CAST(:at AS timestamptz)) WHERE name = :name AND subject = :subject
""")

_COUNT_FAILURE = text("""
    INSERT INTO auth_failures AS bucket (began_at, failures)
    VALUES (to_timestamp(floor(extract(epoch FROM now()) / :width) * :width), 1)
    ON CONFLICT (began_at) DO UPDATE SET failures = bucket.failures + 1
""")

# Nothing is written, and no row locked, for an address that was noted today already.
_REMEMBER = text("""
    INSERT INTO known_networks (network_hash, seen_at)
    SELECT :network_hash, now() WHERE NOT EXISTS (
        SELECT FROM known_networks WHERE network_hash = :network_hash AND seen_at > now() - interval '1 day'
    )
    ON CONFLICT (network_hash) DO UPDATE SET seen_at = now()
""")


def try_take(limit: Limit, subject: bytes) -> Hit | None:
    """Count one more of what `limit` limits, or return None when there is no more to have.

    It stands when the caller's transaction is committed, and until then whoever asks for the same waits.
    """
    most, seconds = [each[0] for each in limit.windows], [each[1] for each in limit.windows]
    at: datetime | None = db.session.scalar(
        _TAKE,
        {"name": limit.name, "subject": subject, "most": most, "seconds": seconds, "longest": max(seconds)},
    )
    return None if at is None else Hit(limit, subject, at)


def take(limit: Limit, subject: bytes, error: type[RateLimitedError] = RateLimitedError) -> Hit:
    """Count one more of what `limit` limits.

    Raises `error`, with the seconds until there is one to have again, when there is none.
    """
    hit = try_take(limit, subject)
    if hit is None:
        raise too_many(limit, subject, error)
    return hit


def too_many(limit: Limit, subject: bytes, error: type[RateLimitedError] = RateLimitedError) -> RateLimitedError:
    """Return the refusal of what is limited, with the seconds until there is one to have again."""
    return error(retry_after=_seconds_until_free(limit, subject))


def give_back(hit: Hit) -> None:
    """Uncount what turned out not to count, such as a try that was right."""
    db.session.execute(_GIVE_BACK, {"name": hit.limit.name, "subject": hit.subject, "at": hit.at})


def clear(limit: Limit, subject: bytes) -> None:
    """Forget all that was counted."""
    db.session.execute(delete(AuthLimit).where(AuthLimit.name == limit.name, AuthLimit.subject == subject))


def take_for_network(network: str, error: type[RateLimitedError] = RateLimitedError) -> None:
    """Count a request to a public sign-in route, in a transaction of its own: whatever becomes of it, it counts.

    Raises `error` over `AUTH_IP_LIMIT`, or over a smaller limit when checks fail everywhere and nobody has signed in
    from this address before.
    """
    subject = hash_network(network)

    def count() -> None:
        most = current_app.config["AUTH_IP_LIMIT"]
        if failures_abound() and not _is_known(subject):
            most = min(most or UNKNOWN_NETWORK_LIMIT, UNKNOWN_NETWORK_LIMIT)
        if most:
            take(Limit("requests", ((most, IP_WINDOW_SECONDS),)), subject, error)

    in_transaction(count)


def count_failure() -> None:
    """Count a failed check of a code or password, over all numbers, and raise the alert when they are too many."""
    db.session.execute(_COUNT_FAILURE, {"width": FAILURES_BUCKET_SECONDS})
    if failures_abound() and try_take(_ALERTS, b"") is not None:
        log.error(
            "sign_in_failures_abound",
            limit=current_app.config["OTP_GLOBAL_FAILURES"],
            window_seconds=FAILURES_WINDOW_SECONDS,
        )


def failures_abound() -> bool:
    """Return whether more than `OTP_GLOBAL_FAILURES` checks failed in the last ten minutes, over all numbers."""
    window = timedelta(seconds=FAILURES_WINDOW_SECONDS)
    failures: int | None = db.session.scalar(
        select(func.sum(AuthFailures.failures)).where(AuthFailures.began_at > func.now() - window)
    )
    limit: int = current_app.config["OTP_GLOBAL_FAILURES"]
    return (failures or 0) > limit


def remember_network(network: str) -> None:
    """Note that somebody signed in from this address."""
    db.session.execute(_REMEMBER, {"network_hash": hash_network(network)})


def hash_network(network: str) -> bytes:
    """Return what stands for an address, so that none is stored."""
    return keyed_hash("network", network)


def prune_limits() -> int:
    """Delete some of what no longer limits anything; return how many rows it was."""
    now = func.now()
    limits = delete_some(AuthLimit, AuthLimit.expires_at < now)
    failures = delete_some(AuthFailures, AuthFailures.began_at < now - timedelta(seconds=2 * FAILURES_WINDOW_SECONDS))
    return (
        limits + failures + delete_some(KnownNetwork, KnownNetwork.seen_at < now - timedelta(days=KNOWN_NETWORK_DAYS))
    )


def _is_known(network_hash: bytes) -> bool:
    return db.session.get(KnownNetwork, network_hash) is not None


def _seconds_until_free(limit: Limit, subject: bytes) -> int:
    row = db.session.execute(
        select(AuthLimit.hits, func.clock_timestamp().label("now")).where(
            AuthLimit.name == limit.name, AuthLimit.subject == subject
        )
    ).one_or_none()
    if row is None:
        return 1
    newest_first = sorted(row.hits, reverse=True)
    waits = [
        seconds - (row.now - newest_first[most - 1]).total_seconds()
        for most, seconds in limit.windows
        if len(newest_first) >= most
    ]
    return max(1, math.ceil(max(waits, default=1)))
