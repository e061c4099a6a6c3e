"""The setting GEMINI_MODELS: which models answer, under which names, for whom."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from marshmallow import RAISE, Schema, ValidationError, fields
from marshmallow.validate import Length, OneOf, Regexp

STANDARD_MODEL = "gemini-3.5-flash"
TIERS = ("basic", "pro")
MODEL_ALIAS = r"[a-z0-9][a-z0-9._-]{0,63}\Z"
MODEL_NAME = r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}\Z"


class PositiveNumber(fields.Integer):
    """A whole number from 1 in JSON, and nothing that may be taken for one, such as true or "5"."""

    default_error_messages = {"number": "must be a whole number from 1 to 2147483647"}  # noqa: RUF012 - marshmallow declares it so

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> int:  # noqa: ARG002
        if type(value) is not int or not 1 <= value < 2**31:
            raise self.make_error("number")
        return value


def model_name() -> Regexp:
    """Return what checks a model's name as Google has them."""
    return Regexp(MODEL_NAME, error="must be a model's name")


class ModelSchema(Schema):
    """One entry of GEMINI_MODELS: what rooms ask for by `alias`, and the model that answers."""

    class Meta:
        unknown = RAISE

    error_messages = {"unknown": "is not known here"}  # noqa: RUF012 - marshmallow declares it so

    alias = fields.String(
        required=True,
        validate=Regexp(MODEL_ALIAS, error="must be 1 to 64 of a-z, 0-9, dot, dash and underscore, not a sign first"),
    )
    model = fields.String(required=True, validate=model_name())
    fallback = fields.List(fields.String(validate=model_name()), load_default=list)
    tiers = fields.List(
        fields.String(validate=OneOf(TIERS, error="must be one of {choices}")),
        load_default=lambda: list(TIERS),
        validate=Length(min=1, error="must name at least one tier"),
    )
    description = fields.String(load_default="", validate=Length(max=1000, error="must have at most {max} characters"))
    context_tokens = PositiveNumber(load_default=32_000)
    max_output_tokens = PositiveNumber(load_default=8192)


class ModelList(fields.Field[list[dict[str, Any]]]):
    """A JSON list of models as `ModelSchema` has them, no alias twice."""

    def _deserialize(
        self,
        value: Any,
        attr: str | None,  # noqa: ARG002
        data: Mapping[str, Any] | None,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> list[dict[str, Any]]:
        try:
            entries = json.loads(value, object_pairs_hook=_unique_members)
        except (ValueError, RecursionError):
            raise ValidationError("is not valid JSON") from None
        if not isinstance(entries, list) or not entries:
            raise ValidationError("must be a JSON list of at least one entry")
        if faults := [*_faults_of_entries(entries), *_faults_of_aliases(entries)]:
            raise ValidationError(faults)
        loaded: list[dict[str, Any]] = ModelSchema(many=True).load(entries)
        return loaded


def fault_of_default(alias: str | None, entries: Sequence[dict[str, Any]]) -> str | None:
    """Return what is wrong with `alias` (None: the first entry's) as the default, which answers where none is named."""
    entry = next((entry for entry in entries if alias in (None, entry["alias"])), None)
    if entry is None:
        return "names no alias of GEMINI_MODELS"
    if set(TIERS) <= set(entry["tiers"]):
        return None
    if alias is None:
        return "is not set, and the first entry of GEMINI_MODELS, the default then, is not open to every tier"
    return "names the default, which must be open to every tier"


def models_or_one(entries: list[dict[str, Any]] | None, model: str | None) -> list[dict[str, Any]]:
    """Return `entries`, or without them the one `model`, known by its own name."""
    if entries is not None:
        return entries
    name = model or STANDARD_MODEL
    return [{**ModelSchema().load({"alias": "only", "model": name}), "alias": name}]


def _unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member is there twice")
    return members


def _faults_of_entries(entries: list[Any]) -> Iterator[str]:
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict):
            yield f"entry {number} must be a JSON object"
            continue
        for name, messages in sorted(ModelSchema().validate(entry).items()):
            yield f"entry {number}: {name} {_first_message(messages)}"


def _first_message(messages: Any) -> str:
    """Return the first of a field's messages, which are kept by index where the field is a list."""
    while isinstance(messages, dict):
        messages = next(iter(messages.values()))
    message: str = messages[0]
    return message[0].lower() + message[1:].rstrip(".")


def _faults_of_aliases(entries: list[Any]) -> Iterator[str]:
    aliases = [entry.get("alias") if isinstance(entry, dict) else None for entry in entries]
    for index, alias in enumerate(aliases):
        if isinstance(alias, str) and alias in aliases[:index]:
            yield f"entry {index + 1}: alias is that of entry {aliases.index(alias) + 1} too"
