"""The WSGI entry point: `gunicorn wsgi:app`, and where the `flask` command finds the application."""

from flask.cli import NoAppException

from chatapi.app import create_app
from config import ConfigError

try:
    app = create_app()
except ConfigError as error:
    # The `flask` command says this without a traceback, and still lists what needs no application. Asked for one
    # of our commands, it goes on to say that there is none of that name: the last sentence here tells why.
    raise NoAppException(f"{error}\nThe service's own commands are there once that is put right.") from None
