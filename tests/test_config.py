"""Settings: what is refused, and that all faults are named at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest

from config import ROOT, ConfigError, development_secret, load_settings, sqlalchemy_url
from config_billing import is_configured

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
    "STRIPE_SECRET_KEY": "sk_live_key",
    "STRIPE_WEBHOOK_SECRET": "whsec_new, whsec_old",
    "STRIPE_PRICE_ID": "price_new,price_old",
    "FRONTEND_URL": "https://chat.example",
}
BILLING = ("STRIPE_SECRET_KEY", "STRIPE_WEBHOOK_SECRET", "STRIPE_PRICE_ID", "FRONTEND_URL")


def faults_of(**changes: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_settings({**PRODUCTION, **changes})
    return caught.value.faults


def test_production_settings_are_accepted_when_complete() -> None:
    settings = load_settings(PRODUCTION)

    assert settings["HOST"] == "0.0.0.0"  # noqa: S104
    assert settings["DATABASE_URL"].startswith("postgresql+psycopg2://")
    assert settings["CACHE_REDIS_URL"] == settings["RATE_LIMIT_REDIS_URL"] == "redis://queue:6379/0"
    assert settings["STRIPE_WEBHOOK_SECRET"] == ("whsec_new", "whsec_old")
    assert settings["STRIPE_PRICE_ID"] == ("price_new", "price_old")


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
        ("METRICS_TOKEN", "fifteen-letters"),
        ("GEMINI_API_KEY", ""),
        ("DATABASE_URL", ""),
        ("REDIS_URL", " "),
        *((name, "") for name in BILLING),
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
        ("STRIPE_SECRET_KEY", "pk_live_key"),
        ("STRIPE_SECRET_KEY", "sk_live_"),
        ("STRIPE_WEBHOOK_SECRET", "secret"),
        ("STRIPE_WEBHOOK_SECRET", "whsec_new, old"),
        ("STRIPE_WEBHOOK_SECRET", ","),
        ("STRIPE_PRICE_ID", "prod_1"),
        ("STRIPE_PRICE_ID", "price_a b"),
        ("STRIPE_SECRET_KEY", "sk_live_key\nSTRIPE"),
        ("STRIPE_SECRET_KEY", "sk_live_kéy"),
        ("STRIPE_WEBHOOK_SECRET", "whsec_..."),
        ("FRONTEND_URL", "https://chat.example/?a=b"),
        ("FRONTEND_URL", "https://chat example/"),
        ("STRIPE_API_BASE", "api.stripe.com"),
        ("FRONTEND_URL", "chat.example"),
        ("BILLING_GRACE_DAYS", "-1"),
        ("BILLING_GRACE_DAYS", "1.5"),
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
    "STRIPE_WEBHOOK_SECRET": "",
    "STRIPE_PRICE_ID": "",
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
        ["-m", "chatapi.consume", "chatapi.worker", "--processes", "1"],
        ["-m", "chatapi.consume", "chatapi.chores", "--processes", "1"],
        ["-m", "chatapi.consume", "chatapi.billing", "--processes", "1"],
        ["-m", "flask", "--app", "wsgi", "sweeper"],
    ],
    ids=lambda command: " ".join(command[1:]),
)
def test_every_process_refuses_to_start_and_names_every_fault(command: list[str], tmp_path: Path) -> None:
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "APP_ENV": "production", "PYTHONPATH": str(ROOT)}
    secret = "secret-" + SECRET[:20]

    done = subprocess.run(
        [sys.executable, *command],
        env={**environ, **INSECURE, "JWT_SECRET": secret, "STRIPE_SECRET_KEY": "sk_live_key"},
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


def test_billing_is_off_when_nothing_of_it_is_configured() -> None:
    settings = load_settings({**PRODUCTION, **dict.fromkeys(BILLING, "")})

    assert not is_configured(settings)


@pytest.mark.parametrize("count", [1, 2])
def test_billing_is_refused_in_production_when_half_configured(count: int) -> None:
    for names in combinations(BILLING[:3], count):
        faults = faults_of(**dict.fromkeys(names, ""))

        assert sorted(fault.split()[0] for fault in faults) == sorted(names)


def test_billing_may_be_half_configured_in_development() -> None:
    settings = load_settings({"APP_ENV": "development", "STRIPE_SECRET_KEY": "sk_test_key", "PORT": "5055"})

    assert not is_configured(settings)
    assert settings["FRONTEND_URL"] == "http://localhost:5055"


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


MODELS = [
    {"alias": "flash", "model": "gemini-a", "fallback": ["gemini-b"], "description": "Fast", "context_tokens": 500},
    {"alias": "deep", "model": "gemini-c", "tiers": ["pro"], "max_output_tokens": 100},
]


def models_with(**changes: object) -> str:
    """Return the setting for two models, the second changed; what is changed to None is left out."""
    changed = {**MODELS[1], **changes}
    return json.dumps([MODELS[0], {name: value for name, value in changed.items() if value is not None}])


def test_models_are_read_with_defaults_for_what_is_not_said() -> None:
    settings = load_settings({**PRODUCTION, "GEMINI_MODELS": json.dumps(MODELS)})

    flash, deep = settings["GEMINI_MODELS"]
    assert settings["GEMINI_MODEL"] == "flash"
    assert flash == {**MODELS[0], "tiers": ["basic", "pro"], "max_output_tokens": 8192}
    assert deep == {**MODELS[1], "fallback": [], "description": "", "context_tokens": 32_000}


@pytest.mark.parametrize(("name", "expected"), [("", "gemini-3.5-flash"), ("Gemini-X/1", "Gemini-X/1")])
def test_one_model_is_known_by_its_own_name_when_no_models_are_listed(name: str, expected: str) -> None:
    settings = load_settings({**PRODUCTION, "GEMINI_MODEL": name})

    (entry,) = settings["GEMINI_MODELS"]
    assert (settings["GEMINI_MODEL"], entry["alias"], entry["model"]) == (expected, expected, expected)
    assert (entry["tiers"], entry["fallback"]) == (["basic", "pro"], [])
    assert (entry["context_tokens"], entry["max_output_tokens"]) == (32_000, 8192)


def test_default_model_is_the_one_named() -> None:
    both = json.dumps([*MODELS, {"alias": "other", "model": "gemini-d"}])

    assert load_settings({**PRODUCTION, "GEMINI_MODELS": both, "GEMINI_MODEL": "other"})["GEMINI_MODEL"] == "other"


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ('[{"alias": "a", "alias": "b", "model": "m"}]', "is not valid JSON"),
        ("[]", "must be a JSON list of at least one entry"),
        ('{"alias": "a"}', "must be a JSON list of at least one entry"),
        ("[3]", "entry 1 must be a JSON object"),
        (models_with(alias="flash"), "entry 2: alias is that of entry 1 too"),
        *[
            (models_with(alias=alias), "entry 2: alias must be 1 to 64 of")
            for alias in ("", "Deep", "-deep", "d" * 65, "deep\n", "dé")
        ],
        (models_with(alias=7), "entry 2: alias not a valid string"),
        (models_with(alias=None), "entry 2: alias missing"),
        (models_with(model=None), "entry 2: model missing"),
        (models_with(model="a b"), "entry 2: model must be a model's name"),
        (models_with(fallback=["ok", ""]), "entry 2: fallback must be a model's name"),
        (models_with(fallback="gemini-b"), "entry 2: fallback not a valid list"),
        (models_with(tiers=["basic", "gold"]), "entry 2: tiers must be one of basic, pro"),
        (models_with(tiers=[]), "entry 2: tiers must name at least one tier"),
        (models_with(colour="red"), "entry 2: colour is not known here"),
        *[
            (models_with(**{name: value}), f"entry 2: {name} must be a whole number from 1")
            for name in ("context_tokens", "max_output_tokens")
            for value in (0, -1, 1.5, "5", True, 2**31)
        ],
    ],
)
def test_models_are_refused_with_a_sentence_that_names_the_entry(value: str, fault: str) -> None:
    (said,) = faults_of(GEMINI_MODELS=value)

    assert said.startswith(f"GEMINI_MODELS {fault}")


def test_faults_of_models_are_named_all_at_once() -> None:
    faults = faults_of(GEMINI_MODELS=models_with(tiers=[], context_tokens=0, alias="flash", model=7), PORT="x")

    assert len(faults) == 5


@pytest.mark.parametrize(
    ("models", "name", "fault"),
    [
        (MODELS, "gemini-a", "GEMINI_MODEL names no alias of GEMINI_MODELS."),
        (MODELS, "deep", "GEMINI_MODEL names the default, which must be open to every tier."),
        (MODELS[1:], "", "GEMINI_MODEL is not set, and the first entry of GEMINI_MODELS"),
        (None, "a b", "GEMINI_MODEL must be a model's name."),
    ],
)
def test_default_model_is_refused_when_not_everybody_could_use_it(
    models: list[dict[str, object]] | None, name: str, fault: str
) -> None:
    (said,) = faults_of(GEMINI_MODELS=json.dumps(models) if models else "", GEMINI_MODEL=name)

    assert said.startswith(fault)


def test_origins_are_taken_in_the_form_that_browsers_send() -> None:
    named = "https://Chat.Example.com/, http://localhost:5173,https://chat.example.com:443,https://[2001:DB8::1]:8443"

    origins = load_settings({**PRODUCTION, "CORS_ORIGINS": named})["CORS_ORIGINS"]

    assert origins == ("https://chat.example.com", "http://localhost:5173", "https://[2001:db8::1]:8443")


@pytest.mark.parametrize(
    "value",
    [
        "*",
        "https://chat.example,*",
        "chat.example",
        "https://chat.example/path",
        "https://*.example",
        "https://u@chat.example",
        "null",
        "https://chat.example:port",
    ],
)
def test_origins_are_refused_when_they_are_none_or_all(value: str) -> None:
    (fault,) = faults_of(CORS_ORIGINS=value)

    assert fault.startswith("CORS_ORIGINS ")


@pytest.mark.parametrize("name", ["LOG_DIR", "PROMETHEUS_MULTIPROC_DIR"])
def test_folders_are_refused_with_all_other_faults_when_they_cannot_be_made(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    faults = faults_of(**{name: str(tmp_path / "file" / "folder"), "OTP_DELIVERY": "echo"})

    assert [fault.split()[0] for fault in faults] == sorted([name, "OTP_DELIVERY"])
    assert load_settings({**PRODUCTION, name: str(tmp_path / "new" / "folder")})[name]
    assert not (tmp_path / "new").exists()


def test_all_origins_are_accepted_in_development() -> None:
    assert load_settings({"APP_ENV": "development", "CORS_ORIGINS": "*"})["CORS_ORIGINS"] == ("*",)


def test_trusted_hosts_are_those_named_and_no_others() -> None:
    settings = load_settings(
        {**PRODUCTION, "TRUSTED_HOSTS": "API.example.com, .chat.example", "PUBLIC_URL": "https://public.example"}
    )

    assert settings["TRUSTED_HOSTS"] == ("api.example.com", ".chat.example")


def test_trusted_hosts_follow_from_the_public_address_when_none_are_named() -> None:
    settings = load_settings({**PRODUCTION, "PUBLIC_URL": "https://API.example.com:8443/v1"})

    assert settings["TRUSTED_HOSTS"] == ("api.example.com", "localhost", "127.0.0.1", "[::1]")


@pytest.mark.parametrize("value", ["https://api.example.com", "api.example.com:443", "api example", "*", "a..b"])
def test_trusted_hosts_are_refused_when_they_are_no_names(value: str) -> None:
    (fault,) = faults_of(TRUSTED_HOSTS=value)

    assert fault.startswith("TRUSTED_HOSTS ")


@pytest.mark.parametrize("value", ["-1", "11", "yes"])
def test_trusted_proxies_are_refused_when_they_are_no_number_of_hops(value: str) -> None:
    (fault,) = faults_of(TRUSTED_PROXIES=value)

    assert fault.startswith("TRUSTED_PROXIES ")
