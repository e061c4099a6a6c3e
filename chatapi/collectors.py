"""What PostgreSQL says at a scrape, as metrics. It is the same whichever process is asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from chatapi.auth import monitor as sign_in
from chatapi.replies import monitor as replies
from chatapi.subscriptions import monitor as billing
from chatapi.subscriptions.tiers import GRANTS


class QueueCollector(Collector):
    """The replies that are not finished, as PostgreSQL had them at this scrape; `most` is how many there may be."""

    def __init__(self, summary: replies.Summary, most: int) -> None:
        self._summary = summary
        self._most = most

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        summary = self._summary
        states = {state: getattr(summary, state) for state in ("waiting", "running", "retrying")}
        yield gauges("chatapi_reply_jobs", "Replies that are not finished", "state", states)
        yield GaugeMetricFamily(
            "chatapi_reply_jobs_limit", "From how many unfinished replies on prompts are refused", value=self._most
        )
        yield GaugeMetricFamily(
            "chatapi_reply_queue_age_seconds",
            "For how long the oldest reply has waited that a worker could take",
            value=summary.queue_age_seconds,
        )


class SweepingCollector(Collector):
    """Whether there is a sweeper, as PostgreSQL showed it at this scrape."""

    def __init__(self, sweeping: replies.Sweeping) -> None:
        self._sweeping = sweeping

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        yield GaugeMetricFamily(
            "chatapi_sweep_overdue_seconds",
            "For how long sweepers have left alone a reply that they should see to",
            value=self._sweeping.unrung_seconds,
        )
        if self._sweeping.swept_seconds is not None:
            yield GaugeMetricFamily(
                "chatapi_sweep_age_seconds",
                "How long ago a sweeper last gave a sign of life",
                value=self._sweeping.swept_seconds,
            )


class SignInCollector(Collector):
    """How sign-in stands, as PostgreSQL had it at this scrape; `most` is `OTP_GLOBAL_FAILURES`."""

    def __init__(self, summary: sign_in.Summary, most: int) -> None:
        self._summary = summary
        self._most = most

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        found = self._summary
        yield GaugeMetricFamily("chatapi_codes_undelivered", "Codes on their way", value=found.undelivered)
        yield GaugeMetricFamily(
            "chatapi_codes_undelivered_seconds",
            "For how long the oldest code has waited to be delivered",
            value=found.oldest_undelivered_seconds,
        )
        yield GaugeMetricFamily(
            "chatapi_sign_in_failures", "Failed checks of codes and passwords in ten minutes", value=found.failures
        )
        yield GaugeMetricFamily(
            "chatapi_sign_in_failures_limit", "From how many of them on strangers are braked", value=self._most
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
        yield gauges("chatapi_subscriptions", "Subscriptions by Stripe's status", "status", statuses)
        yield GaugeMetricFamily(
            "chatapi_second_subscriptions",
            "Users with more than one subscription that is not over",
            value=found.second_subscriptions,
        )
        events = dict.fromkeys(billing.NEEDED, 0) | found.events
        yield gauges("chatapi_billing_events", "Events of Stripe's that are open or match nobody", "status", events)
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


def gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=[label])
    for word, value in values.items():
        family.add_metric([word], value)
    return family
