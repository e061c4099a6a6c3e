"""Events, and the endpoints that they are sent to."""

from __future__ import annotations

import fnmatch

from chatapi.dev.stripe import objects
from chatapi.dev.stripe.account import Account
from chatapi.dev.stripe.catalogue import change
from chatapi.dev.stripe.lists import FILTERED_PAGING, PAGING, page
from chatapi.dev.stripe.params import Checker, Params, array, boolean, merge_metadata, metadata, text, url
from chatapi.dev.stripe.routes import Route
from chatapi.dev.stripe.wire import Json, invalid, new_id

ENDPOINT_FIELDS: dict[str, Checker] = {
    "description": text(),
    "enabled_events": array(text(), minimum=1),
    "metadata": metadata(),
    "url": url(),
}
EVENT_LIST = Params(
    FILTERED_PAGING | {"delivery_success": boolean(), "type": text(), "types": array(text(), minimum=1)}
)


def _get_event(account: Account, object_id: str, _: Json) -> Json:
    return account.find("event", object_id)


def _list_events(account: Account, _: str, params: Json) -> Json:
    if "type" in params and "types" in params:
        raise invalid("You may only specify one of these parameters: type, types.", param="types")
    patterns = params.get("types") or [params.get("type") or "*"]

    def is_wanted(event: Json) -> bool:
        is_delivered = event["pending_webhooks"] == 0
        return any(fnmatch.fnmatchcase(event["type"], pattern) for pattern in patterns) and (
            is_delivered == params.get("delivery_success", is_delivered)
        )

    return page(account, "event", "/v1/events", params, is_wanted)


def create_endpoint(account: Account, params: Json, secret: str | None = None) -> Json:
    """Make an endpoint; the answer shows its secret, once."""
    made = objects.webhook_endpoint(account.head("webhook_endpoint"), params["url"], params["enabled_events"])
    made["description"] = params.get("description")
    made["metadata"] = merge_metadata({}, params.get("metadata"))
    made["api_version"] = params.get("api_version")
    account.add(made)
    account.secret_of(made["id"])["secrets"] = [secret or new_id("whsec_")]
    return {**made, "secret": account.private[made["id"]]["secrets"][0]}


def rotate_secret(account: Account, endpoint_id: str, secret: str | None, *, keep_old: bool) -> str:
    """Give an endpoint a new secret; with `keep_old` it signs with the old one too, as Stripe can for a day."""
    held = account.secret_of(account.find("webhook_endpoint", endpoint_id)["id"])
    held["secrets"] = [secret or new_id("whsec_"), *(held["secrets"][:1] if keep_old else [])]
    return str(held["secrets"][0])


def _create_endpoint(account: Account, _: str, params: Json) -> Json:
    return create_endpoint(account, params)


def _get_endpoint(account: Account, object_id: str, _: Json) -> Json:
    return account.find("webhook_endpoint", object_id)


def _update_endpoint(account: Account, object_id: str, params: Json) -> Json:
    fields = dict(params)
    if "disabled" in fields:
        fields["status"] = "disabled" if fields.pop("disabled") else "enabled"
    held = account.find("webhook_endpoint", object_id)
    return change(account, held, fields, None)


def _delete_endpoint(account: Account, object_id: str, _: Json) -> Json:
    account.find("webhook_endpoint", object_id)
    del account.kinds["webhook_endpoint"][object_id]
    account.touch()
    return {"id": object_id, "object": "webhook_endpoint", "deleted": True}


def _list_endpoints(account: Account, _: str, params: Json) -> Json:
    return page(account, "webhook_endpoint", "/v1/webhook_endpoints", params, lambda _: True)


NEW_ENDPOINT = Params(ENDPOINT_FIELDS | {"api_version": text()}, ("enabled_events", "url"))
ENDPOINT = "/v1/webhook_endpoints/{id}"

ROUTES = (
    Route("GET", "/v1/events", _list_events, EVENT_LIST),
    Route("GET", "/v1/events/{id}", _get_event),
    Route("POST", "/v1/webhook_endpoints", _create_endpoint, NEW_ENDPOINT),
    Route("GET", "/v1/webhook_endpoints", _list_endpoints, Params(PAGING)),
    Route("GET", ENDPOINT, _get_endpoint),
    Route("POST", ENDPOINT, _update_endpoint, Params(ENDPOINT_FIELDS | {"disabled": boolean()})),
    Route("DELETE", ENDPOINT, _delete_endpoint),
)
