"""The running system. There is one; a module that names `SETTINGS` gets it started anew with these."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.auth.support import Gateway, running_gateway
from tests.support import Account
from tests.system.support import System


@pytest.fixture(scope="session")
def running_system() -> Iterator[System]:
    system = System()
    yield system
    system.mend()
    system.stop()


@pytest.fixture
def system(running_system: System, request: pytest.FixtureRequest) -> System:
    """The system, whole again after what the last test did to it, and the stand-in well-behaved."""
    running_system.use(getattr(request.module, "SETTINGS", {}))
    running_system.mend()
    return running_system


@pytest.fixture
def someone(system: System, sign_in: Callable[..., Account]) -> Account:
    """Somebody who is signed in to the running system, with prompts to spare."""
    return sign_in(via=system.client)


@pytest.fixture
def people(system: System, sign_in: Callable[..., Account]) -> list[Account]:
    """Six of them."""
    return [sign_in(via=system.client) for _ in range(6)]


@pytest.fixture
def gateway(system: System) -> Iterator[Gateway]:
    """An SMS gateway that the system delivers its codes by."""
    with running_gateway() as gateway:
        secret = "whsec_" + "c2VjcmV0" * 6
        system.use({"OTP_DELIVERY": "webhook", "OTP_WEBHOOK_URL": gateway.url, "OTP_WEBHOOK_SECRET": secret})
        yield gateway
