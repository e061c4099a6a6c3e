"""Stripe's API without its HTTP: from what a request says to what it is answered, well or badly."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from chatapi.dev.stripe import billing, catalogue, lists, notices, wire
from chatapi.dev.stripe.account import Account
from chatapi.dev.stripe.faults import Fault, FaultBook
from chatapi.dev.stripe.idempotency import Answer, IdempotencyKeys
from chatapi.dev.stripe.routes import Route
from chatapi.dev.stripe.wire import ApiError, Json

ROUTES = (*catalogue.ROUTES, *billing.ROUTES, *notices.ROUTES)
MAX_RECORDED_REQUESTS = 2000
RECORDED_HEADERS = ("Content-Type", "Stripe-Version", "User-Agent", "X-Request-ID")
FORM_TYPE = "application/x-www-form-urlencoded"


@dataclass
class RecordedRequest:
    """A request to the API as it arrived. Of the key only that there was one: it may be a real one, sent by mistake."""

    method: str
    path: str
    params: Json
    idempotency_key: str | None
    headers: dict[str, str]


@dataclass
class Response:
    """What to send; with `misbehaviour`, a kind of fault, the connection is to fail instead."""

    status: int
    body: Json
    headers: dict[str, str] = field(default_factory=dict)
    misbehaviour: str | None = None


class Api:
    """Answers requests; safe to use from many threads."""

    def __init__(self, account: Account, faults: FaultBook) -> None:
        self._account = account
        self._faults = faults
        self._keys = IdempotencyKeys(account)
        self._lock = threading.Lock()
        self._requests: deque[RecordedRequest] = deque(maxlen=MAX_RECORDED_REQUESTS)
        self.is_stopping = threading.Event()

    @property
    def requests(self) -> list[RecordedRequest]:
        """The newest requests, oldest first."""
        with self._lock:
            return list(self._requests)

    def forget_requests(self) -> None:
        """Forget what arrived so far."""
        with self._lock:
            self._requests.clear()

    def answer(self, method: str, path: str, form: str, headers: Mapping[str, str]) -> Response:
        """Answer a request whose query or body is `form`."""
        response = Response(200, {}, {"Request-Id": wire.new_id("req_")})
        try:
            params = self._read(method, path, form, headers)
            wire.check_key(headers.get("Authorization"), livemode=self._account.livemode)
            response.headers["Stripe-Version"] = wire.check_version(headers.get("Stripe-Version"))
            route, object_id = _find_route(method, path)
        except ApiError as error:
            response.status, response.body = error.status, error.body()
            return response
        fault = self._faults.take(method, path)
        if fault.kind is None or fault.is_after:
            key = headers.get("Idempotency-Key") if method == "POST" else None
            self._execute(response, _Work(route, object_id, path, params, key, fault.latency_ms / 1000))
        else:
            self.is_stopping.wait(fault.latency_ms / 1000)
        return _spoil(response, fault)

    def _read(self, method: str, path: str, form: str, headers: Mapping[str, str]) -> Json:
        if method == "POST" and form and not headers.get("Content-Type", FORM_TYPE).startswith(FORM_TYPE):
            raise wire.invalid(f"Invalid request: send parameters as {FORM_TYPE}, as v1 of the API wants them.")
        params = wire.decode_form(form)
        kept = {name.lower(): headers[name] for name in RECORDED_HEADERS if name in headers}
        if "Authorization" in headers:
            kept["authorization"] = "(sent)"
        with self._lock:
            self._requests.append(RecordedRequest(method, path, params, headers.get("Idempotency-Key"), kept))
        return params

    def _execute(self, response: Response, work: _Work) -> None:
        """Run a request once; its latency is within its key's time, so that a second one meets the first."""

        def execute() -> Answer:
            self.is_stopping.wait(work.latency_seconds)
            request = {"id": response.headers["Request-Id"], "idempotency_key": work.key}
            with self._account.changing(request):
                params = work.route.params.read(work.params)
                paths = params.pop("expand", [])
                made = work.route.handler(self._account, work.object_id, params)
                return Answer(200, lists.shown(self._account, made, paths))

        try:
            if work.key is None:
                answer = execute()
            else:
                response.headers["Idempotency-Key"] = work.key
                answer = self._keys.run(work.key, f"{work.route.method} {work.path}", work.params, execute)
        except ApiError as error:
            answer = Answer(error.status, error.body())
        response.status, response.body = answer.status, answer.body
        if answer.is_replayed:
            response.headers["Idempotent-Replayed"] = "true"


@dataclass(frozen=True)
class _Work:
    route: Route
    object_id: str
    path: str
    params: Json
    key: str | None
    latency_seconds: float


def _spoil(response: Response, fault: Fault) -> Response:
    """Put in the place of an answer what `fault` wants instead."""
    if error := fault.error():
        return Response(error.status, error.body(), {"Request-Id": response.headers["Request-Id"]})
    response.misbehaviour = fault.kind
    return response


def _find_route(method: str, path: str) -> tuple[Route, str]:
    for route in ROUTES:
        object_id = route.match(method, path)
        if object_id is not None:
            return route, object_id
    raise ApiError(404, f"Unrecognized request URL ({method}: {path}).", is_remembered=False)
