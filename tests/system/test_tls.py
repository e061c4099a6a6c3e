"""PostgreSQL and Redis behind TLS, as managed ones are, with passwords full of what has a meaning in URLs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from urllib.parse import quote

import psycopg2
import pytest
import redis
from flask import Flask
from flask_migrate import upgrade

from chatapi.broker import check_eviction_policy, worker_broker
from chatapi.extensions import db
from config import ROOT
from tests.support import Account, Services, wait_for
from tests.system.support import System, finish
from tests.tls import Authority, TlsFront, before_postgres, before_valkey

PASSWORD = "p@ss/w:rd%?#&+ é"
ROLE = "behind_tls"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"), "authority")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority that has signed nothing here."""
    return Authority(tmp_path_factory.mktemp("tls"), "stranger")


@dataclass
class Fronts:
    """TLS before the servers, one front for each thing that Redis is used for."""

    postgres: TlsFront
    queue: TlsFront
    cache: TlsFront
    limits: TlsFront
    authority: Authority

    def __iter__(self) -> Iterator[TlsFront]:
        return iter((self.postgres, self.queue, self.cache, self.limits))

    def settings(self, trusted: Authority | None = None) -> dict[str, str]:
        """Return what an operator would set who trusts that authority."""
        login = f"{ROLE}:{quote(PASSWORD, safe='')}@127.0.0.1"
        file = (trusted or self.authority).file
        database = f"postgres://{login}:{self.postgres.port}/postgres?sslmode=verify-full&sslrootcert={file}"
        return {
            "DATABASE_URL": database,
            "DATABASE_DIRECT_URL": database + "&connect_timeout=5",
            **{
                name: f"rediss://{login}:{front.port}/0?ssl_ca_certs={file}&ssl_cert_reqs=required"
                for name, front in (
                    ("REDIS_URL", self.queue),
                    ("CACHE_REDIS_URL", self.cache),
                    ("RATE_LIMIT_REDIS_URL", self.limits),
                )
            },
        }


def guard(services: Services) -> None:
    """Let the role in with its password only."""
    hba = services.postgres.cluster / "pg_hba.conf"
    connection = psycopg2.connect(services.postgres.url)
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [ROLE])
        if not cursor.fetchone():
            hba.write_text(f"local all {ROLE} scram-sha-256\n{hba.read_text()}")
            cursor.execute(f"CREATE ROLE {ROLE} SUPERUSER LOGIN PASSWORD %s", [PASSWORD])
            cursor.execute("SELECT pg_reload_conf()")
    connection.close()
    with redis.Redis.from_url(services.valkey.url) as valkey:
        valkey.acl_setuser(ROLE, enabled=True, passwords=[f"+{PASSWORD}"], keys="*", channels="*", categories=["+@all"])


@pytest.fixture
def start_fronts(authority: Authority) -> Iterator[Callable[[Services], Fronts]]:
    """Return what puts TLS before some servers."""
    with ExitStack() as stack:

        def start(services: Services) -> Fronts:
            guard(services)
            context = authority.server_context()
            postgres = stack.enter_context(before_postgres(context, services.postgres.socket_dir))
            queue, cache, limits = (stack.enter_context(before_valkey(context, services.valkey.port)) for _ in range(3))
            return Fronts(postgres, queue, cache, limits, authority)

        yield start


@pytest.fixture
def fronts(start_fronts: Callable[[Services], Fronts], services: Services) -> Fronts:
    return start_fronts(services)


def use_everything(account: Account) -> None:
    """Touch the database, the queue, the cache and the limits, and hold that each did its work."""
    room = account.open_room()
    account.call("GET", "/chatroom")
    answer = account.call("GET", "/chatroom")
    assert (answer.status_code, answer.get_json()["cached"]) == (200, True)
    assert "X-RateLimit-Remaining" in answer.headers
    account.prompt(room, "over TLS")


def test_every_connection_is_encrypted_and_checked_when_the_urls_ask_for_it(
    fronts: Fronts, make_app: Callable[..., Flask], sign_in: Callable[..., Account]
) -> None:
    app = make_app(**fronts.settings())
    use_everything(sign_in(via=app.test_client()))

    ready = app.test_client().get("/health/ready")
    assert (ready.status_code, ready.get_json()["status"]) == (200, "ok")
    with app.app_context():
        connection = db.session.connection().connection.driver_connection
        assert connection.info.ssl_in_use
        assert connection.info.user == ROLE
        db.session.remove()
        upgrade()
        db.engine.dispose()
    assert check_eviction_policy(app) is None
    broker = worker_broker(app)
    assert broker.client.ping()
    broker.client.close()
    assert [front.refused for front in fronts] == [0, 0, 0, 0]
    assert all(front.opened for front in fronts)


def test_nothing_is_said_to_a_server_and_readiness_tells_why_when_its_authority_is_a_stranger(
    fronts: Fronts, stranger: Authority, make_app: Callable[..., Flask]
) -> None:
    app = make_app(**fronts.settings(stranger))
    answer = app.test_client().get("/health/ready")

    checks = answer.get_json()["checks"]
    assert answer.status_code == 503
    assert "certificate" in checks["postgresql"]
    assert "certificate" in checks["redis"]
    assert [front.opened for front in fronts] == [0, 0, 0, 0]


def test_service_is_degraded_and_not_down_when_only_redis_shows_a_strange_certificate(
    fronts: Fronts, stranger: Authority, make_app: Callable[..., Flask], sign_in: Callable[..., Account]
) -> None:
    app = make_app(**{**fronts.settings(stranger), "DATABASE_URL": fronts.settings()["DATABASE_URL"]})
    account = sign_in(via=app.test_client())
    account.prompt(account.open_room(), "without Redis")

    ready = app.test_client().get("/health/ready")
    assert (ready.status_code, ready.get_json()["status"]) == (200, "degraded")
    assert [front.opened for front in fronts][1:] == [0, 0, 0]


@pytest.fixture
def distrustful_app(fronts: Fronts, stranger: Authority, make_app: Callable[..., Flask]) -> Flask:
    """An application whose migrations trust a stranger only."""
    return make_app(**{**fronts.settings(), "DATABASE_DIRECT_URL": fronts.settings(stranger)["DATABASE_URL"]})


def test_migrations_say_that_the_certificate_is_not_trusted(
    distrustful_app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    with distrustful_app.app_context(), pytest.raises(SystemExit) as ended:
        upgrade()

    assert ended.value.code == 1
    assert "certificate verify failed" in caplog.text
    assert PASSWORD not in caplog.text


def test_requests_go_on_when_every_encrypted_connection_is_cut(
    fronts: Fronts, make_app: Callable[..., Flask], sign_in: Callable[..., Account]
) -> None:
    app = make_app(**fronts.settings())
    account = sign_in(via=app.test_client())
    use_everything(account)

    for _ in range(3):
        assert sum(front.cut() for front in fronts) > 2
        assert account.call("GET", "/user/me").status_code == 200
        use_everything(account)

    assert [front.refused for front in fronts] == [0, 0, 0, 0]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_whole_system_works_over_tls_and_goes_on_when_all_connections_are_cut(
    system: System, start_fronts: Callable[[Services], Fronts], sign_in: Callable[..., Account]
) -> None:
    fronts = start_fronts(system.services)
    settings = fronts.settings()
    command = [sys.executable, "-m", "flask", "db", "upgrade"]
    environ = {**os.environ, **system.services.environ, **settings, "FLASK_APP": "wsgi"}
    ended = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stdout
    try:
        system.use(settings)
        wait_for(lambda: system.client.get("/health/ready").get_json()["status"] == "ok")
        account = sign_in(via=system.client)
        room = account.open_room()
        for attempt in range(3):
            reply_id = account.prompt(room, f"number {attempt}")
            assert finish(account, room, reply_id)["status"] == "completed"
            assert sum(front.cut() for front in fronts) > 5
            assert account.call("GET", "/chatroom").status_code == 200
        # The sweeper too has a connection by then, and nothing of ours has any other.
        users = system.rows("SELECT DISTINCT usename FROM pg_stat_activity WHERE application_name LIKE 'chatapi%%'", {})
        assert [row.usename for row in users] == [ROLE]
        assert [front.refused for front in fronts] == [0, 0, 0, 0]
        time.sleep(1)
        for name in system.children:
            assert PASSWORD not in system.log_of(name)
    finally:
        system.use({})
