"""What PostgreSQL can hold of what a model says."""

from __future__ import annotations


def storable(content: str) -> str:
    """Return `content` without what PostgreSQL cannot hold: NUL and lone surrogates become U+FFFD."""
    return content.replace("\x00", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
