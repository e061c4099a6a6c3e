"""`GET /metrics`, for a Prometheus that knows the token."""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError

from flask import Flask, Response, current_app, request
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from chatapi import metrics
from chatapi.errors import NotFoundError, UnauthorizedError
from chatapi.extensions import limiter
from chatapi.parsing import ApiBlueprint
from chatapi.replies.monitor import Summary, read_summary

QUERY_BUDGET_SECONDS = 2.0
"""A scrape that takes longer counts as none at all, and all other figures would be lost with it."""

blueprint = ApiBlueprint("metrics", __name__)

# One thread: while PostgreSQL hangs, one query hangs with it, and not one for each scrape.
_reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="metrics")


class QueueCollector(Collector):
    """The figures that PostgreSQL has, read at each scrape; `summary` is None when it did not answer."""

    def __init__(self, summary: Summary | None) -> None:
        self._summary = summary

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the metrics."""
        summary = self._summary
        yield GaugeMetricFamily(
            "chatapi_database_up", "Whether PostgreSQL answered this scrape", value=float(summary is not None)
        )
        if summary is None:
            return
        jobs = GaugeMetricFamily("chatapi_reply_jobs", "Replies that are not finished", labels=["state"])
        for state in ("waiting", "running", "retrying"):
            jobs.add_metric([state], getattr(summary, state))
        yield jobs
        yield GaugeMetricFamily(
            "chatapi_reply_queue_age_seconds",
            "For how long the oldest reply has waited that a worker could take",
            value=summary.queue_age_seconds,
        )


@blueprint.get("/metrics")
@limiter.exempt
@blueprint.doc(tags=["service"])
@blueprint.response(200, content_type="text/plain")
@blueprint.problems(401, 404)
def show_metrics() -> Response:
    """Show what is counted and timed, as Prometheus reads it

    The bearer token is METRICS_TOKEN, nobody's access token. Without that setting there is nothing here.
    """
    token = current_app.config["METRICS_TOKEN"]
    if token is None:
        raise NotFoundError("There is nothing at this address")
    if not _is_given(token):
        raise UnauthorizedError("The bearer token of METRICS_TOKEN is needed")
    registry = CollectorRegistry()
    for collector in (*metrics.collectors(), QueueCollector(_read_summary())):
        registry.register(collector)
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_PLAIN_0_0_4)


def _is_given(token: str) -> bool:
    given = request.authorization
    if given is None or given.type != "bearer" or not given.token:
        return False
    return hmac.compare_digest(given.token.encode("latin-1", "replace"), token.encode())


def _read_summary() -> Summary | None:
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001 - for another thread

    def read() -> Summary:
        with app.app_context():
            return read_summary()

    pending = _reader.submit(read)
    try:
        return pending.result(timeout=QUERY_BUDGET_SECONDS)
    except FutureTimeoutError:
        pending.cancel()
        return None
    except SQLAlchemyError:
        return None
