"""`GET /metrics`, for a Prometheus that knows the token."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TypeVar

import redis
from flask import Flask, Response, current_app, request
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from chatapi import metrics
from chatapi.auth import monitor as sign_in
from chatapi.collectors import BillingCollector, QueueCollector, SignInCollector, SweepingCollector, gauges
from chatapi.errors import NotFoundError, UnauthorizedError
from chatapi.extensions import REDIS_OPTIONS, limiter
from chatapi.observability import API_VERSION
from chatapi.parsing import ApiBlueprint
from chatapi.redis_nodes import connect
from chatapi.replies import monitor as replies
from chatapi.subscriptions import monitor as billing

T = TypeVar("T")

QUERY_BUDGET_SECONDS = 2.0
"""A scrape that takes longer counts as none at all, and all other figures would be lost with it."""

REDIS_URLS = {"queue": "REDIS_URL", "cache": "CACHE_REDIS_URL", "limits": "RATE_LIMIT_REDIS_URL"}

NO_METRICS = NotFoundError("There is nothing at this address")
NO_METRICS_TOKEN = UnauthorizedError("The bearer token of METRICS_TOKEN is needed")

blueprint = ApiBlueprint("metrics", __name__)

# One thread: while PostgreSQL hangs, one query hangs with it, and not one for each scrape.
_reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="metrics")


class ServiceCollector(Collector):
    """What this process is, and whether PostgreSQL and Redis answered it at this scrape."""

    def __init__(self, *, is_database_up: bool) -> None:
        self._is_database_up = is_database_up

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        yield gauges("chatapi_build_info", "The version that answers", "version", {API_VERSION: 1})
        places = current_app.config["WEB_THREADS"] * current_app.config["WEB_CONCURRENCY"]
        yield GaugeMetricFamily("chatapi_request_places", "Places for ordinary requests on this host", value=places)
        yield GaugeMetricFamily(
            "chatapi_database_up", "Whether PostgreSQL answered this scrape", value=float(self._is_database_up)
        )
        yield gauges("chatapi_redis_up", "Whether Redis answered this scrape", "use", _redis_states())


@blueprint.get("/metrics")
@limiter.exempt
@blueprint.doc(tags=["service"])
@blueprint.response(200, {"type": "string"}, content_type="text/plain", description="Prometheus's text format")
@blueprint.problems(NO_METRICS_TOKEN, NO_METRICS)
def show_metrics() -> Response:
    """Show what is counted and timed, as Prometheus reads it

    The bearer token is METRICS_TOKEN, nobody's access token. Without that setting there is nothing here.
    """
    token = current_app.config["METRICS_TOKEN"]
    if token is None:
        raise NotFoundError(NO_METRICS.message)
    if not _is_given(token):
        raise UnauthorizedError(NO_METRICS_TOKEN.message)
    registry = CollectorRegistry()
    for collector in (*metrics.collectors(), *_database_collectors()):
        registry.register(collector)
    response = Response(generate_latest(registry), content_type=CONTENT_TYPE_PLAIN_0_0_4)
    response.headers["Cache-Control"] = "no-store"
    return response


def _is_given(token: str) -> bool:
    given = request.authorization
    if given is None or given.type != "bearer" or not given.token:
        return False
    return hmac.compare_digest(given.token.encode("latin-1", "replace"), token.encode())


def _redis_states() -> dict[str, float]:
    """Return which uses have a Redis that answers; one that serves several is asked once."""
    found: dict[str, float] = {}
    for name in REDIS_URLS.values():
        url = current_app.config[name]
        if url not in found:
            found[url] = float(_answers(url))
    return {use: found[current_app.config[name]] for use, name in REDIS_URLS.items()}


def _answers(url: str) -> bool:
    """Return whether all that take writes do."""
    nodes = connect(url, **REDIS_OPTIONS)
    try:
        return all(nodes.each(lambda client: bool(client.ping())))
    except (redis.RedisError, OSError):
        return False
    finally:
        nodes.close()


def _database_collectors() -> Iterator[Collector]:
    """Yield the figures that PostgreSQL gives in time. The queue's come first: no others may keep them away."""
    deadline, config = time.monotonic() + QUERY_BUDGET_SECONDS, current_app.config
    queue = _read(replies.read_summary, deadline)
    yield ServiceCollector(is_database_up=queue is not None)
    if queue is None:
        return
    yield QueueCollector(queue, config["MAX_BACKLOG"])
    if (sweeping := _read(replies.read_sweeping, deadline)) is not None:
        yield SweepingCollector(sweeping)
    if (codes := _read(sign_in.read_summary, deadline)) is not None:
        yield SignInCollector(codes, config["OTP_GLOBAL_FAILURES"])
    if (paid := _read(billing.read_summary, deadline)) is not None:
        yield BillingCollector(paid)


def _read(work: Callable[[], T], deadline: float) -> T | None:
    """Return what `work` reads from PostgreSQL, None when it has not by the deadline."""
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001 - for another thread

    def read() -> T:
        with app.app_context():
            return work()

    pending = _reader.submit(read)
    try:
        return pending.result(timeout=max(0.0, deadline - time.monotonic()))
    except FutureTimeoutError:
        pending.cancel()
        return None
    except SQLAlchemyError:
        return None
