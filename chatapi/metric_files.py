"""The files in which processes keep their figures, and what becomes of them when a process ends.

What ended processes have counted is added up in one file of each kind: counters must not go down, and a web process
that is replaced after so many requests would leave files behind for ever. A process lives for as long as it holds the
lock on its own `alive_…` file: the kernel lets go of that however the process ends, and it is seen from other
containers as well, which know nothing of each other's process ids.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prometheus_client import values
from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector

from config import load_environment

FOLDER_NAME = "PROMETHEUS_MULTIPROC_DIR"
LOCK_SECONDS = 1.0
"""How long a scrape waits for another one that is tidying up; it then reads what there is."""

FILE_BYTES = 1 << 18
"""For each kind of metric and process; what is not written to takes no memory."""

_KINDS = ("counter", "histogram")
_HOST = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())
_FOOTER = struct.Struct("<I")


def find_folder() -> Path | None:
    """Return the folder that all processes share, made if need be; None if there is none.

    prometheus_client settles on files or memory when it is imported, by the process's environment, which does not have
    what is in `.env`. So it is told here, before the first metric is made.
    """
    name = load_environment().get(FOLDER_NAME, "").strip()
    if name and _is_made(Path(name)):
        return Path(name)
    # Set to nothing, the variable would have the library write into the current folder.
    os.environ.pop(FOLDER_NAME, None)
    values.ValueClass = values.MutexValue
    return None


def _is_made(folder: Path) -> bool:
    """Make the folder; False if it cannot be written to, which those who read the settings tell."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError):
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def use_folder(folder: Path) -> None:
    """Have metrics that are made from now on keep their figures in the folder."""
    os.environ[FOLDER_NAME] = str(folder)
    values.ValueClass = values.MultiProcessValue(ProcessName(folder))  # type: ignore[no-untyped-call]


class ProcessName:
    """What this process is called in the folder: something that no other has, nor ever had.

    Taken with the first figure, and anew after a fork.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._name: str | None = None
        self._lock: int | None = None
        os.register_at_fork(after_in_child=self._forget)

    def __call__(self) -> str:
        if self._name is None:
            name = f"{_HOST}-{os.getpid()}-{secrets.token_hex(4)}"
            self._lock = _hold(self._folder, name)
            for kind in (*_KINDS, "gauge_livesum"):
                _allocate(self._folder / f"{kind}_{name}.db")
            self._name = name
        return self._name

    def _forget(self) -> None:
        """Let go of the parent's name: its lock would be ours as well, and the parent seem to live as long as we."""
        if self._lock is not None:
            os.close(self._lock)
        self._name = self._lock = None


def _allocate(path: Path) -> None:
    """Make a file that is there on the disk: writing into a hole of a mapped one kills the process on a full disk."""
    with path.open("xb") as file:
        os.posix_fallocate(file.fileno(), 0, FILE_BYTES)


def _hold(folder: Path, name: str) -> int | None:
    """Show for as long as this process lives that it does; the file has its name only once it is locked.

    On a disk that knows no locks nothing is shown, and the figures stay in their own files.
    """
    draft = folder / f"draft_{name}"
    file = os.open(draft, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        draft.unlink(missing_ok=True)
        return None
    draft.rename(folder / f"alive_{name}")
    return file


class FolderCollector(MultiProcessCollector):
    """The figures of all processes that share the folder, also of those that have ended."""

    def __init__(self, folder: Path) -> None:
        super().__init__(None, str(folder))  # type: ignore[no-untyped-call]
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        """Return the metrics."""
        with _alone(self._folder) as is_alone:
            if is_alone:
                tidy(self._folder)
            # One that a process is just making has nothing in it yet, which the library cannot read.
            files = [str(path) for path in self._folder.glob("*.db") if _size(path)]
            merged: Iterable[Metric] = self.merge(files)  # type: ignore[no-untyped-call]
            return merged


def tidy(folder: Path) -> None:
    """Put the figures of ended processes together, and drop what those said of the present. Only for who is alone."""
    ended = [path.name.removeprefix("alive_") for path in folder.glob("alive_*") if _is_unlocked(path)]
    for kind in _KINDS:
        _merge(folder, kind, [folder / f"{kind}_{name}.db" for name in ended])
    for name in ended:
        for gauge in folder.glob(f"gauge_live*_{name}.db"):
            gauge.unlink(missing_ok=True)
        (folder / f"alive_{name}").unlink(missing_ok=True)


def _merge(folder: Path, kind: str, sources: list[Path]) -> None:
    """Add the sources to the file of ended processes, and delete them.

    That file names what was added with it, in one rename: who is killed before the sources are deleted leaves nothing
    that is counted twice, but for scrapes in between.
    """
    target = folder / f"{kind}_ended.db"
    added = _names_at_the_end_of(target)
    fresh = [path for path in sources if path.name not in added and _size(path)]
    if fresh:
        figures: dict[str, float] = {}
        for path in (target, *fresh):
            for key, value in _values_of(path):
                figures[key] = figures.get(key, 0.0) + value
        draft = folder / f"draft_{kind}_ended"
        _write(draft, figures, [path.name for path in sources])
        draft.replace(target)
    for path in sources:
        path.unlink(missing_ok=True)


def _write(path: Path, figures: dict[str, float], names: list[str]) -> None:
    path.unlink(missing_ok=True)
    file = MmapedDict(str(path))  # type: ignore[no-untyped-call]
    for key, value in figures.items():
        file.write_value(key, value, 0.0)  # type: ignore[no-untyped-call]
    file.close()  # type: ignore[no-untyped-call]
    # Behind what the library reads, which is as much as the file's first number says.
    words = json.dumps(names).encode()
    with path.open("ab") as tail:
        tail.write(words + _FOOTER.pack(len(words)))


def _names_at_the_end_of(path: Path) -> list[str]:
    with suppress(FileNotFoundError):
        data = path.read_bytes()
        (length,) = _FOOTER.unpack(data[-_FOOTER.size :])
        names: list[str] = json.loads(data[-_FOOTER.size - length : -_FOOTER.size])
        return names
    return []


def _values_of(path: Path) -> Iterator[tuple[str, float]]:
    if _size(path):
        for key, value, _, _ in MmapedDict.read_all_values_from_file(str(path)):  # type: ignore[no-untyped-call]
            yield key, value


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def _is_unlocked(path: Path) -> bool:
    with suppress(OSError), path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Be the only one to read or tidy up within the block, if that can be had in time (True)."""
    deadline = time.monotonic() + LOCK_SECONDS
    with (folder / "lock").open("ab") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    yield False
                    return
                time.sleep(0.01)
            except OSError:
                yield False
                return
            else:
                yield True
                return
