"""Time, for the sign-in tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flask import Flask

from tests.auth.support import pass_time


@pytest.fixture
def later(app: Flask) -> Callable[[int], None]:
    """Return what lets so many seconds pass for all that sign-in remembers."""
    return lambda seconds: pass_time(app, seconds)
