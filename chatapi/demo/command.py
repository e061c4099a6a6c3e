"""`flask seed-demo`: accounts and rooms to look around in."""

from __future__ import annotations

import json

import click
from flask import current_app
from flask.cli import with_appcontext

from chatapi.demo.people import PASSWORD, OwnPasswordError, Person, give_pro, seed_person
from chatapi.demo.texts import read_rooms
from chatapi.terminal import NUMBER, Command, as_json, examples

BASIC_NUMBER = "+12025550100"
PRO_NUMBER = "+12025550101"
"""Of the numbers 555-0100 to 555-0199, which are nobody's and are kept for fiction."""


@click.command(
    "seed-demo",
    cls=Command,
    epilog=examples("flask seed-demo", "flask seed-demo --number +12025550142", "flask seed-demo --json"),
)
@click.option("--number", type=NUMBER, default=BASIC_NUMBER, show_default=True, help="Whose the Basic account is.")
@click.option("--pro-number", type=NUMBER, default=PRO_NUMBER, show_default=True, help="Whose the Pro account is.")
@as_json
@with_appcontext
def seed_demo(number: str, pro_number: str, is_json: bool) -> None:
    """Make demo accounts with rooms to look around in.

    One is Basic and one is Pro, their rooms have finished conversations, and how to sign in is printed. What is there
    already stays as it is, so it can be run again. The Pro account pays at Stripe's stand-in, which `make run` starts;
    without that it stays Basic. Production refuses: everybody knows the password.
    """
    if current_app.config["APP_ENV"] == "production":
        raise click.ClickException("There are no demo accounts in production: everybody knows their password.")
    if number == pro_number:
        raise click.UsageError("The two accounts need two numbers.")
    try:
        people = [
            seed_person(number, "Dana Demo", read_rooms("basic")),
            seed_person(pro_number, "Petra Pro", read_rooms("pro")),
        ]
    except OwnPasswordError as error:
        raise click.ClickException(str(error)) from None
    why_not = give_pro(people[1])
    if why_not is not None:
        click.echo(f"{pro_number} stays Basic: {why_not}", err=True)
    if is_json:
        click.echo(json.dumps({"accounts": [person.as_json() for person in people]}, indent=2))
        return
    for person in people:
        click.echo(_line(person))
    click.echo(f"\nSign in with the password {PASSWORD}, such as by")
    click.echo(_sign_in(number))


def _line(person: Person) -> str:
    made = f"{person.rooms_made} made now" if person.rooms_made else "all of them there already"
    return f"{person.number}  {person.name:<9}  {person.tier:<5}  {len(person.room_ids)} rooms, {made}"


def _sign_in(number: str) -> str:
    body = json.dumps({"mobile_number": number, "password": PASSWORD})
    address = f"http://localhost:{current_app.config['PORT']}/auth/login"
    return f"curl -s {address} -H 'Content-Type: application/json' -d '{body}'"
