"""The metrics that a process has; what counts in them is `chatapi.metrics`."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

FAILURES = (
    "upstream_unavailable",
    "timed_out",
    "upstream_rejected",
    "safety_blocked",
    "context_too_long",
    "internal_error",
)
RETRIES = ("upstream_unavailable", "timed_out")
PROCESSES = ("web", "worker", "chores", "billing", "sweeper")
REDIS_USES = ("ring", "cache", "live_replies", "limits")
ERRORS = (
    "rate_limited",
    "sign_in_rate_limited",
    "too_busy",
    "service_unavailable",
    "internal_error",
    "invalid_signature",
)
"""Of all, those that somebody wants to know of from the first on."""

_REPLY_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0)
_REQUEST_SECONDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class Figures:
    """The metrics of this process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(name, text, labels, buckets=buckets, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, multiprocess_mode="livesum", registry=registry)

        self.accepted = counter("chatapi_replies_accepted", "Prompts accepted, each of which is owed a reply")
        self.completed = counter("chatapi_replies_completed", "Replies that ended completed")
        self.failed = counter("chatapi_replies_failed", "Replies that ended failed", "reason")
        self.stopped = counter("chatapi_replies_stopped", "Replies that their owner stopped")
        self.retries = counter("chatapi_reply_retries", "Attempts that failed and are to be repeated", "reason")
        self.first_text = histogram(
            "chatapi_reply_first_text_seconds", "From acceptance to the first text", _REPLY_SECONDS
        )
        self.duration = histogram(
            "chatapi_reply_duration_seconds", "From acceptance to the end, whatever it was", _REPLY_SECONDS
        )
        tokens = counter("chatapi_reply_tokens", "Tokens that the models counted", "kind")
        self.prompt_tokens, self.output_tokens = tokens.labels("prompt"), tokens.labels("output")
        self.model_calls = counter("chatapi_model_calls", "Calls of a model that have ended", "model", "outcome")
        self.model_call_duration = histogram(
            "chatapi_model_call_seconds", "Calls of a model, from the first byte to the last", _REPLY_SECONDS, "model"
        )

        self.requests = counter("chatapi_http_requests", "Requests answered", "method", "route", "status")
        self.request_duration = histogram(
            "chatapi_http_request_seconds",
            "From a request's arrival to the beginning of its answer; none that asked to wait for a reply",
            _REQUEST_SECONDS,
            "method",
            "route",
        )
        self.errors = counter("chatapi_http_errors", "Answers of 400 and more, by what they call themselves", "error")
        self.running = gauge("chatapi_requests_running", "Ordinary requests that hold a place")
        self.waiting = gauge("chatapi_requests_waiting", "Ordinary requests that wait for a place")
        self.streams = counter("chatapi_streams", "Streams that were opened")
        self.open_streams = gauge("chatapi_open_streams", "Streams that are followed now")

        self.redis_failures = counter("chatapi_redis_failures", "Times that Redis failed and was then left be", "use")
        self.connections = gauge("chatapi_database_connections", "Connections to PostgreSQL in use")
        self.processes = gauge("chatapi_processes", "Processes that run", "kind")
        self.starts = counter("chatapi_process_starts", "Processes that have begun their work", "kind")
        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        """Make the series that are known beforehand: one that began with its first event would show no increase."""
        for metric, words in (
            (self.failed, FAILURES),
            (self.retries, RETRIES),
            (self.errors, ERRORS),
            (self.redis_failures, REDIS_USES),
            (self.processes, PROCESSES),
            (self.starts, PROCESSES),
        ):
            for word in words:
                metric.labels(word)
