"""The routes of Stripe's API that the stand-in knows, and how one is found."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from chatapi.dev.stripe.account import Account
from chatapi.dev.stripe.params import Params
from chatapi.dev.stripe.wire import Json

Handler = Callable[[Account, str, Json], Json]
"""Takes the account, the id in the path ("" if none) and the parameters; returns the body or raises `ApiError`."""


@dataclass(frozen=True)
class Route:
    """One method of one path; `{id}` in it stands for an object's id."""

    method: str
    path: str
    handler: Handler
    params: Params = field(default_factory=Params)

    def match(self, method: str, path: str) -> str | None:
        """Return the id in `path` if this is its route."""
        if method != self.method:
            return None
        if "{id}" not in self.path:
            return "" if path == self.path else None
        matched = re.fullmatch(self.path.replace("{id}", r"([^/]+)"), path)
        return matched[1] if matched else None
