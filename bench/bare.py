"""The yardstick of requests: a route that does nothing, under the same gunicorn settings.

gunicorn --config bench/bare_conf.py bench.bare:app
"""

from __future__ import annotations

from flask import Flask, Response, jsonify

app = Flask(__name__)


@app.get("/")
def nothing() -> Response:
    """Answer."""
    return jsonify(status="OK")
