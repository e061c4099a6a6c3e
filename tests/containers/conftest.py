"""The image, and the servers that its processes need."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from chatapi.dev.embedded import POSTGRES_PORT, free_port
from config import ROOT
from tests.containers.builder import Builder, Stage
from tests.support import Services
from tests.system.proxy import Proxy

DATABASE = "image"


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """The last stage of the Dockerfile, built from this checkout."""
    base = os.environ.get("BASE_ROOT")
    if not base:
        pytest.skip("there is no BASE_ROOT to build on; .ci/check-containers makes one")
    stage = Builder(ROOT, Path(base), tmp_path_factory.mktemp("image")).build()
    assert stage.user == "10001:10001"
    return stage


@pytest.fixture(scope="session")
def environ() -> Iterator[dict[str, str]]:
    """Settings of production, for servers of the tests' own and a database with nothing in it."""
    services = Services()
    services.start()
    connection = psycopg2.connect(services.postgres.url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {DATABASE}")
    connection.close()
    # Another root cannot see this one's sockets.
    relay = Proxy([services.postgres.socket_dir / f".s.PGSQL.{POSTGRES_PORT}"])
    yield {
        "HOST": "127.0.0.1",
        "PORT": str(free_port()),
        "WEB_CONCURRENCY": "1",
        "DATABASE_URL": f"postgresql://postgres@127.0.0.1:{relay.port}/{DATABASE}",
        "REDIS_URL": services.valkey.url,
        "JWT_SECRET": secrets.token_urlsafe(48),
        "GEMINI_API_KEY": "the stand-in takes any",
        "GEMINI_API_ENDPOINT": services.gemini.url,
        "OTP_DELIVERY": "webhook",
        "OTP_WEBHOOK_URL": "http://127.0.0.1:9/never-asked",
        "OTP_WEBHOOK_SECRET": "only these tests know it, 0123456789",
    }
    relay.close()
    services.stop()
