"""The caller's own account over HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support import Account


def test_me_shows_the_account_and_what_it_holds(account: Account) -> None:
    room_id = account.open_room()
    account.open_room()
    account.prompt(room_id, "hi")

    answer = account.call("GET", "/user/me")

    user = answer.get_json()["user"]
    assert answer.status_code == 200
    assert user.pop("created_at").endswith("Z")
    assert user == {
        "id": account.id,
        "mobile_number": account.mobile_number,
        "name": None,
        "email": None,
        "subscription_tier": "basic",
        "subscription_status": None,
        "daily_usage_count": 1,
        "stats": {"chatroom_count": 2, "message_count": 2},
    }


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_me_is_changed_by_merging_and_null_clears(account: Account, method: str) -> None:
    account.call("PUT", "/user/me", {"name": "Ada", "email": "ada@example.org"})

    answer = account.call(method, "/user/me", {"email": None})

    user = answer.get_json()["user"]
    assert (user["name"], user["email"]) == ("Ada", None)
    assert account.call("GET", "/user/me").get_json()["user"] == user


def test_me_is_unchanged_when_nothing_is_said(account: Account) -> None:
    before = account.call("GET", "/user/me").get_json()["user"]

    assert account.call("PUT", "/user/me", {}).get_json()["user"] == before


@pytest.mark.parametrize(
    "body",
    [
        {"name": ""}, {"name": "   "}, {"name": "x" * 101}, {"name": "a\u202eb"}, {"email": "nobody"},
        {"email": "a@b@c"}, {"email": "a@example.org\x00"}, {"email": "x" * 250 + "@example.org"},
        {"email": "\ud800@example.org"},
        {"email": "a@\ud800.com"},
        {"email": "a@\u202ex.com"}, {"email": "a@exam\u200dple.com"}, {"email": '"\x01"@x.com'},
        {"mobile_number": "15551234567"}, {"subscription_tier": "pro"},
        {"pro_until": "2099-01-01T00:00:00Z"}, {"id": "1"},
    ],
)  # fmt: skip
def test_change_is_refused_when_a_field_is_no_good_or_not_the_callers_to_change(
    account: Account, body: dict[str, Any]
) -> None:
    answer = account.call("PATCH", "/user/me", body)

    assert (answer.status_code, list(answer.get_json()["errors"])) == (422, list(body))
    assert account.call("GET", "/user/me").get_json()["user"]["subscription_tier"] == "basic"
