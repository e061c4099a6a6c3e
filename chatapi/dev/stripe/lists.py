"""Pages of lists, newest first, and the expanding of ids into objects."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from chatapi.dev.stripe import objects
from chatapi.dev.stripe.account import Account
from chatapi.dev.stripe.params import Checker, interval, is_within, text, whole
from chatapi.dev.stripe.wire import Json, invalid, missing_object

DEFAULT_LIMIT = 10
MAX_LIMIT = 100
MAX_EXPAND_DEPTH = 4
PAGING: dict[str, Checker] = {"limit": whole(1, MAX_LIMIT), "starting_after": text(), "ending_before": text()}
FILTERED_PAGING: dict[str, Checker] = {**PAGING, "created": interval()}
KIND_OF_FIELD = {
    "customer": "customer",
    "default_price": "price",
    "invoice": "invoice",
    "latest_invoice": "invoice",
    "price": "price",
    "product": "product",
    "subscription": "subscription",
}


def page(account: Account, kind: str, url: str, params: Json, is_wanted: Callable[[Json], bool]) -> Json:
    """Return the part of a kind's list that the paging parameters ask for."""
    bounds = params.get("created", {})
    newest_first = account.all_of(kind)[::-1]
    found = [made for made in newest_first if is_wanted(made) and is_within(made["created"], bounds)]
    return cut_page(found, [made["id"] for made in newest_first], kind, url, params)


def check_filters(account: Account, params: Json, *names: str) -> None:
    """Refuse to list by the id of an object that there is not, as Stripe does."""
    for name in names:
        if params.get(name) is not None:
            account.find(name, params[name], param=name)


def cut_page(found: list[Json], ids: list[str], kind: str, url: str, params: Json) -> Json:
    """Cut a page out of `found`, where `ids` is the order that cursors point into."""
    limit = params.get("limit", DEFAULT_LIMIT)
    after, before = params.get("starting_after"), params.get("ending_before")
    if after and before:
        raise invalid("You may only specify one of these parameters: starting_after, ending_before.")
    if after:
        found = found[_passed(found, ids, kind, after, "starting_after", and_itself=True) :]
    if before:
        found = found[: _passed(found, ids, kind, before, "ending_before", and_itself=False)]
        return objects.list_of(found[-limit:], url, has_more=len(found) > limit)
    return objects.list_of(found[:limit], url, has_more=len(found) > limit)


def _passed(found: list[Json], ids: list[str], kind: str, cursor: str, param: str, *, and_itself: bool) -> int:
    """Count the members of `found` that come before `cursor`, with it or without."""
    if cursor not in ids:
        raise missing_object(kind, cursor, param=param)
    passed = set(ids[: ids.index(cursor) + and_itself])
    return sum(made["id"] in passed for made in found)


def shown(account: Account, answer: Json, paths: list[str]) -> Json:
    """Return a copy of `answer` with what `expand` asks for in the place of ids."""
    made = copy.deepcopy(answer)
    for path in paths:
        names = path.split(".")
        if len(names) - (names[0] == "data") > MAX_EXPAND_DEPTH:
            raise invalid("You cannot expand more than 4 levels of a property", param="expand")
        _expand(account, made, names, path)
    return made


def _expand(account: Account, node: Any, names: list[str], path: str) -> None:
    if isinstance(node, list):
        for member in node:
            _expand(account, member, names, path)
        return
    if node is None:
        return
    name, rest = names[0], names[1:]
    if not isinstance(node, dict) or (name not in node and not _may_include(node, name)):
        raise invalid(f"This property cannot be expanded ({path}).", param="expand")
    if name not in node:
        node[name] = _included(account, node, name)
    elif isinstance(node[name], str):
        node[name] = _looked_up(account, name, node[name], path)
    elif not rest and not isinstance(node[name], dict | list | None):
        raise invalid(f"This property cannot be expanded ({path}).", param="expand")
    if rest:
        _expand(account, node[name], rest, path)


def _looked_up(account: Account, name: str, object_id: str, path: str) -> Json:
    found = account.kinds.get(KIND_OF_FIELD.get(name, ""), {}).get(object_id)
    if found is None:
        raise invalid(f"This property cannot be expanded ({path}).", param="expand")
    return copy.deepcopy(without_deleted(found))


def without_deleted(found: Json) -> Json:
    """Return an object as it is shown: of a deleted one only that it was."""
    return {"id": found["id"], "object": found["object"], "deleted": True} if found.get("deleted") else found


def _may_include(node: Json, name: str) -> bool:
    return (node.get("object"), name) in {("checkout.session", "line_items"), ("customer", "subscriptions")}


def _included(account: Account, node: Json, name: str) -> Json:
    """Return a list that is shown only to those who ask for it."""
    if name == "line_items":
        lines = account.private[node["id"]]["lines"]
        return objects.list_of(copy.deepcopy(lines), f"/v1/checkout/sessions/{node['id']}/line_items")
    held = [
        copy.deepcopy(subscription)
        for subscription in account.all_of("subscription")[::-1]
        if subscription["customer"] == node["id"] and subscription["status"] != "canceled"
    ]
    return objects.list_of(held, f"/v1/customers/{node['id']}/subscriptions")
