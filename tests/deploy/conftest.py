"""The running system, as `tests/system/` has it."""

from __future__ import annotations

from tests.system.conftest import people, running_system, someone, system

__all__ = ["people", "running_system", "someone", "system"]
