"""The running system, one for each test module."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from chatapi.dev.system import health
from tests.support import Account, wait_for
from tests.system.support import System


@pytest.fixture(scope="module")
def _running_system() -> Iterator[System]:
    system = System()
    yield system
    system.stop()


@pytest.fixture
def system(_running_system: System) -> System:
    """The system, whole again after what the last test did to it, and the stand-in well-behaved."""
    system = _running_system
    system.services.gemini.clear()
    system.services.gemini.forget_requests()
    for child in (system.services.postgres_process, system.services.valkey_process, *system.children.values()):
        if not child.is_running():
            child.restart()
    wait_for(lambda: (health(system.port) or {}).get("status") == "ok")
    return system


@pytest.fixture
def someone(system: System, sign_in: Callable[..., Account]) -> Account:
    """Somebody who is signed in to the running system, with prompts to spare."""
    return sign_in(via=system.client)
