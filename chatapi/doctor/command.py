"""`flask doctor`: all that can be wrong with where the service is to run, told at once."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial

import click
from flask import current_app
from flask.cli import with_appcontext

from chatapi.doctor.billing import check_stripe
from chatapi.doctor.findings import Check, Finding, run_checks, worst_state
from chatapi.doctor.gemini import check_gemini
from chatapi.doctor.host import check_delivery, check_host
from chatapi.doctor.postgres import check_postgres
from chatapi.doctor.redis_checks import redis_checks
from chatapi.doctor.settings import Settings, check_settings, read_settings
from chatapi.terminal import FAULTS, REFUSED_SETTINGS, Command, as_json, examples
from config import load_environment

MARKS = {"ok": "✓", "warning": "!", "failed": "✗", "skipped": "-"}
PLAIN_MARKS = {"ok": "ok", "warning": "!!", "failed": "XX", "skipped": "--"}
COLOURS = {"ok": "green", "warning": "yellow", "failed": "red", "skipped": None}


class SettingsFreeCommand(Command):
    """A command that is there to say what is wrong with the settings."""

    needs_settings = False


@click.command(
    "doctor",
    cls=SettingsFreeCommand,
    epilog=examples("flask doctor", "APP_ENV=production flask doctor --strict", "flask doctor --json"),
)
@as_json
@click.option("--strict", "is_strict", is_flag=True, help="Let warnings count as failures.")
@with_appcontext
def doctor(is_json: bool, is_strict: bool) -> None:
    """Check all that the service needs, and say what to do.

    Looks at the settings, PostgreSQL and its schema, each Redis, Gemini's key and models, Stripe's key, price and
    webhook, the delivery of codes, and this machine. No code is sent, no prompt is paid for, and nothing is changed but
    for a key in Redis that is deleted again. Ends within some 15 seconds, whatever hangs; with 0 when nothing has
    failed, else with 1.
    """
    findings = examine(current_settings())
    status = worst_state(findings)
    if is_json:
        click.echo(json.dumps({"status": status, "checks": [finding.as_json() for finding in findings]}, indent=2))
    else:
        click.echo("\n".join(_lines(findings)))
    if status == "failed" or (is_strict and status == "warning"):
        raise click.exceptions.Exit(1)


def current_settings() -> Settings:
    """Return the application's settings, or as much of the environment's as is not at fault."""
    if current_app and REFUSED_SETTINGS not in current_app.config:
        # TRUSTED_HOSTS is a name of Flask's own too, which the application uses for something else.
        hosts = current_app.config.get("HOST_NAMES", current_app.config["TRUSTED_HOSTS"])
        return Settings({**current_app.config, "TRUSTED_HOSTS": hosts})
    faults = current_app.config[FAULTS] if current_app else ()
    found = read_settings(load_environment())
    # What makes the application refuse is not always seen in the settings alone.
    return Settings(found.values, faults or found.faults)


def examine(settings: Settings) -> list[Finding]:
    """Return what all checks find."""
    checks = {
        "configuration": check_settings,
        "postgresql": check_postgres,
        "gemini": check_gemini,
        "stripe": check_stripe,
        "codes": check_delivery,
        "machine": check_host,
    }
    made = [Check(name, partial(check, settings)) for name, check in checks.items()]
    return run_checks([*made[:2], *redis_checks(settings), *made[2:]])


def _lines(findings: Sequence[Finding]) -> list[str]:
    marks = MARKS if _shows(MARKS) else PLAIN_MARKS
    width = max(len(finding.name) for finding in findings)
    indent = " " * (len(marks["ok"]) + 1)
    lines = []
    for finding in findings:
        mark = click.style(marks[finding.state], fg=COLOURS[finding.state])
        lines.append(f"{mark} {finding.name:<{width}}  {finding.found}")
        if finding.advice:
            lines.append(f"{indent}{'':<{width}}  {click.style(finding.advice, bold=True)}")
    return [*lines, "", _summary(findings)]


def _shows(marks: dict[str, str]) -> bool:
    """Return whether the terminal has these signs."""
    try:
        "".join(marks.values()).encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _summary(findings: Sequence[Finding]) -> str:
    counts = {state: sum(finding.state == state for finding in findings) for state in MARKS}
    return (
        f"{counts['failed']} failed, {counts['warning']} to be looked at, {counts['ok']} well, "
        f"{counts['skipped']} not looked at."
    )
