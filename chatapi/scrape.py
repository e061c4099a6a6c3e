"""`GET /metrics`, for a Prometheus that knows the token."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TypeVar

from flask import Flask, Response, current_app, request
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from chatapi import metrics
from chatapi.errors import NotFoundError, UnauthorizedError
from chatapi.extensions import limiter
from chatapi.parsing import ApiBlueprint
from chatapi.replies import monitor as replies
from chatapi.subscriptions import monitor as billing
from chatapi.subscriptions.tiers import GRANTS

T = TypeVar("T")

QUERY_BUDGET_SECONDS = 2.0
"""A scrape that takes longer counts as none at all, and all other figures would be lost with it."""

blueprint = ApiBlueprint("metrics", __name__)

# One thread: while PostgreSQL hangs, one query hangs with it, and not one for each scrape.
_reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="metrics")


class QueueCollector(Collector):
    """The replies that are not finished, as PostgreSQL had them at this scrape."""

    def __init__(self, summary: replies.Summary) -> None:
        self._summary = summary

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        summary = self._summary
        states = {state: getattr(summary, state) for state in ("waiting", "running", "retrying")}
        yield _gauges("chatapi_reply_jobs", "Replies that are not finished", "state", states)
        yield GaugeMetricFamily(
            "chatapi_reply_queue_age_seconds",
            "For how long the oldest reply has waited that a worker could take",
            value=summary.queue_age_seconds,
        )


class BillingCollector(Collector):
    """How billing stands, as PostgreSQL had it at this scrape."""

    def __init__(self, summary: billing.Summary) -> None:
        self._summary = summary

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        found = self._summary
        yield GaugeMetricFamily("chatapi_pro_accounts", "Accounts that have Pro now", value=found.pro_accounts)
        statuses = dict.fromkeys(GRANTS, 0) | found.subscriptions
        yield _gauges("chatapi_subscriptions", "Subscriptions by Stripe's status", "status", statuses)
        yield GaugeMetricFamily(
            "chatapi_second_subscriptions",
            "Users with more than one subscription that is not over",
            value=found.second_subscriptions,
        )
        events = dict.fromkeys(billing.NEEDED, 0) | found.events
        yield _gauges("chatapi_billing_events", "Events of Stripe's that are open or match nobody", "status", events)
        yield GaugeMetricFamily(
            "chatapi_billing_oldest_event_seconds",
            "For how long the oldest open event has waited",
            value=found.oldest_event_seconds,
        )
        yield GaugeMetricFamily(
            "chatapi_billing_closures", "Erased accounts not yet ended at Stripe", value=found.closures
        )
        yield from self._reconciliation()

    def _reconciliation(self) -> Iterator[Metric]:
        found = self._summary
        yield GaugeMetricFamily(
            "chatapi_billing_drift", "Customers that the last comparison with Stripe repaired", value=found.drifted
        )
        yield CounterMetricFamily("chatapi_billing_drift_total", "Those of all comparisons", value=found.total_drifted)
        yield GaugeMetricFamily(
            "chatapi_billing_unknown_customers", "Customers with subscriptions who are nobody here", value=found.unknown
        )
        yield GaugeMetricFamily(
            "chatapi_billing_failed_customers", "Customers who could not be compared with Stripe", value=found.failed
        )
        if found.finished_at is not None:
            yield GaugeMetricFamily(
                "chatapi_billing_reconciled_timestamp_seconds",
                "When the last comparison with Stripe ended",
                value=found.finished_at.timestamp(),
            )


class DatabaseCollector(Collector):
    """Whether PostgreSQL answered this scrape."""

    def __init__(self, *, is_up: bool) -> None:
        self._is_up = is_up

    def collect(self) -> Iterator[Metric]:
        """Yield the metric."""
        yield GaugeMetricFamily(
            "chatapi_database_up", "Whether PostgreSQL answered this scrape", value=float(self._is_up)
        )


def _gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=[label])
    for word, value in values.items():
        family.add_metric([word], value)
    return family


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
    for collector in (*metrics.collectors(), *_database_collectors()):
        registry.register(collector)
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_PLAIN_0_0_4)


def _is_given(token: str) -> bool:
    given = request.authorization
    if given is None or given.type != "bearer" or not given.token:
        return False
    return hmac.compare_digest(given.token.encode("latin-1", "replace"), token.encode())


def _database_collectors() -> list[Collector]:
    """Return the figures that PostgreSQL gives in time. The queue's come first: no others may keep them away."""
    deadline = time.monotonic() + QUERY_BUDGET_SECONDS
    queue = _read(replies.read_summary, deadline)
    collectors: list[Collector] = [DatabaseCollector(is_up=queue is not None)]
    if queue is not None:
        collectors.append(QueueCollector(queue))
        paid = _read(billing.read_summary, deadline)
        collectors.extend([] if paid is None else [BillingCollector(paid)])
    return collectors


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
