"""`flask doctor`: what it says of each thing that can be wrong, with the real thing wrong."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from flask import Flask
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.pool import NullPool

from chatapi.dev.embedded import free_port
from chatapi.dev.gemini_standin import GeminiStandin
from chatapi.dev.stripe.faults import Fault
from chatapi.dev.stripe.standin import StripeStandin
from chatapi.doctor import postgres
from chatapi.doctor.billing import check_stripe
from chatapi.doctor.command import examine
from chatapi.doctor.findings import Check, Finding, ok, run_checks
from chatapi.doctor.gemini import check_gemini
from chatapi.doctor.host import check_delivery, check_host
from chatapi.doctor.postgres import check_postgres
from chatapi.doctor.redis_checks import redis_checks
from chatapi.doctor.settings import Settings, check_settings, read_settings
from chatapi.subscriptions.gateway_setup import EVENTS
from config import ROOT
from tests.support import STRIPE_KEY, Services, make_price, stripe_client

SECRET = "geheim-7c1f"
WEBHOOK_URL = "https://api.example.com/webhook/stripe"
Read = Callable[..., Settings]


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
def database(services: Services) -> Iterator[str]:
    """The URL of an empty database, and a role `reader` beside its owner."""
    admin = create_engine(
        services.environ["DATABASE_URL"].replace("postgresql:", "postgresql+psycopg2:"),
        isolation_level="AUTOCOMMIT",
        poolclass=NullPool,
    )
    with admin.connect() as connection:
        connection.execute(text("CREATE DATABASE doctors"))
        connection.execute(text("CREATE ROLE reader LOGIN"))
        yield services.environ["DATABASE_URL"].replace("@/postgres?", "@/doctors?")
        connection.execute(text("DROP DATABASE doctors WITH (FORCE)"))
        connection.execute(text("DROP ROLE reader"))


def execute(url: str, *statements: str) -> None:
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg2:"), poolclass=NullPool)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


def named(findings: Any, name: str) -> Finding:
    (found,) = [each for each in findings if each.name == name]
    return found


def redis_findings(settings: Settings) -> list[Finding]:
    return run_checks(redis_checks(settings))


@pytest.fixture
def valkey(services: Services) -> Iterator[redis.Redis]:
    """The suite's, as it was again afterwards."""
    client = redis.Redis.from_url(services.environ["REDIS_URL"])
    before = {name: client.config_get(name)[name] for name in ("maxmemory", "maxmemory-policy", "maxclients")}
    yield client
    for name, value in before.items():
        client.config_set(name, value)
    client.close()


def test_doctor_finds_nothing_wrong_where_nothing_is(app: Flask, stripe: StripeStandin) -> None:
    stripe_client(stripe).v1.webhook_endpoints.create({"url": WEBHOOK_URL, "enabled_events": list(EVENTS)})  # type: ignore[typeddict-item]

    result = app.test_cli_runner().invoke(args=["doctor", "--json"])

    shown = json.loads(result.stdout)
    assert (result.exit_code, shown["status"]) == (0, "ok"), result.stdout
    assert all(set(check) == {"name", "state", "found", "advice"} for check in shown["checks"])
    assert {"postgresql", "migrations", "redis", "redis eviction", "gemini", "stripe", "stripe webhook", "codes"} <= {
        check["name"] for check in shown["checks"] if check["state"] == "ok"
    }
    plain = app.test_cli_runner().invoke(args=["doctor"])
    assert re.search(r"^✓ migrations +up to date \(\d+\)$", plain.stdout, re.MULTILINE)
    assert "0 failed, 0 to be looked at" in plain.stdout


def test_doctor_fails_when_something_has_failed_and_with_strict_for_warnings(
    make_app: Callable[..., Flask], stripe: StripeStandin
) -> None:
    away, warned = make_app(REDIS_URL=f"redis://127.0.0.1:{free_port()}"), make_app(STRIPE_PRICE_ID="")

    failed = away.test_cli_runner().invoke(args=["doctor"])

    assert failed.exit_code == 1
    assert re.search(
        r"^✗ redis +127\.0\.0\.1:\d+: Connection refused\n +Is REDIS_URL right", failed.stdout, re.MULTILINE
    )
    assert warned.test_cli_runner().invoke(args=["doctor"]).exit_code == 0
    assert warned.test_cli_runner().invoke(args=["doctor", "--strict"]).exit_code == 1


@pytest.fixture
def refused() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return what runs a plain `flask` command while there is hardly a setting."""

    def run(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        environ = {"PATH": os.environ["PATH"], "HOME": "/", "APP_ENV": "production", "LANG": "C.UTF-8", **settings}
        command = [sys.executable, "-m", "flask", *arguments]
        return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)

    return run


def test_doctor_runs_while_the_service_refuses_its_settings_and_names_every_fault(
    refused: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = refused(
        "doctor",
        "--json",
        PORT="none",
        DATABASE_URL=f"postgresql://somebody:{SECRET}@127.0.0.1:{free_port()}/chat",
        JWT_SECRET="short",
        GEMINI_MODELS="[",
    )

    assert done.returncode == 1, done.stderr
    checks = json.loads(done.stdout)["checks"]
    states = {check["name"]: check["state"] for check in checks}
    faulty = ("GEMINI_API_KEY", "GEMINI_MODELS", "JWT_SECRET", "OTP_DELIVERY", "PORT", "REDIS_URL", "postgresql")
    assert {name: states[name] for name in faulty} == dict.fromkeys(faulty, "failed")
    assert [states[name] for name in ("redis", "gemini", "stripe", "codes")] == ["skipped"] * 4
    assert all(check["advice"] for check in checks if check["state"] == "failed")
    assert SECRET not in done.stdout + done.stderr


@pytest.mark.slow
def test_doctor_names_what_the_service_refuses_beside_its_settings(
    refused: Callable[..., subprocess.CompletedProcess[str]], environ: dict[str, str], valkey: redis.Redis
) -> None:
    valkey.config_set("maxmemory-policy", "allkeys-lru")

    done = refused("doctor", "--json", **{name: value for name, value in environ.items() if name != "PATH"})

    checks = json.loads(done.stdout)["checks"]
    assert done.returncode == 1
    assert {"REDIS_URL", "redis eviction"} <= {check["name"] for check in checks if check["state"] == "failed"}


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["jobs", "status"], ["db", "upgrade"], ["routes"]])
def test_other_commands_say_why_there_is_no_service_while_its_settings_are_refused(
    refused: Callable[..., subprocess.CompletedProcess[str]], arguments: list[str]
) -> None:
    done = refused(*arguments)

    assert done.returncode in (1, 2)
    assert "- JWT_SECRET is not set." in done.stderr
    assert "The service's own commands are there once that is put right. `flask doctor` is there now." in done.stderr
    assert (done.stdout, "Traceback" in done.stderr) == ("", False)


@pytest.mark.slow
def test_no_server_gets_an_application_without_settings() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import wsgi"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "APP_ENV": "production"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert "NoAppException: Cannot start:" in done.stderr


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://somebody:{SECRET}@127.0.0.1:1/chat",
        f"postgresql://somebody:x@{SECRET}@127.0.0.1:1/chat",
        f"postgresql://somebody:{SECRET}/x@127.0.0.1:1/chat",
        f"postgresql://somebody:{SECRET}#x@127.0.0.1:1/chat",
        f"postgresql://127.0.0.1:1/chat?user=somebody&password={SECRET}",
    ],
)
def test_doctor_shows_no_password_however_it_is_written(read: Read, url: str) -> None:
    settings = read(DATABASE_URL=url, REDIS_URL=url.replace("postgresql", "redis").replace("/chat", "/0"))

    shown = repr([*check_settings(settings), *check_postgres(settings), *redis_findings(settings)])

    assert "failed" in shown
    assert SECRET not in shown


def test_doctor_shows_no_secret_of_a_whole_production(read: Read, stripe: StripeStandin, gemini: GeminiStandin) -> None:
    settings = read(STRIPE_SECRET_KEY=f"sk_test_{SECRET}", GEMINI_API_KEY=f"invalid-{SECRET}")

    shown = repr(examine(settings))

    assert SECRET not in shown
    assert settings["JWT_SECRET"] not in shown
    assert str(settings["STRIPE_WEBHOOK_SECRET"][0]) not in shown


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"PUBLIC_URL": ""}, "TRUSTED_HOSTS"),
        ({"PUBLIC_URL": ""}, "PUBLIC_URL"),
        ({"PUBLIC_URL": "http://api.example.com"}, "PUBLIC_URL"),
        ({"METRICS_TOKEN": ""}, "METRICS_TOKEN"),
    ],
)
def test_doctor_warns_of_what_may_be_unset_and_should_not(read: Read, changes: dict[str, str], name: str) -> None:
    assert named(check_settings(read()), name).state == "ok"
    assert named(check_settings(read(**changes)), name).state == "warning"


def test_doctor_says_that_postgresql_is_away(read: Read) -> None:
    port = free_port()

    found = named(check_postgres(read(DATABASE_URL=f"postgresql://nobody@127.0.0.1:{port}/chat")), "postgresql")

    assert found.state == "failed"
    assert found.found == f"chat at 127.0.0.1:{port} cannot be used: Connection refused"


@pytest.mark.parametrize(
    ("statements", "state", "said"),
    [
        ([], "failed", "there is no schema yet"),
        (["INSERT INTO alembic_version VALUES ('0001')"], "failed", "behind this code: 0001, not"),
        (["INSERT INTO alembic_version VALUES ('9999')"], "warning", "is newer than this code"),
        (["INSERT INTO alembic_version VALUES ('0001'), ('0002')"], "failed", "0001, 0002 at once"),
    ],
)
def test_doctor_tells_how_the_schema_stands(
    read: Read, database: str, statements: list[str], state: str, said: str
) -> None:
    if statements:
        execute(database, "CREATE TABLE alembic_version (version_num text)", *statements)

    found = named(check_postgres(read(DATABASE_URL=database)), "migrations")

    assert found.state == state
    assert said in found.found
    assert found.advice


def test_doctor_says_that_postgresql_only_lets_us_read(read: Read, database: str) -> None:
    execute(database, "CREATE TABLE things (id int)", "GRANT SELECT, INSERT, UPDATE ON things TO reader")

    of_owner = named(check_postgres(read(DATABASE_URL=database)), "postgresql writes")
    of_reader = named(check_postgres(read(DATABASE_URL=database.replace("postgres@", "reader@"))), "postgresql writes")
    execute(database, "ALTER DATABASE doctors SET default_transaction_read_only = on")
    of_replica = named(check_postgres(read(DATABASE_URL=database)), "postgresql writes")

    assert [found.state for found in (of_owner, of_reader, of_replica)] == ["ok", "failed", "failed"]
    assert of_reader.advice == "GRANT SELECT, INSERT, UPDATE, DELETE on the tables to reader."


def test_doctor_warns_when_there_is_no_room_for_all_connections(read: Read, database: str) -> None:
    name = "postgresql room"
    assert named(check_postgres(read(DATABASE_URL=database)), name).state == "ok"

    crowded = named(check_postgres(read(DATABASE_URL=database, WEB_CONCURRENCY="20")), name)
    execute(database, "ALTER DATABASE doctors CONNECTION LIMIT 30")
    limited = named(check_postgres(read(DATABASE_URL=database)), name)

    assert (crowded.state, limited.state) == ("warning", "warning")
    assert "may open 69 connections, and there is room for 30" in limited.found


def test_doctor_refuses_an_old_postgresql(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "OLDEST_VERSION", 99)

    assert named(check_postgres(read()), "postgresql").state == "failed"


def test_doctor_says_that_only_the_way_of_migrations_is_broken(read: Read) -> None:
    found = list(check_postgres(read(DATABASE_DIRECT_URL=f"postgresql://nobody@127.0.0.1:{free_port()}/chat")))

    assert named(found, "postgresql").state == "ok"
    assert named(found, "postgresql direct").state == "failed"


@pytest.mark.parametrize(
    ("host", "expected"), [("db.example.com", True), ("10.0.0.5", True), ("/run/postgresql", False), ("::1", False)]
)
def test_doctor_wants_tls_where_connections_leave_the_machine(read: Read, host: str, expected: bool) -> None:
    settings = read()
    engine = create_engine(settings["DATABASE_URL"], poolclass=NullPool)
    elsewhere = Settings({**settings.values, "DATABASE_URL": make_url(settings["DATABASE_URL"]).set(host=host)})

    with engine.connect() as connection:
        found = postgres._check_tls(connection, elsewhere)

    assert (found.state == "warning") is expected


def test_doctor_says_that_the_queues_redis_evicts(read: Read, valkey: redis.Redis) -> None:
    assert named(redis_findings(read()), "redis eviction").state == "ok"

    valkey.config_set("maxmemory-policy", "allkeys-lru")

    found = named(redis_findings(read()), "redis eviction")
    assert found.state == "failed"
    assert "allkeys-lru" in found.found
    cache_alone = redis_findings(read(REDIS_URL=f"redis://127.0.0.1:{free_port()}", CACHE_REDIS_URL=url_of(valkey)))
    assert [each.state for each in cache_alone if each.name == "redis cache"] == ["ok"]


def url_of(valkey: redis.Redis) -> str:
    return f"redis://127.0.0.1:{valkey.connection_pool.connection_kwargs['port']}/0"


def test_doctor_says_that_redis_is_full(read: Read, valkey: redis.Redis) -> None:
    used = valkey.info("memory")["used_memory"]
    valkey.config_set("maxmemory", int(used * 1.1))
    assert named(redis_findings(read()), "redis memory").state == "warning"

    valkey.config_set("maxmemory", 1)

    found = named(redis_findings(read()), "redis")
    assert found.state == "failed"
    assert "maxmemory" in found.found


def test_doctor_warns_when_redis_has_no_room_for_the_streams(read: Read, valkey: redis.Redis) -> None:
    valkey.config_set("maxclients", 500)

    assert named(redis_findings(read()), "redis room").state == "warning"


def test_doctor_names_each_redis_by_its_use(read: Read) -> None:
    found = redis_findings(read(CACHE_REDIS_URL=f"redis://127.0.0.1:{free_port()}/1"))

    assert {each.name: each.state for each in found} == {
        "redis queue+limits": "ok",
        "redis queue+limits eviction": "ok",
        "redis cache": "failed",
    }


def test_doctor_says_which_models_gemini_has(read: Read) -> None:
    models = [
        {"alias": "good", "model": "gemini-a", "fallback": ["gone-1"]},
        {"alias": "saved", "model": "unknown-a", "fallback": ["gemini-b"]},
        {"alias": "lost", "model": "unknown-b", "tiers": ["pro"]},
        {"alias": "mute", "model": "embedding-a"},
        {"alias": "long", "model": "gemini-c", "context_tokens": 2_000_000},
    ]

    found = list(check_gemini(read(GEMINI_MODELS=json.dumps(models))))

    assert [(each.name, each.state) for each in found] == [
        ("gemini", "ok"),
        ("model good", "ok"),
        ("model good", "warning"),
        ("model saved", "warning"),
        ("model lost", "failed"),
        ("model mute", "failed"),
        ("model long", "warning"),
    ]
    assert "until then gemini-b answers" in (found[3].advice or "")


def test_doctor_says_that_gemini_refuses_the_key(read: Read) -> None:
    (found,) = check_gemini(read(GEMINI_API_KEY="invalid-one"))

    assert found.state == "failed"
    assert "refuses the key (400 API_KEY_INVALID)" in found.found


def test_doctor_says_that_gemini_is_away_or_somebody_else(read: Read, stripe: StripeStandin) -> None:
    (away,) = check_gemini(read(GEMINI_API_ENDPOINT=f"http://127.0.0.1:{free_port()}"))
    (other,) = check_gemini(read(GEMINI_API_ENDPOINT=stripe.url))

    assert (away.state, other.state) == ("failed", "failed")
    assert "cannot be reached" in away.found
    assert other.found.startswith(stripe.url.removeprefix("http://"))


@pytest.fixture
def shop() -> Iterator[StripeStandin]:
    """An account of Stripe's of its own."""
    with StripeStandin() as shop:
        yield shop


def at(shop: StripeStandin, **changes: str) -> dict[str, str]:
    return {"STRIPE_API_BASE": shop.url, "STRIPE_SECRET_KEY": STRIPE_KEY, **changes}


def test_doctor_says_what_is_wrong_with_the_price(read: Read, shop: StripeStandin) -> None:
    sold, gone = make_price(shop), make_price(shop)
    quarterly = make_price(shop, recurring={"interval": "month", "interval_count": 3})
    archived = make_price(shop)
    stripe_client(shop).v1.prices.update(archived, {"active": False})

    def state_of(*price_ids: str) -> list[str]:
        found = check_stripe(read(**at(shop, STRIPE_PRICE_ID=",".join(price_ids))))
        return [each.state for each in found if each.name.startswith("price ")]

    assert state_of(sold, gone) == ["ok", "ok"]
    assert state_of(archived, sold) == ["failed", "ok"]
    assert state_of("price_nobodys") == ["failed"]
    assert state_of(sold, "price_nobodys", archived) == ["ok", "warning", "ok"]
    assert state_of(quarterly) == ["warning"]


def test_doctor_says_what_is_wrong_with_the_webhook(read: Read, shop: StripeStandin) -> None:
    settings, endpoints = read(**at(shop, STRIPE_PRICE_ID=make_price(shop))), stripe_client(shop).v1.webhook_endpoints

    def found() -> Finding:
        return named(check_stripe(settings), "stripe webhook")

    assert found().state == "failed"
    endpoint = endpoints.create({"url": WEBHOOK_URL, "enabled_events": ["invoice.paid"]})
    assert "is not sent checkout.session.completed" in found().found
    endpoints.update(endpoint.id, {"enabled_events": list(EVENTS)})  # type: ignore[typeddict-item]
    assert found().state in ("ok", "warning")  # A warning where it has another API version.
    endpoints.update(endpoint.id, {"disabled": True})
    assert found().found == f"{endpoint.id} is disabled"


@pytest.mark.parametrize("kind", ["401", "403", "500"])
def test_doctor_says_that_stripe_refuses(read: Read, shop: StripeStandin, kind: str) -> None:
    settings = read(**at(shop, STRIPE_PRICE_ID=make_price(shop)))
    shop.add_fault(Fault(kind))

    (found,) = check_stripe(settings)

    assert found.state == ("warning" if kind == "403" else "failed")


def test_doctor_says_that_stripe_is_away_or_in_part_configured(read: Read) -> None:
    (away,) = check_stripe(read(STRIPE_API_BASE=f"http://127.0.0.1:{free_port()}"))
    in_part = list(check_stripe(read(STRIPE_WEBHOOK_SECRET="")))
    (nothing,) = check_stripe(read(STRIPE_SECRET_KEY="", STRIPE_WEBHOOK_SECRET="", STRIPE_PRICE_ID=""))

    assert (away.state, away.found) == ("failed", "Stripe cannot be reached (APIConnectionError)")
    assert "STRIPE_WEBHOOK_SECRET not set" in in_part[0].found
    assert nothing.state == "skipped"


def test_doctor_says_that_codes_cannot_leave(read: Read) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gateway:
        url = f"http://127.0.0.1:{gateway.getsockname()[1]}/send"
        (there,) = check_delivery(read(OTP_WEBHOOK_URL=url))
    (away,) = check_delivery(read(OTP_WEBHOOK_URL=url))
    (unknown,) = check_delivery(read(OTP_WEBHOOK_URL="https://sms.invalid/send"))

    assert (there.state, away.state, unknown.state) == ("ok", "failed", "failed")


def test_doctor_says_that_the_log_cannot_be_written(read: Read, tmp_path: Any) -> None:
    (tmp_path / "file").touch()

    good = named(check_host(read(LOG_DIR=str(tmp_path / "logs" / "chatapi"))), "log files")
    bad = named(check_host(read(LOG_DIR=str(tmp_path / "file" / "logs"))), "log files")

    assert (good.state, bad.state) == ("ok", "skipped")
    assert any(each.name == "LOG_DIR" for each in check_settings(read(LOG_DIR=str(tmp_path / "file" / "logs"))))


def test_checks_that_hang_or_break_are_told_of_and_the_others_are_not_kept() -> None:
    def hang() -> Iterator[Finding]:
        yield ok("slow", "so far")
        time.sleep(5)

    def explode() -> Iterator[Finding]:
        yield ok("broken", "so far")
        raise LookupError("a secret")

    began = time.monotonic()
    found = run_checks(
        [Check("slow", hang), Check("broken", explode), Check("fine", lambda: iter([ok("fine", "well")]))], 0.3
    )

    assert time.monotonic() - began < 2
    assert [(each.name, each.state) for each in found] == [
        *(("slow", "ok"), ("slow", "failed")),
        *(("broken", "ok"), ("broken", "failed")),
        ("fine", "ok"),
    ]
    assert "a secret" not in repr(found)


@pytest.mark.slow
def test_doctor_ends_in_time_when_everything_hangs(read: Read) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        port = silent.getsockname()[1]
        settings = read(
            DATABASE_URL=f"postgresql://nobody@127.0.0.1:{port}/chat",
            REDIS_URL=f"redis://127.0.0.1:{port}",
            GEMINI_API_ENDPOINT=f"http://127.0.0.1:{port}",
            STRIPE_API_BASE=f"http://127.0.0.1:{port}",
            OTP_WEBHOOK_URL=f"https://127.0.0.1:{port}",
        )
        began = time.monotonic()
        found = {each.name: each.state for each in examine(settings)}
        seconds = time.monotonic() - began

    assert seconds < 15
    assert [found[name] for name in ("postgresql", "redis", "gemini", "stripe", "codes")] == ["failed"] * 5
