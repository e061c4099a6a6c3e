"""The WSGI entry point: `gunicorn wsgi:app`, and where the `flask` command finds the application."""

from chatapi.app import create_app

app = create_app()
