"""The `flask billing` commands: how billing stands, what operators may do about it, and setting it up at Stripe."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
from flask import current_app
from sqlalchemy import select

from chatapi.auth.models import User
from chatapi.extensions import db, in_transaction
from chatapi.schemas import rfc3339
from chatapi.subscriptions import interventions, monitor, setup
from chatapi.subscriptions.customers import customer_of
from chatapi.subscriptions.gateway import BillingNotConfiguredError, BillingUnavailableError, SetupRefusedError
from chatapi.subscriptions.gateway_setup import INTERVALS
from chatapi.subscriptions.interventions import AccountState, RefusedError
from chatapi.subscriptions.reconcile import Report, reconcile
from chatapi.subscriptions.sync import Outcome
from chatapi.terminal import NUMBER, Group, as_json, examples, for_each
from config_billing import BILLING_NAMES

EVENT_CHOICES = {"open": monitor.OPEN, **{status: (status,) for status in monitor.EVENT_STATUSES}}

billing_commands = Group("billing", help="Subscriptions at Stripe: show, repair, set up.")


def event_ids(*, required: bool) -> Callable[..., Any]:
    """Return the argument that names events."""
    about = "Stripe's ids of events, as `flask billing events` shows them."
    return click.argument("event_ids", metavar="EVENT_ID...", nargs=-1, required=required, help=about)


@contextmanager
def with_stripe() -> Iterator[None]:
    """Say in a sentence that there is no Stripe, or that it does not answer."""
    try:
        yield
    except BillingNotConfiguredError:
        raise click.ClickException(
            f"Billing is not configured: {', '.join(_missing())} not set. The key is in Stripe's dashboard;"
            " with it `flask billing setup` makes the others."
        ) from None
    except BillingUnavailableError as error:
        raise click.ClickException(
            f"Stripe could not be asked ({error.reason}): is it up, and is STRIPE_SECRET_KEY right?"
        ) from None


@billing_commands.command("status", epilog=examples("flask billing status --json"))
@as_json
def show_status(is_json: bool) -> None:
    """Count customers, subscriptions and events.

    Tells too who pays more than once, and what the last comparison with Stripe found.
    """
    summary, doubled = in_transaction(lambda: (monitor.read_summary(), monitor.list_second_subscriptions()))
    shown = _settings() | monitor.as_json(summary)
    if is_json:
        shown["second_subscriptions"] = [monitor.as_json(one) for one in doubled]
        click.echo(json.dumps(shown, indent=2))
        return
    for name, value in shown.items():
        click.echo(f"{name:<20} {_plain(value)}")
    for one in doubled:
        click.echo(f"user {one.user_id}, {one.customer_id}, pays more than once: {', '.join(one.subscriptions)}")


def _settings() -> dict[str, Any]:
    config = current_app.config
    key = config["STRIPE_SECRET_KEY"]
    return {
        "configured": not _missing(),
        "missing": _missing(),
        "mode": key and setup.mode_of(key),
        "stripe": config["STRIPE_API_BASE"],
        "prices": list(config["STRIPE_PRICE_ID"]),
    }


def _missing() -> list[str]:
    return [name for name in BILLING_NAMES if not current_app.config[name]]


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        value = [f"{number} {name}" for name, number in sorted(value.items())]
    if isinstance(value, list):
        value = ", ".join(value)
    if isinstance(value, bool):
        value = "yes" if value else "no"
    if isinstance(value, float):
        value = f"{value:.0f}"
    return "-" if value in (None, "") else str(value)


@billing_commands.command(
    "events", epilog=examples("flask billing events", "flask billing events --status open --json")
)
@click.option("--status", type=click.Choice(list(EVENT_CHOICES)), help="Only these, not all that is open or unmatched.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="At most so many.")
@as_json
def list_events(status: str | None, limit: int, is_json: bool) -> None:
    """List Stripe's events that need somebody, newest first.

    Those are the ones that are open, and the ones whose customer is nobody here.
    """
    statuses = monitor.NEEDED if status is None else EVENT_CHOICES[status]
    events = in_transaction(lambda: monitor.list_events(statuses, limit))
    if is_json:
        click.echo(json.dumps([monitor.as_json(event) for event in events], indent=2))
        return
    for event in events:
        next_try = rfc3339(event.next_try) if event.next_try else "-"
        click.echo(
            f"{event.event_id}  {event.type}  {event.customer_id or '-'}  {event.status}  {event.reason or '-'}"
            f"  attempts {event.attempts}  next {next_try}  age {event.age_seconds:.0f} s"
        )


@billing_commands.command("retry", epilog=examples("flask billing retry evt_1TqXyz", "flask billing retry --all"))
@event_ids(required=False)
@click.option("--all", "is_all", is_flag=True, help="Every event that is open or unmatched.")
def retry(event_ids: tuple[str, ...], is_all: bool) -> None:
    """Let EVENT_ID... be handled now instead of at their time, unmatched ones once more.

    What is closed otherwise is refused: compare the account with Stripe by `flask billing sync` instead.
    """
    if is_all == bool(event_ids):
        raise click.UsageError("Name events, or say --all.")
    if is_all:
        click.echo(f"{interventions.retry_all()} events are due now.")
        return

    def retry_one(event_id: str) -> str:
        interventions.retry_event(event_id)
        return f"{event_id} is due now."

    for_each(event_ids, retry_one, RefusedError)


@billing_commands.command("dismiss", epilog=examples("flask billing dismiss evt_1TqXyz"))
@event_ids(required=True)
def dismiss(event_ids: tuple[str, ...]) -> None:
    """Close EVENT_ID... whose customer is nobody here, once you have seen to them at Stripe.

    Nobody's tier changes. What is closed already, or waits for something else, is refused.
    """

    def dismiss_one(event_id: str) -> str:
        interventions.dismiss_event(event_id)
        return f"{event_id} is dismissed."

    for_each(event_ids, dismiss_one, RefusedError)


@billing_commands.command("closures", epilog=examples("flask billing closures --json"))
@as_json
def list_closures(is_json: bool) -> None:
    """List what is still to be ended at Stripe, oldest first.

    It belongs to customers whose accounts are erased.
    """
    closures = in_transaction(monitor.list_closures)
    if is_json:
        click.echo(json.dumps([monitor.as_json(closure) for closure in closures], indent=2))
        return
    for closure in closures:
        click.echo(
            f"{closure.customer_id}  attempts {closure.attempts}  {closure.last_error or '-'}"
            f"  next {rfc3339(closure.next_try)}  age {closure.age_seconds:.0f} s"
        )


@billing_commands.command("sync", epilog=examples("flask billing sync", "flask billing sync +12025550100 --json"))
@click.argument("number", type=NUMBER, required=False, help="An account's mobile number; without it, all accounts.")
@as_json
@with_stripe()
def sync(number: str | None, is_json: bool) -> None:
    """Compare subscriptions with Stripe, and repair what differs.

    All of them, or those of the account of NUMBER alone.
    """
    if number is not None:
        _sync_account(number, is_json)
        return
    report = reconcile()
    if is_json:
        click.echo(json.dumps(vars(report)))
    else:
        click.echo("\n".join(_findings(report)))
    if report.failed:
        raise click.exceptions.Exit(1)


def _findings(report: Report) -> Iterator[str]:
    yield f"{report.checked} subscriptions compared, {report.drifted} customers repaired."
    if report.unknown:
        yield f"{report.unknown} customers are nobody here: `customer_unknown` in the log above names them."
    if report.failed:
        yield f"{report.failed} customers could not be read: `customer_failed` in the log above says why."


def _sync_account(number: str, is_json: bool) -> None:
    user, customer_id = in_transaction(lambda: _find(number))
    if customer_id is None:
        state = in_transaction(lambda: interventions.read_account(user.id))
        outcome, before, after = Outcome.UNCHANGED, state, state
    else:
        outcome, before, after = interventions.check_account(user, customer_id)
    if is_json:
        shown = {"customer_id": customer_id, "outcome": outcome.value, "before": vars(before), "after": vars(after)}
        click.echo(json.dumps(shown, indent=2))
    elif customer_id is None:
        click.echo(f"{number} is {after.tier}, and no customer of theirs at Stripe is known here.")
        click.echo("`flask billing sync` compares everything, and takes on a customer that Stripe has for the account.")
    else:
        click.echo("\n".join([*_changes(outcome, before, after), f"{number} is {after.tier}."]))


def _find(number: str) -> tuple[User, str | None]:
    user = db.session.scalars(select(User).where(User.mobile_number == number)).one_or_none()
    if user is None:
        raise click.ClickException(f"There is no account of {number}.")
    return user, customer_of(user.id)


def _changes(outcome: Outcome, before: AccountState, after: AccountState) -> list[str]:
    """Say what a comparison did, a line for each subscription that is another now."""
    if outcome is Outcome.SUPERSEDED:
        return ["Somebody else has read Stripe since, and written what it has."]
    if outcome is Outcome.UNKNOWN:
        return ["The account was erased meanwhile."]
    if outcome is Outcome.UNCHANGED:
        return ["Nothing differed from Stripe."]
    changed = [
        f"{subscription}: {before.subscriptions.get(subscription, 'not known')}, now {status}"
        for subscription, status in after.subscriptions.items()
        if before.subscriptions.get(subscription) != status
    ]
    tier = [] if before.tier == after.tier else [f"tier: {before.tier}, now {after.tier}"]
    return [*changed, *tier] or ["A time or a price differed from Stripe, and is put right."]


@billing_commands.command(
    "setup", epilog=examples("flask billing setup", "flask billing setup --amount 1200 --currency eur --interval month")
)
@click.option("--amount", type=click.IntRange(1, 99_999_999), help="In the currency's smallest unit; at first 900.")
@click.option("--currency", help="Such as eur; at first usd.")
@click.option("--interval", type=click.Choice(INTERVALS), help="How often it is paid; at first every month.")
@click.option("--name", help="What the product is called in checkouts and on invoices; at first Pro.")
@click.option("--new-secret", "wants_secret", is_flag=True, help="Make another webhook endpoint, for its new secret.")
@as_json
def set_up(is_json: bool, wants_secret: bool, name: str | None, **terms: Any) -> None:
    """Make product, price and webhook endpoint at Stripe.

    It is done in the account of STRIPE_SECRET_KEY, and what to put into .env is printed. What was made before is found
    and used again. The webhook endpoint is at PUBLIC_URL. What is not given stays as it is sold now; where nothing is,
    it is Pro for 900 (9.00) in usd every month. Other terms make a new price, and whoever pays the old one goes on with
    it. No database is needed.
    """
    try:
        found = setup.set_up(current_app.config, setup.Wishes(name=name, wants_secret=wants_secret, **terms))
    except (setup.NotReadyError, SetupRefusedError) as error:
        raise click.ClickException(str(error)) from None
    if is_json:
        click.echo(json.dumps(found.as_json(), indent=2))
        return
    for line in found.notes:
        click.echo(line, err=True)
    for variable, value in found.environ.items():
        click.echo(f"{variable}={value}")
