"""Whether the service can do its work: what it needs is asked, within a second, however many want to know.

A part that hangs hangs its question too. So there is one question of a kind under way in a process, whose answer all
get who ask meanwhile, and it has a thread of its own that keeps nothing from ending.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import cast

from flask import Flask, current_app
from sqlalchemy import text

from chatapi.bell import probe_key
from chatapi.errors import kind_of
from chatapi.extensions import REDIS_OPTIONS, db
from chatapi.redis_nodes import connect

PROBE_SECONDS = 5

CHECK_BUDGET_SECONDS = 0.8
"""Readiness answers within a second, whatever hangs."""


class _Question:
    """A check under way, and what it found."""

    def __init__(self) -> None:
        self.is_answered = threading.Event()
        self.answer = "timed out"


class Check:
    """Asks one part how it is; from any number of threads, and from one at a time."""

    def __init__(self, app: Flask, name: str, ask: Callable[[], str]) -> None:
        self._app = app
        self._name = name
        self._ask = ask
        self._question: _Question | None = None
        self._lock = threading.Lock()

    def begin(self) -> _Question:
        """Return the question that is under way, which is put now if there is none."""
        with self._lock:
            if self._question is None:
                question = self._question = _Question()
                threading.Thread(target=self._run, args=[question], name=f"{self._name}-check", daemon=True).start()
            return self._question

    def _run(self, question: _Question) -> None:
        try:
            with self._app.app_context():
                question.answer = self._ask()
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a part, the answer names it
            question.answer = f"unavailable ({kind_of(error)})"
        finally:
            with self._lock:
                self._question = None
            question.is_answered.set()


def init_readiness(app: Flask) -> None:
    """Give the application its checks."""
    parts = {"postgresql": _check_postgresql, "redis": _check_redis}
    app.extensions["readiness"] = {name: Check(app, name, ask) for name, ask in parts.items()}


def run_checks() -> dict[str, str]:
    """Return what each part says, `timed out` for one that hangs or its kind of failure."""
    checks = cast("dict[str, Check]", current_app.extensions["readiness"])
    questions = {name: check.begin() for name, check in checks.items()}
    deadline = time.monotonic() + CHECK_BUDGET_SECONDS
    for question in questions.values():
        question.is_answered.wait(max(0.0, deadline - time.monotonic()))
    return {name: question.answer for name, question in questions.items()}


def _check_postgresql() -> str:
    """A schema that this code does not know is newer, and migrations only expand: it will do."""
    current = db.session.scalar(text("SELECT version_num FROM alembic_version"))
    is_known = current is None or current in current_app.config["KNOWN_REVISIONS"]
    is_older = is_known and current != current_app.config["HEAD_REVISION"]
    return "schema is older than the code, run `flask db upgrade`" if is_older else "ok"


def _check_redis() -> str:
    nodes = connect(current_app.config["REDIS_URL"], **REDIS_OPTIONS)
    try:
        key = probe_key()
        nodes.run(key, lambda client: client.set(key, 1, ex=PROBE_SECONDS))
        nodes.each(lambda client: client.ping())
    finally:
        nodes.close()
    return "ok"
