"""Where Stripe calls: public, and signed by it."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from flask import request
from webargs.flaskparser import is_json_request

from chatapi.errors import UnsupportedMediaTypeError, http_error
from chatapi.extensions import limiter
from chatapi.parsing import WEBHOOK_PATH, ApiBlueprint, read_body
from chatapi.subscriptions.gateway import BillingNotConfiguredError, InvalidSignatureError
from chatapi.subscriptions.schemas import ReceivedSchema
from chatapi.subscriptions.webhook import receive

SIGNATURE = {
    "in": "header",
    "name": "Stripe-Signature",
    "required": True,
    "schema": {"type": "string"},
    "description": "Made by Stripe with the endpoint's secret",
}
EVENT = {"content": {"application/json": {"schema": {"type": "object"}}}, "required": True}

PAYLOAD_TOO_LARGE = http_error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)

blueprint = ApiBlueprint("webhook", __name__, description="For Stripe")


@blueprint.post(WEBHOOK_PATH)
@limiter.exempt
@blueprint.doc(parameters=[SIGNATURE], requestBody=EVENT)
@blueprint.response(200, ReceivedSchema)
@blueprint.problems(InvalidSignatureError, PAYLOAD_TOO_LARGE, UnsupportedMediaTypeError, BillingNotConfiguredError)
def receive_event() -> dict[str, Any]:
    """Take in an event of Stripe's

    The body is a Stripe event, verified as it came, byte by byte. Sent again, it is answered alike and changes nothing.
    """
    if "Content-Encoding" in request.headers or (request.mimetype and not is_json_request(request)):
        raise UnsupportedMediaTypeError
    receive(read_body(request), request.headers.get("Stripe-Signature"))
    return {"received": True}
