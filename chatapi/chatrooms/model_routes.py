"""The route that lists the models."""

from __future__ import annotations

from typing import Any

from chatapi.catalogue import catalogue
from chatapi.chatrooms.schemas import ModelListSchema
from chatapi.parsing import ApiBlueprint

blueprint = ApiBlueprint("models", __name__, url_prefix="/models", description="The models that answer")


@blueprint.get("")
@blueprint.response(200, ModelListSchema)
def list_models() -> dict[str, Any]:
    """List the models a chatroom can name"""
    models = catalogue()
    return {
        "models": [
            {
                "alias": entry.alias,
                "description": entry.description,
                "tiers": sorted(entry.tiers),
                "default": entry == models.default,
            }
            for entry in models.entries
        ]
    }
