"""What operators see of sign-in."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import text

from chatapi.auth.limits import FAILURES_WINDOW_SECONDS
from chatapi.extensions import db

# Both tables are small: codes stay for five minutes at most, failures are counted in rows of ten seconds.
_SUMMARY = text("""
    SELECT undelivered, oldest_undelivered_seconds, failures
    FROM (
        SELECT count(*) AS undelivered,
               greatest(coalesce(extract(epoch FROM clock_timestamp() - min(created_at)), 0), 0)::float
                   AS oldest_undelivered_seconds
        FROM otp_outbox WHERE expires_at > now()
    ) AS codes, (
        SELECT coalesce(sum(failures), 0)::int AS failures
        FROM auth_failures WHERE began_at > now() - make_interval(secs => :window)
    ) AS checks
""")


@dataclass(frozen=True)
class Summary:
    """How many codes wait to be delivered, for how long the oldest has, and how many checks failed lately."""

    undelivered: int
    oldest_undelivered_seconds: float
    failures: int


def read_summary() -> Summary:
    """Return how sign-in stands, in one query."""
    return Summary(**db.session.execute(_SUMMARY, {"window": FAILURES_WINDOW_SECONDS}).one()._asdict())
