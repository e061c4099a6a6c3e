"""`flask doctor` as a command: what it says of the settings, of the whole, and how it ends."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
import redis
from flask import Flask

from chatapi.dev.embedded import free_port
from chatapi.dev.gemini_standin import GeminiStandin
from chatapi.dev.stripe.standin import StripeStandin
from chatapi.doctor.command import examine
from chatapi.doctor.findings import Check, Finding, ok, run_checks
from chatapi.doctor.postgres import check_postgres
from chatapi.doctor.settings import check_settings
from chatapi.subscriptions.gateway_setup import EVENTS
from config import ROOT
from tests.doctor.support import SECRET, WEBHOOK_URL, Read, named, redis_findings
from tests.support import stripe_client


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
