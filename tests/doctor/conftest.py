"""What a production has whose doctor is asked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from chatapi.doctor.settings import read_settings
from tests.doctor.support import SECRET, Read
from tests.support import Services


@pytest.fixture(scope="module")
def environ(services: Services) -> dict[str, str]:
    """What a production on the suite's servers has."""
    return {
        **services.environ,
        "APP_ENV": "production",
        "GEMINI_API_KEY": f"key-{SECRET}",
        "OTP_DELIVERY": "webhook",
        "OTP_WEBHOOK_URL": "https://sms.example/send",
        "OTP_WEBHOOK_SECRET": SECRET,
        "PUBLIC_URL": "https://api.example.com",
        "METRICS_TOKEN": f"for-prometheus-{SECRET}",
        "STAND_INS": "",
    }


@pytest.fixture
def read(environ: dict[str, str]) -> Read:
    """Return what reads the settings of that production, some of them changed."""
    return lambda **changes: read_settings({**environ, **changes})


@pytest.fixture
def valkey(services: Services) -> Iterator[redis.Redis]:
    """The suite's, as it was again afterwards."""
    client = redis.Redis.from_url(services.environ["REDIS_URL"])
    before = {name: client.config_get(name)[name] for name in ("maxmemory", "maxmemory-policy", "maxclients")}
    yield client
    for name, value in before.items():
        client.config_set(name, value)
    client.close()
