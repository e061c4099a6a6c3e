"""The WSGI entry point: `gunicorn wsgi:app`, and where the `flask` command finds the application."""

from chatapi import cli
from chatapi.app import create_app
from config import ConfigError

try:
    with cli.quiet_start():
        app = create_app()
except ConfigError as error:
    # The `flask` command says this without a traceback, and finds `flask doctor` all the same.
    app = cli.commands_alone(error)
