"""The models there are, and which of them answers in a room."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from flask import Flask

from chatapi.catalogue import Catalogue, Tier, catalogue

MODELS = [
    {"alias": "deep", "model": "gemini-c", "tiers": ["pro"]},
    {"alias": "flash", "model": "gemini-a", "fallback": ["gemini-b", "gemini-d"]},
    {"alias": "odd", "model": "gemini-e", "tiers": ["basic"]},
]


@pytest.fixture(scope="module")
def models(make_app: Callable[..., Flask]) -> Catalogue:
    with make_app(GEMINI_MODELS=json.dumps(MODELS), GEMINI_MODEL="flash").app_context():
        return catalogue()


def test_catalogue_has_the_settings_entries(models: Catalogue) -> None:
    assert [entry.alias for entry in models.entries] == ["deep", "flash", "odd"]
    flash = models.find("flash")
    assert flash == models.default
    assert flash is not None
    assert (flash.model, flash.fallback, flash.tiers) == ("gemini-a", ("gemini-b", "gemini-d"), {"basic", "pro"})


@pytest.mark.parametrize(
    ("alias", "tier", "answers"),
    [
        ("deep", "pro", "deep"),
        ("deep", "basic", "flash"),
        ("odd", "basic", "odd"),
        ("odd", "pro", "flash"),
        ("gone", "pro", "flash"),
        ("gemini-c", "pro", "flash"),
        (None, "basic", "flash"),
    ],
)
def test_default_answers_in_a_room_when_its_own_model_may_not(
    models: Catalogue, alias: str | None, tier: Tier, answers: str
) -> None:
    assert models.for_room(alias, tier).alias == answers


def test_catalogue_is_the_one_model_when_no_models_are_listed(app: Flask) -> None:
    with app.app_context():
        models = catalogue()

    assert [entry.alias for entry in models.entries] == [models.default.alias] == [app.config["GEMINI_MODEL"]]
