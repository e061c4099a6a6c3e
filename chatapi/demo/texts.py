"""What is talked about in demo rooms: `rooms.json` has it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOMS_FILE = Path(__file__).with_name("rooms.json")


@dataclass(frozen=True)
class Room:
    """A room and what was said in it: prompts, each with its reply."""

    title: str
    exchanges: tuple[tuple[str, str], ...]
    description: str | None = None
    system_instruction: str | None = None


def read_rooms(tier: str) -> list[Room]:
    """Return the rooms of the demo account of that tier."""
    return [_room(**fields) for fields in json.loads(ROOMS_FILE.read_text(encoding="utf-8"))[tier]]


def _room(exchanges: list[dict[str, Any]], **fields: Any) -> Room:
    return Room(exchanges=tuple((each["prompt"], _text(each["reply"])) for each in exchanges), **fields)


def _text(lines: str | list[str]) -> str:
    return lines if isinstance(lines, str) else "\n".join(lines)
