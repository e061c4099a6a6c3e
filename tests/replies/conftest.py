"""What makes one attempt at a reply, and looks at its rows."""

from __future__ import annotations

from tests.attempts import attempt, keeper, make_due, model, sql

__all__ = ["attempt", "keeper", "make_due", "model", "sql"]
