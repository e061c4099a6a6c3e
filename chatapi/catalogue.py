"""The models that rooms may be answered by, each under an alias, as the settings name them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args
from zlib import crc32

from flask import Flask, current_app

Tier = Literal["basic", "pro"]
TIERS: tuple[Tier, ...] = get_args(Tier)


@dataclass(frozen=True)
class ModelEntry:
    """A model by the alias that clients know it by.

    `fallback` are models to ask when `model` is gone, in order; `tiers` may use it. `context_tokens` is what may be
    sent to it at once, `max_output_tokens` what it may answer with.
    """

    alias: str
    model: str
    fallback: tuple[str, ...]
    tiers: frozenset[str]
    description: str
    context_tokens: int
    max_output_tokens: int


@dataclass(frozen=True)
class Catalogue:
    """All models there are; `default` answers where none is named, and is open to every tier."""

    entries: tuple[ModelEntry, ...]
    default: ModelEntry

    @cached_property
    def fingerprint(self) -> str:
        """A short name for what rooms show of it, another for another catalogue."""
        aliases = " ".join([self.default.alias, *(entry.alias for entry in self.entries)])
        return f"{crc32(aliases.encode()):08x}"

    def find(self, alias: str | None) -> ModelEntry | None:
        """Return the entry of that alias, if there is one."""
        return next((entry for entry in self.entries if entry.alias == alias), None)

    def for_room(self, alias: str | None, tier: Tier) -> ModelEntry:
        """Return what answers in a room that names `alias`: the default, if that is gone or not open to `tier`."""
        entry = self.find(alias)
        return entry if entry is not None and tier in entry.tiers else self.default


def init_catalogue(app: Flask) -> None:
    """Give the application the catalogue that its settings describe."""
    entries = tuple(_entry_of(fields) for fields in app.config["GEMINI_MODELS"])
    default = next(entry for entry in entries if entry.alias == app.config["GEMINI_MODEL"])
    app.extensions["catalogue"] = Catalogue(entries, default)


def catalogue() -> Catalogue:
    """Return the application's catalogue."""
    models: Catalogue = current_app.extensions["catalogue"]
    return models


def tier_of(*, is_pro: bool) -> Tier:
    """Return the name of a user's tier."""
    return "pro" if is_pro else "basic"


def _entry_of(fields: Mapping[str, Any]) -> ModelEntry:
    return ModelEntry(**{**fields, "fallback": tuple(fields["fallback"]), "tiers": frozenset(fields["tiers"])})
