"""What the tests of `flask billing` share beside fixtures."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from click.testing import Result

from tests.subscriptions.support import Billing
from tests.support import Account

Flasks = Callable[..., Result]


def shown(result: Result) -> Any:
    """Return what a command says with --json, once it has succeeded."""
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def audit_of(billing: Billing, account: Account) -> list[Any]:
    """Return what operators did to an account."""
    return billing.rows(
        "SELECT action, details FROM audit_events WHERE number_hash = (SELECT number_hash FROM users WHERE id = :id)",
        id=account.id,
    )
