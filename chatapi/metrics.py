"""What is counted and timed, over all processes of a host; `docs/metrics.md` says what each figure means.

With `PROMETHEUS_MULTIPROC_DIR` each process keeps its figures in files of that folder, and whichever is asked adds all
of them up; processes that share no folder each count for themselves.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator

import structlog
from prometheus_client import CollectorRegistry, disable_created_metrics
from prometheus_client.registry import Collector

from chatapi.figures import Figures
from chatapi.metric_files import FolderCollector, find_folder, use_folder

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

log = structlog.get_logger(__name__)

_LABEL = re.compile(r"[a-z0-9_]{1,40}", re.ASCII)

disable_created_metrics()  # type: ignore[no-untyped-call]
_folder = find_folder()
_registry = CollectorRegistry()
_lock = threading.Lock()
_made: Figures | None = None
_kind: str | None = None
_kind_lock = threading.Lock()


def _figures() -> Figures:
    """Return the metrics, made at their first use: a `flask` command that counts nothing leaves no files."""
    global _made  # noqa: PLW0603 - one per process
    if _made is None:
        with _lock:
            if _made is None:
                _keep_in_folder()
                _made = Figures(_registry)
    return _made


def _keep_in_folder() -> None:
    """With a disk that is full the figures of this process are kept to itself: they are not worth a request."""
    if _folder is not None:
        try:
            use_folder(_folder)
        except OSError as error:
            log.error("metrics_not_shared", reason=error.strerror)  # noqa: TRY400 - the traceback says no more


def started(kind: str) -> None:
    """Count this process among those that run, once, as one of `PROCESSES`."""
    global _kind  # noqa: PLW0603 - one per process
    with _kind_lock:
        if _kind is not None:
            return
        _kind = kind
    _figures().processes.labels(kind).inc()
    _figures().starts.labels(kind).inc()


def is_started() -> bool:
    """Return whether this process serves, and is no command that somebody runs."""
    return _kind is not None


def accepted() -> None:
    """Count a prompt whose acceptance is committed."""
    _figures().accepted.inc()


def ended(
    status: str,
    reason: str | None,
    age_seconds: float,
    prompt_tokens: int | None = None,
    output_tokens: int | None = None,
) -> None:
    """Count a reply whose end is committed, so long after its acceptance.

    `status` is `completed`, `stopped` or `failed`, the last for `reason`.
    """
    figures = _figures()
    if status == "completed":
        figures.completed.inc()
    elif status == "stopped":
        figures.stopped.inc()
    else:
        figures.failed.labels(_label(reason)).inc()
    figures.duration.observe(age_seconds)
    figures.prompt_tokens.inc(prompt_tokens or 0)
    figures.output_tokens.inc(output_tokens or 0)


def retried(reason: str) -> None:
    """Count an attempt that will be repeated. `reason` is one of a few words, never a text with data in it."""
    _figures().retries.labels(_label(reason)).inc()


def first_text(age_seconds: float) -> None:
    """Note that a reply shows its first text, so long after acceptance."""
    _figures().first_text.observe(age_seconds)


def model_called(model: str, outcome: str, seconds: float) -> None:
    """Count a call of the model with this alias, and how it ended: one of a few words."""
    figures = _figures()
    figures.model_calls.labels(model, _label(outcome)).inc()
    figures.model_call_duration.labels(model).observe(seconds)


def answered(method: str, route: str, status: int, seconds: float | None) -> None:
    """Count a request by its route's rule, and never by its path; `seconds` is None for what is not to be timed."""
    figures = _figures()
    known = method if method in METHODS else "other"
    figures.requests.labels(known, route, str(status)).inc()
    if seconds is not None:
        figures.request_duration.labels(known, route).observe(seconds)


def refused(error: str | None) -> None:
    """Count an answer of 400 or more by its slug."""
    _figures().errors.labels(_label(error)).inc()


def place_taken() -> None:
    """Count an ordinary request that runs. Each goes with one `place_given_back`."""
    _figures().running.inc()


def place_given_back() -> None:
    """Count it as done."""
    _figures().running.dec()


def wait_begun() -> None:
    """Count a request that waits for a place. Each goes with one `wait_ended`."""
    _figures().waiting.inc()


def wait_ended() -> None:
    """Count it as waiting no more."""
    _figures().waiting.dec()


def stream_opened() -> None:
    """Count a stream that begins. Each goes with one `stream_closed`."""
    _figures().streams.inc()
    _figures().open_streams.inc()


def stream_closed() -> None:
    """Count a stream as closed, however it ended."""
    _figures().open_streams.dec()


def redis_failed(use: str) -> None:
    """Count that Redis failed, and is not asked again for some seconds."""
    _figures().redis_failures.labels(_label(use)).inc()


def connection_taken(*_: object) -> None:
    """Count a connection to PostgreSQL as in use. Each goes with one `connection_returned`."""
    if _kind is not None:  # A command that only looks something up leaves no files.
        _figures().connections.inc()


def connection_returned(*_: object) -> None:
    """Count it as free again."""
    if _kind is not None:
        _figures().connections.dec()


def collectors() -> Iterator[Collector]:
    """Yield what collects the figures of all processes that share the folder, or of this one."""
    _figures()
    yield _registry if _folder is None else FolderCollector(_folder)


def _label(reason: str | None) -> str:
    """Keep texts out of labels: each new one would be a series for ever."""
    return reason if reason and _LABEL.fullmatch(reason) else "other"
