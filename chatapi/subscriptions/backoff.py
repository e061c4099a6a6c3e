"""When what could not be done at Stripe is tried again."""

from __future__ import annotations

import random

ATTEMPT_SECONDS = 120
"""How long an attempt may take: what is being worked on is not due before."""

RING_AGAIN_SECONDS = 30
"""When what was rung for and not begun is due again: Redis may have forgotten it."""

FIRST_SECONDS = 5.0
MOST_SECONDS = 3600.0


def retry_seconds(attempts: int) -> float:
    """Return how long to wait after so many attempts: doubled each time up to an hour, with jitter."""
    delay: float = min(MOST_SECONDS, FIRST_SECONDS * 2 ** min(attempts - 1, 20))
    return delay * (0.5 + 0.5 * random.random())  # noqa: S311 - no secret
