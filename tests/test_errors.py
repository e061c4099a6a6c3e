"""Errors of the database: answered in the envelope, and logged without the values they quote."""

from __future__ import annotations

import logging

import pytest
from flask import Flask
from sqlalchemy import text

from chatapi.extensions import db


@pytest.mark.parametrize("statement", ["SELECT CAST(:value AS uuid)", "SELECT nothing FROM nowhere WHERE :value = ''"])
def test_database_error_is_answered_and_logged_without_its_values(
    app: Flask, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, statement: str
) -> None:
    def fail() -> None:
        db.session.execute(text(statement), {"value": "SECRET prompt"})

    monkeypatch.setitem(app.view_functions, "service.health", fail)
    with caplog.at_level(logging.DEBUG):
        answer = app.test_client().get("/health")

    assert (answer.status_code, answer.get_json()["error"]) == (500, "internal_error")
    assert "SECRET" not in answer.get_data(as_text=True)
    assert "database_error" in caplog.text
    assert "test_errors.py" in caplog.text
    assert "SECRET" not in caplog.text
