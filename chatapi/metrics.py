"""What is counted and timed, over all processes of a host.

With `PROMETHEUS_MULTIPROC_DIR` each process keeps its figures in files of that folder, and whichever is asked adds all
of them up; processes that share no folder each count for themselves. The figures of processes that have ended stay, as
counters must not go down; so empty the folder only when the whole system is down.
"""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, values
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from config import ConfigError, load_environment

FOLDER_NAME = "PROMETHEUS_MULTIPROC_DIR"

FAILURES = (
    "upstream_unavailable",
    "timed_out",
    "upstream_rejected",
    "safety_blocked",
    "context_too_long",
    "internal_error",
)

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0)
_LABEL = re.compile(r"[a-z0-9_]{1,40}", re.ASCII)
_HOST = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())


def _process_name() -> str:
    """Return what no other process has that may use the folder, also when containers share one."""
    return f"{_HOST}-{os.getpid()}"


def _open_folder() -> Path | None:
    """Make prometheus_client keep its figures in the folder, if there is one.

    The library settles on files or memory when it is imported, by the process's environment, which does not have what
    is in `.env`. So it is told here, before the first metric is made.
    """
    name = load_environment().get(FOLDER_NAME, "").strip()
    if not name:
        # Set to nothing, the variable would have the library write into the current folder.
        os.environ.pop(FOLDER_NAME, None)
        values.ValueClass = values.MutexValue
        return None
    folder = Path(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError([f"{FOLDER_NAME} names a folder that cannot be made: {error.strerror}."]) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError([f"{FOLDER_NAME} names a folder that this user cannot write to."])
    os.environ[FOLDER_NAME] = str(folder)
    values.ValueClass = values.MultiProcessValue(_process_name)  # type: ignore[no-untyped-call]
    # A process that had our number before us may have left a gauge behind, and it would be taken for ours.
    for path in folder.glob(f"gauge_live*_{_process_name()}.db"):
        path.unlink(missing_ok=True)
    return folder


class _Figures:
    """The metrics of this process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def histogram(name: str, text: str) -> Histogram:
            return Histogram(name, text, buckets=_SECONDS, registry=registry)

        self.accepted = counter("chatapi_replies_accepted", "Prompts accepted, each of which is owed a reply")
        self.completed = counter("chatapi_replies_completed", "Replies that ended completed")
        self.failed = counter("chatapi_replies_failed", "Replies that ended failed", "reason")
        self.stopped = counter("chatapi_replies_stopped", "Replies that their owner stopped")
        self.retries = counter("chatapi_reply_retries", "Attempts that failed and are to be repeated", "reason")
        self.first_text = histogram("chatapi_reply_first_text_seconds", "From acceptance to the first text")
        self.duration = histogram("chatapi_reply_duration_seconds", "From acceptance to the end, whatever it was")
        tokens = counter("chatapi_reply_tokens", "Tokens that the models counted", "kind")
        self.prompt_tokens, self.output_tokens = tokens.labels("prompt"), tokens.labels("output")
        self.open_streams = Gauge(
            "chatapi_open_streams", "Streams that are followed now", multiprocess_mode="livesum", registry=registry
        )
        for reason in FAILURES:
            self.failed.labels(reason)  # A series that began with its first failure would show no increase.


disable_created_metrics()  # type: ignore[no-untyped-call]
_folder = _open_folder()
_registry = CollectorRegistry()
_lock = threading.Lock()
_made: _Figures | None = None


def _figures() -> _Figures:
    """Return the metrics, made at their first use: a `flask` command that counts nothing leaves no files."""
    global _made  # noqa: PLW0603 - one per process
    if _made is None:
        with _lock:
            _made = _made or _Figures(_registry)
    return _made


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


def stream_opened() -> None:
    """Count a stream that begins. Each goes with one `stream_closed`."""
    _figures().open_streams.inc()


def stream_closed() -> None:
    """Count a stream as closed, however it ended."""
    _figures().open_streams.dec()


def collectors() -> Iterator[Collector]:
    """Yield what collects the figures of all processes that share the folder, or of this one."""
    _figures()
    if _folder is None:
        yield _registry
    else:
        _forget_ended(_folder)
        yield MultiProcessCollector(None, str(_folder))  # type: ignore[no-untyped-call]


def _forget_ended(folder: Path) -> None:
    """Delete what processes of this host that are gone say of the present. Those that were killed could not."""
    for path in folder.glob(f"gauge_live*_{_HOST}-*.db"):
        pid = path.stem.rpartition("-")[2]
        if pid.isdecimal() and not _is_running(int(pid)):
            path.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    with suppress(PermissionError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
    return True


def _label(reason: str | None) -> str:
    """Keep texts out of labels: each new one would be a series for ever."""
    return reason if reason and _LABEL.fullmatch(reason) else "other"
