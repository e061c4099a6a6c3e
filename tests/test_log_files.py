"""Where the lines go: standard output and files, shared by processes, moved away, full or gone."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from chatapi.app import create_app
from chatapi.log_files import SharedFileHandler, open_log_files
from chatapi.logs import OutputHandler, configure_logging, logs_to_stderr
from config import ROOT, ConfigError
from tests.support import Services


@pytest.fixture
def logging_kept() -> Iterator[None]:
    """Leave logging as it was, whatever the test configures."""
    root = logging.getLogger()
    handlers, level, settings = root.handlers, root.level, structlog.get_config()
    yield
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers = handlers
    root.setLevel(level)
    structlog.configure(**settings)


@pytest.fixture
def failures() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def open_file(tmp_path: Path, failures: list[tuple[str, str]]) -> Iterator[Callable[..., SharedFileHandler]]:
    handlers = []

    def open_file(path: Path = tmp_path / "folder" / "combined.log") -> SharedFileHandler:
        path.parent.mkdir(exist_ok=True)
        handler = SharedFileHandler(path, lambda path, reason: failures.append((path.name, reason)))
        handlers.append(handler)
        return handler

    yield open_file
    for handler in handlers:
        handler.close()


def say(handler: logging.Handler, text: str) -> None:
    handler.handle(logging.LogRecord("tests", logging.INFO, __file__, 1, text, (), None))


def test_file_is_opened_again_when_it_was_moved_away(
    open_file: Callable[..., SharedFileHandler], failures: list[tuple[str, str]]
) -> None:
    handler = open_file()
    say(handler, "one")
    moved = handler.path.rename(handler.path.with_suffix(".1"))
    say(handler, "two")
    handler.path.unlink()
    say(handler, "three")

    assert moved.read_text() == "one\n"
    assert handler.path.read_text() == "three\n"
    assert failures == []


def test_file_that_was_emptied_begins_at_its_beginning(open_file: Callable[..., SharedFileHandler]) -> None:
    handler = open_file()
    say(handler, "one")
    os.truncate(handler.path, 0)
    say(handler, "two")

    assert handler.path.read_bytes() == b"two\n"


def test_folder_that_is_gone_is_said_once_and_written_to_when_it_is_back(
    open_file: Callable[..., SharedFileHandler], failures: list[tuple[str, str]]
) -> None:
    handler = open_file()
    away = handler.path.parent.rename(handler.path.parent.with_name("away"))
    say(handler, "lost")
    say(handler, "lost too")
    away.rename(handler.path.parent)
    say(handler, "back")
    say(handler, "again")

    assert failures == [("combined.log", "No such file or directory")]
    assert handler.path.read_text() == "back\nagain\n"


def test_full_disk_fails_nobody_and_is_said_once(
    open_file: Callable[..., SharedFileHandler], failures: list[tuple[str, str]]
) -> None:
    handler = open_file(Path("/dev/full"))
    for _ in range(3):
        say(handler, "lost")

    assert failures == [("full", "No space left on device")]


def test_line_that_was_torn_does_not_take_the_next_with_it(
    open_file: Callable[..., SharedFileHandler], monkeypatch: pytest.MonkeyPatch, failures: list[tuple[str, str]]
) -> None:
    handler, write = open_file(), os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:3]))
        say(handler, "torn")
    say(handler, "whole")
    say(handler, "another")

    assert handler.path.read_text() == "tor\nwhole\nanother\n"
    assert failures == [("combined.log", "only a part of a line could be written")]


def test_errors_are_in_a_file_of_their_own(tmp_path: Path, logging_kept: None) -> None:
    configure_logging("info", as_json=False, log_dir=str(tmp_path / "a" / "b"), secrets=["hunter-22"])
    log = structlog.get_logger("chatapi.tests")
    log.debug("unheard")
    log.info("fine", value="hunter-22")
    log.error("broken")

    def kept(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (tmp_path / "a" / "b" / name).read_text().splitlines()]

    assert [each["event"] for each in kept("combined.log")] == ["fine", "broken"]
    assert [each["event"] for each in kept("error.log")] == ["broken"]
    assert kept("combined.log")[0]["value"] == "***"
    assert (tmp_path / "a" / "b" / "error.log").stat().st_mode & 0o777 == 0o640


def test_lost_file_is_told_of_on_standard_output(
    tmp_path: Path, logging_kept: None, capfd: pytest.CaptureFixture[str]
) -> None:
    configure_logging("info", as_json=True, log_dir=str(tmp_path / "logs"))
    (tmp_path / "logs").rename(tmp_path / "away")
    structlog.get_logger("chatapi.tests").info("fine")

    told = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    failed = [each for each in told if each["event"] == "log_file_failed"]
    assert [(each["file"], each["level"]) for each in failed] == [("combined.log", "error")]
    assert "fine" in [each["event"] for each in told]


def test_files_of_the_configuration_before_are_closed(tmp_path: Path, logging_kept: None) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        configure_logging("info", as_json=True, log_dir=str(tmp_path))

    assert len(os.listdir("/proc/self/fd")) <= before + 2


@pytest.mark.parametrize("place", ["file/logs", "file", "logs\0"])
def test_start_is_refused_when_the_files_cannot_be_written(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    before = len(os.listdir("/proc/self/fd"))

    with pytest.raises(ConfigError, match=r"LOG_DIR is '.*', where log files cannot be written \(.+\)\."):
        open_log_files(str(tmp_path / place), lambda *_: None)

    assert len(os.listdir("/proc/self/fd")) == before


def test_application_is_refused_when_the_files_cannot_be_written(services: Services, tmp_path: Path) -> None:
    (tmp_path / "combined.log").mkdir()

    with pytest.raises(ConfigError, match="LOG_DIR"):
        create_app({**services.environ, "LOG_DIR": str(tmp_path)})


def test_log_of_a_command_goes_to_standard_error(logging_kept: None, capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", as_json=True)
    with logs_to_stderr():
        structlog.get_logger("chatapi.tests").info("within")
    structlog.get_logger("chatapi.tests").info("after")

    out, err = capfd.readouterr()
    assert (json.loads(out)["event"], json.loads(err)["event"]) == ("after", "within")


def test_nothing_fails_when_there_is_nobody_to_read(logging_kept: None) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        say(OutputHandler(stream), "lost")
    say(OutputHandler(stream), "closed")
    say(OutputHandler(None), "none")


PRINTING = """
import sys, threading, warnings
from chatapi.logs import configure_logging
configure_logging("info", as_json=True, secrets=["hunter-22"])
number = "+15551234567"
def fail(): raise LookupError(number)
warnings.simplefilter("always")
warnings.warn(f"beware of {number} and\\nhunter-22")
thread = threading.Thread(target=fail, name="lonely")
thread.start()
thread.join()
class Bad:
    def __del__(self): fail()
Bad()
fail()
"""


def test_what_python_would_print_is_logged() -> None:
    done = subprocess.run([sys.executable, "-c", PRINTING], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.stderr == ""
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(each["level"], each["event"].partition(":")[0]) for each in lines] == [
        ("warning", "<string>"),
        ("error", "uncaught_exception"),
        ("error", "unraisable_exception"),
        ("critical", "uncaught_exception"),
    ]
    assert [each["exception"][0]["type"] for each in lines[1:]] == ["LookupError"] * 3
    assert lines[1]["thread"] == "lonely"
    assert "5551234" not in done.stdout
    assert "hunter" not in done.stdout


WRITING = """
import sys, logging, structlog
from chatapi.logs import configure_logging
configure_logging("info", as_json=True, log_dir=sys.argv[1])
log = structlog.get_logger("chatapi.tests")
sys.stdin.readline()
for index in range(int(sys.argv[3])):
    words = {f"field_{name}": chr(97 + name) * 900 for name in range(index % 5)}
    log.error("written", writer=sys.argv[2], index=index, **words)
"""


@pytest.mark.slow
def test_no_line_of_several_processes_is_lost_or_torn_while_the_files_are_rotated(tmp_path: Path) -> None:
    writers, count = 4, 1500
    output = (tmp_path / "stdout").open("w")  # Not for appending: as a shell's `>` opens it.
    children = [
        subprocess.Popen(
            [sys.executable, "-c", WRITING, str(tmp_path), str(writer), str(count)],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=output,
        )
        for writer in range(writers)
    ]  # fmt: skip
    for child in children:
        assert child.stdin
        child.stdin.write(b"go\n")
        child.stdin.close()
    rotations = 0
    while any(child.poll() is None for child in children):
        for name in ("combined.log", "error.log"):
            if (tmp_path / name).exists():
                (tmp_path / name).rename(tmp_path / f"{name}.{rotations}")
        rotations += 1
        time.sleep(0.02)
    output.close()

    assert [child.returncode for child in children] == [0] * writers
    assert rotations > 3
    expected = sorted((str(writer), index) for writer in range(writers) for index in range(count))
    for name in ("combined.log", "error.log", "stdout"):
        lines = [json.loads(line) for path in tmp_path.glob(f"{name}*") for line in path.read_text().splitlines()]
        assert sorted((each["writer"], each["index"]) for each in lines) == expected, name


@pytest.mark.slow
def test_no_line_of_several_processes_is_torn_in_a_pipe_that_is_read_slowly(tmp_path: Path) -> None:
    writers, count = 4, 600
    reader, writer = os.pipe()
    children = [
        subprocess.Popen(
            [sys.executable, "-c", WRITING, str(tmp_path), str(index), str(count)],
            cwd=ROOT, stdin=subprocess.DEVNULL, stdout=writer,
        )
        for index in range(writers)
    ]  # fmt: skip
    os.close(writer)
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        data = b""
        while piece := pipe.read(10_000):
            data += piece
            time.sleep(0.001)
    for child in children:
        assert child.wait(timeout=30) == 0

    assert len([json.loads(line) for line in data.splitlines()]) == writers * count
