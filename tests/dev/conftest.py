"""Where the tests of this folder keep their files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder outside pytest's own, which each new run of pytest closes to all but its user.

    To root's PostgreSQL, which is another user, that would shut the door on its data in the middle of a test.
    """
    with TemporaryDirectory(prefix="chatapi-tests-", ignore_cleanup_errors=True) as folder:
        yield Path(folder).resolve()
