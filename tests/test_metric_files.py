"""The files of processes that have ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from chatapi import metric_files
from chatapi.metric_files import FolderCollector, tidy
from config import ROOT

COUNT = "from chatapi import metrics; metrics.accepted(); metrics.first_text(0.3); metrics.stream_opened()"
NEVER_ENDS = COUNT + "\nprint('done', flush=True); input()"


def python(folder: Path, code: str = COUNT) -> subprocess.Popen[str]:
    environ = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environ, **pipes)


def count_in_processes(folder: Path, times: int) -> None:
    code = f"""
import os
from chatapi import metrics
for _ in range({times}):
    if os.fork() == 0:
        {COUNT}
        os._exit(0)
    os.wait()
"""
    python(folder, code).communicate(timeout=60)


def values(folder: Path) -> dict[str, float]:
    """Return what a scrape would show, without labels but that of the bucket."""
    samples = [sample for metric in FolderCollector(folder).collect() for sample in metric.samples]
    return {
        f"{sample.name} {sample.labels['le']}" if "le" in sample.labels else sample.name: sample.value
        for sample in samples
        if set(sample.labels) <= {"le"}
    }


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_files_of_ended_processes_become_one_of_each_kind_and_nothing_of_them_is_lost(tmp_path: Path) -> None:
    count_in_processes(tmp_path, 3)

    first = values(tmp_path)
    count_in_processes(tmp_path, 1)
    second, third = values(tmp_path), values(tmp_path)

    assert first["chatapi_replies_accepted_total"] == 3
    assert first["chatapi_reply_first_text_seconds_bucket 0.5"] == 3
    assert first["chatapi_reply_first_text_seconds_bucket 0.25"] == 0
    assert first["chatapi_reply_first_text_seconds_sum"] == pytest.approx(0.9)
    assert second["chatapi_replies_accepted_total"] == 4
    assert second["chatapi_reply_first_text_seconds_count"] == 4
    assert third == second
    assert names(tmp_path) == {"counter_ended.db", "histogram_ended.db", "lock"}


def test_process_that_runs_keeps_its_files_and_is_counted_on(tmp_path: Path) -> None:
    process = python(tmp_path, NEVER_ENDS)
    assert process.stdout is not None
    process.stdout.readline()

    found = values(tmp_path)

    assert found["chatapi_open_streams"] == 1
    assert [name for name in names(tmp_path) if name.startswith("alive_")] != []
    process.send_signal(signal.SIGKILL)
    process.communicate()
    found = values(tmp_path)
    assert found["chatapi_replies_accepted_total"] == 1
    assert "chatapi_open_streams" not in found
    assert names(tmp_path) == {"counter_ended.db", "histogram_ended.db", "lock"}


def test_nothing_is_counted_twice_when_the_process_that_puts_files_together_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    def killed(path: Path, *, missing_ok: bool) -> None:
        if not path.name.startswith("draft_"):
            raise KilledError

    count_in_processes(tmp_path, 2)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KilledError):
            tidy(tmp_path)
    assert len(list(tmp_path.glob("counter_*.db"))) == 3
    count_in_processes(tmp_path, 1)

    found = values(tmp_path)

    assert found["chatapi_replies_accepted_total"] == 3
    assert found["chatapi_reply_first_text_seconds_count"] == 3


def test_counts_of_a_forked_process_are_its_own(tmp_path: Path) -> None:
    code = f"""
import os
{COUNT}
if os.fork() == 0:
    metrics.accepted()
    os._exit(0)
os.wait()
metrics.accepted()
print('done', flush=True); input()
"""
    process = python(tmp_path, code)
    assert process.stdout is not None
    process.stdout.readline()

    found = values(tmp_path)

    assert found["chatapi_replies_accepted_total"] == 3
    assert len([name for name in names(tmp_path) if name.startswith("alive_")]) == 1
    process.communicate("\n")
    assert values(tmp_path)["chatapi_replies_accepted_total"] == 3


def test_scrapes_at_once_see_each_figure_once(tmp_path: Path) -> None:
    count_in_processes(tmp_path, 4)
    found = []

    threads = [
        threading.Thread(target=lambda: found.append(values(tmp_path)["chatapi_replies_accepted_total"]))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == [4] * 8


def test_scrape_reads_on_when_another_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric_files, "LOCK_SECONDS", 0.1)
    count_in_processes(tmp_path, 1)

    with metric_files._alone(tmp_path) as is_alone:
        assert is_alone
        found = values(tmp_path)

    assert found["chatapi_replies_accepted_total"] == 1
    assert "counter_ended.db" not in names(tmp_path)


def test_service_goes_on_without_its_files_when_they_cannot_be_made(tmp_path: Path) -> None:
    code = f"""
import errno, os


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

os.posix_fallocate = full
{COUNT}
print(metrics._figures().accepted._value.get())
"""
    output, _ = python(tmp_path, code).communicate(timeout=60)

    assert "metrics_not_shared" in output
    assert output.splitlines()[-1] == "1.0"
