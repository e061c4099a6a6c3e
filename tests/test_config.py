"""Settings: what is refused, and that all faults are named at once."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest

from config import ROOT, ConfigError, development_secret, load_settings, sqlalchemy_url

SECRET = "q8dZr1xWm5TfY0bKp7LhNc3VjEs9GuAo"
PRODUCTION = {
    "APP_ENV": "production",
    "DATABASE_URL": "postgresql://chat@db/chat",
    "REDIS_URL": "redis://queue:6379/0",
    "JWT_SECRET": SECRET,
    "GEMINI_API_KEY": "key",
    "OTP_DELIVERY": "webhook",
    "OTP_WEBHOOK_URL": "https://sms.example/send",
    "OTP_WEBHOOK_SECRET": "whsec_c2VjcmV0",
}


def faults_of(**changes: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_settings({**PRODUCTION, **changes})
    return caught.value.faults


def test_production_settings_are_accepted_when_complete() -> None:
    settings = load_settings(PRODUCTION)

    assert settings["HOST"] == "0.0.0.0"  # noqa: S104
    assert settings["DATABASE_URL"].startswith("postgresql+psycopg2://")
    assert settings["CACHE_REDIS_URL"] == settings["RATE_LIMIT_REDIS_URL"] == "redis://queue:6379/0"


def test_settings_are_production_when_app_env_is_not_set() -> None:
    assert load_settings({**PRODUCTION, "APP_ENV": ""})["APP_ENV"] == "production"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTP_DELIVERY", "echo"),
        ("OTP_DELIVERY", ""),
        ("OTP_WEBHOOK_URL", ""),
        ("OTP_WEBHOOK_SECRET", ""),
        ("JWT_SECRET", ""),
        ("JWT_SECRET", SECRET[:31]),
        ("JWT_SECRET", "a" * 64),
        ("JWT_SECRET", "changeme-" + SECRET),
        ("GEMINI_API_KEY", ""),
        ("DATABASE_URL", ""),
        ("REDIS_URL", " "),
    ],
)
def test_production_refuses_to_start_when_something_is_unsafe_or_missing(name: str, value: str) -> None:
    faults = faults_of(**{name: value})

    assert [fault.split()[0] for fault in faults] == [name]
    assert not value.strip() or value not in " ".join(faults).replace("is echo", "")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("APP_ENV", "staging"),
        ("PORT", "http"),
        ("PORT", "65536"),
        ("BASIC_DAILY_PROMPTS", "-1"),
        ("REPLY_MAX_ATTEMPTS", "0"),
        ("RATE_LIMIT_WINDOW_MS", "999"),
        ("DATABASE_URL", "mysql://db/chat"),
        ("REDIS_URL", "queue:6379"),
        ("DATABASE_URL", "postgresql://u@h:port/d"),
        ("REDIS_URL", "redis://h:99999/0"),
        ("CACHE_REDIS_URL", "redis://h:x"),
        ("REDIS_URL", "redis://h/name"),
        ("GEMINI_API_ENDPOINT", "gemini"),
        ("GEMINI_API_ENDPOINT", "http://"),
        ("OTP_WEBHOOK_URL", "http://:80"),
        ("OTP_WEBHOOK_SECRET", "whsec_abcde"),
        ("REPLY_ATTEMPT_SECONDS", "60"),
        ("LOG_LEVEL", "loud"),
        ("AUTH_IP_LIMIT", "-1"),
        ("AUTH_IP_LIMIT", "10001"),
        ("OTP_GLOBAL_FAILURES", "0"),
    ],
)
def test_settings_are_refused_when_a_value_makes_no_sense(name: str, value: str) -> None:
    assert [fault.split()[0] for fault in faults_of(**{name: value})] == [name]


def test_faults_are_named_all_at_once_when_there_are_several() -> None:
    faults = faults_of(
        PORT="x", OTP_DELIVERY="echo", JWT_SECRET="secret", GEMINI_API_KEY="", BASIC_DAILY_PROMPTS="many"
    )

    named = {fault.split()[0] for fault in faults}
    assert named == {"PORT", "OTP_DELIVERY", "JWT_SECRET", "GEMINI_API_KEY", "BASIC_DAILY_PROMPTS"}


INSECURE = {
    "DATABASE_URL": "",
    "REDIS_URL": "",
    "JWT_SECRET": "changeme",
    "GEMINI_API_KEY": "",
    "OTP_DELIVERY": "echo",
    "AUTH_IP_LIMIT": "-1",
    "OTP_GLOBAL_FAILURES": "0",
}
"""A production setting each that would let strangers in, or lose what people send."""


@pytest.mark.parametrize("count", range(1, len(INSECURE) + 1))
def test_every_combination_of_insecure_settings_is_refused_with_each_of_them_named(count: int) -> None:
    for names in combinations(INSECURE, count):
        faults = faults_of(**{name: INSECURE[name] for name in names})

        assert sorted(fault.split()[0] for fault in faults) == sorted(names)


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "gunicorn", "wsgi:app"],
        ["-m", "dramatiq", "chatapi.worker", "--processes", "1"],
        ["-m", "dramatiq", "chatapi.chores", "--processes", "1"],
        ["-m", "flask", "--app", "wsgi", "sweeper"],
    ],
    ids=lambda command: " ".join(command[1:]),
)
def test_every_process_refuses_to_start_and_names_every_fault(command: list[str], tmp_path: Path) -> None:
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "APP_ENV": "production", "PYTHONPATH": str(ROOT)}
    secret = "secret-" + SECRET[:20]

    done = subprocess.run(
        [sys.executable, *command],
        env={**environ, **INSECURE, "JWT_SECRET": secret},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    said = done.stdout + done.stderr
    assert done.returncode != 0
    for name in INSECURE:
        assert f"- {name} " in said
    assert secret not in said


@pytest.mark.parametrize("url", ["postgres://u@h/d", "postgresql://u@h/d", "postgresql+psycopg2://u@h/d"])
def test_database_url_names_its_driver_whatever_operators_paste(url: str) -> None:
    assert sqlalchemy_url(url) == "postgresql+psycopg2://u@h/d"


def test_development_secret_is_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "data" / "jwt_secret"

    first = development_secret(path)

    assert development_secret(path) == first
    assert len(first.encode()) >= 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["jwt_secret"]
