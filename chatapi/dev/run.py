"""The whole system with one command: its processes and, where none is configured, its servers and stand-ins."""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psycopg2
from dotenv import dotenv_values

import config
from chatapi.dev.embedded import EmbeddedPostgres, EmbeddedValkey, free_port
from chatapi.dev.logs import Logs, last_line, write
from chatapi.dev.processes import Child, StartError, Supervisor, describe_status, wait_until
from chatapi.dev.standins import StandIn, needed_stand_ins
from chatapi.dev.system import health, migration, system_children

MOST_EARLY_DEATHS = 3
"""A child that dies so often before the system is ready will not come up by itself."""

READY_SECONDS = 90.0
"""How long the system may take from the start of its processes until it is ready."""

STEADY_SECONDS = 2.0
"""For how long all processes must have run before the system counts as ready: a fault at import shows by then."""


class StopWantedError(Exception):
    """Somebody asked the runner to end."""


class Runner:
    """One run of the system on `data_dir`.

    `children` and `migration` make what is run, so that a test can run something lighter.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        data_dir: Path = config.DATA_DIR,
        *,
        children: Callable[[Mapping[str, str], int | None, Path | None], list[Child]] = system_children,
        migration: Callable[[Mapping[str, str], Path | None], Child] = migration,
    ) -> None:
        self.environ = dict(environ)
        self.data_dir = data_dir
        self._children = children
        self._migration = migration
        self._logs = Logs(data_dir / "logs")
        self._services_file = data_dir / "services.env"
        self._supervisor = Supervisor(self._say_loudly)
        self._held_back: list[str] | None = []  # None once the system is ready.
        self._is_stop_wanted = False
        self._parent = os.getppid() if "MAKELEVEL" in os.environ else None
        self._postgres: EmbeddedPostgres | None = None
        self._valkey: EmbeddedValkey | None = None
        self._stand_ins: list[StandIn] = []

    def run(self) -> int:
        """Start everything, keep it running until a signal comes, end everything. Returns the exit code.

        Raises `StartError` or `config.ConfigError`, with nothing left running, if it cannot be started.
        """
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores it.
                signal.signal(number, self._note_stop)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})  # Blocked since the first line.
        with self._data_dir_lock():
            try:
                self._start()
                while True:
                    self._tick()
                    time.sleep(0.1)
            except StopWantedError:
                return 0
            finally:
                self._supervisor.stop(idle=self._show_logs)
                self._show_logs()
                self._services_file.unlink(missing_ok=True)

    def _start(self) -> None:
        self._services_file.unlink(missing_ok=True)
        self._logs.clear()
        services = self._plan_services()
        self.environ.update(services)
        settings = config.load_settings(self.environ)
        host, port = settings["HOST"], settings["PORT"]
        _check_port(host, port)
        if not self._postgres:
            _check_database(self.environ["DATABASE_URL"])
        self._prepare_metrics()
        address = _local_address(host)
        self._start_services(f"http://{f'[{address}]' if ':' in address else address}:{port}")
        self._write_services_file(services)
        self._migrate()
        self._start_system(address, port)
        self._say_ready(host, port)

    def _plan_services(self) -> dict[str, str]:
        """Decide what must be started, and return the addresses it will have."""
        services: dict[str, str] = {}
        if self.environ.get("APP_ENV") == "production":
            return services
        if not self.environ.get("DATABASE_URL"):
            self._postgres = EmbeddedPostgres(self.data_dir / "postgres")
            services["DATABASE_URL"] = self._postgres.url
        if not self.environ.get("REDIS_URL"):
            self._valkey = EmbeddedValkey(self.data_dir / "valkey", free_port())
            services["REDIS_URL"] = self._valkey.url
        self._stand_ins = needed_stand_ins(self.environ, self.data_dir)
        for stand_in in self._stand_ins:
            services |= stand_in.settings()
        if self._stand_ins:  # So that the service itself can say so.
            services["STAND_INS"] = ",".join(stand_in.name for stand_in in self._stand_ins)
        return services

    def _prepare_metrics(self) -> None:
        """Give all processes of this run one folder for their figures, and begin at zero."""
        folder = self.data_dir / "metrics"
        if self.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", str(folder)) == str(folder):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()

    def _start_services(self, web_url: str) -> None:
        """Start PostgreSQL, Valkey and the stand-ins, in this order for the sake of the order of their end."""
        started: list[tuple[Child, Callable[[], bool]]] = []
        if self._postgres:
            self._postgres.prepare()
            started.append((self._postgres.child(self._logs.quiet("postgres")), self._postgres.is_ready))
        if self._valkey:
            self._valkey.prepare()
            started.append((self._valkey.child(self._logs.quiet("valkey")), self._valkey.is_ready))
        started += [(each.child(self.environ, self._logs, web_url), each.is_ready) for each in self._stand_ins]
        for child, _ in started:
            self._tick()
            self._supervisor.start(child)
        for child, is_ready in started:
            self._await(child.name, is_ready)

    def _migrate(self) -> None:
        child = self._migration(self.environ, self._logs.folder)
        child.start()
        try:
            while (status := child.poll()) is None:
                self._tick()
                time.sleep(0.05)
        finally:
            child.stop()
        if status != 0:
            raise StartError(f"The database cannot be migrated: {self._last_words(child, status)}")

    def _start_system(self, address: str, port: int) -> None:
        children = self._children(self.environ, port, self._logs.folder)
        for child in children:
            if child.log:
                self._logs.shown(child.log.stem)
        self._supervisor.start(*children)

        def is_ready() -> bool:
            return self._supervisor.steady_seconds() > STEADY_SECONDS and health(port, address) is not None

        self._await("The system", is_ready)

    def _await(self, name: str, is_ready: Callable[[], bool]) -> None:
        """Wait for `is_ready`, and give up when a child keeps dying meanwhile."""

        def idle() -> None:
            self._tick()
            if failing := self._supervisor.failing(MOST_EARLY_DEATHS):
                words = self._last_words(*failing)
                raise StartError(f"{failing[0].name} died {MOST_EARLY_DEATHS} times at the start: {words}")

        if not wait_until(is_ready, READY_SECONDS, idle):
            raise StartError(
                f"{name} was not ready within {READY_SECONDS:g} s; see what is said in {self._logs.folder}."
            )

    def _tick(self) -> None:
        """Do what is to be done a few times a second. Raises `StopWantedError`."""
        if self._parent is not None and os.getppid() != self._parent:
            self._is_stop_wanted = True  # Make was killed, and nobody else would end us.
        if self._is_stop_wanted:
            raise StopWantedError
        self._supervisor.watch()
        self._show_logs()

    def _show_logs(self) -> None:
        if self._held_back is None:
            self._logs.forward()

    def _note_stop(self, *_: object) -> None:
        self._is_stop_wanted = True

    def _say_loudly(self, line: str) -> None:
        """Say on standard error that a child has died; before the system is ready, when it has become so."""
        if self._held_back is not None:
            self._held_back.append(line)
        else:
            write(sys.stderr, f"{line}\n")

    def _say_ready(self, host: str, port: int) -> None:
        embedded = [name for name, part in (("PostgreSQL", self._postgres), ("Valkey", self._valkey)) if part]
        notes = ["docs at /docs"]
        if embedded:
            notes.append(f"{' and '.join(embedded)} embedded under {_short(self.data_dir)}/")
        if names := " and ".join(stand_in.name for stand_in in self._stand_ins):
            notes.append(f"{names} {'are stand-ins' if len(self._stand_ins) > 1 else 'is a stand-in'}")
        name = "localhost" if host in {"127.0.0.1", "0.0.0.0", "::", "::1"} else host  # noqa: S104 - compared, not bound
        write(sys.stdout, f"Ready: http://{name}:{port} ({'; '.join(notes)})\n")
        held_back, self._held_back = self._held_back or [], None
        for line in held_back:
            self._say_loudly(line)

    def _last_words(self, child: Child, status: int | None) -> str:
        words = [describe_status(status)] if status is not None else []
        if child.log and (line := last_line(child.log)):
            words.append(line)
        rest = f" ({_short(child.log)} has the rest)" if child.log else ""
        return ": ".join(words).rstrip(".") + rest + "."

    def _write_services_file(self, services: Mapping[str, str]) -> None:
        """Leave the addresses of what was started for `flask` commands in other terminals."""
        if services:
            services = {**services, "PORT": self.environ.get("PORT") or "5000"}
            descriptor = os.open(self._services_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(descriptor, "w") as file:
                file.writelines(f"{name}='{value}'\n" for name, value in services.items())

    @contextmanager
    def _data_dir_lock(self) -> Iterator[None]:
        """Keep a second runner away from our data. The lock ends with this process, however that ends."""
        try:
            self._logs.folder.mkdir(parents=True, exist_ok=True)
            file = (self.data_dir / "run.lock").open("a+")
        except PermissionError:
            raise StartError(f"{self.data_dir} cannot be written by this user; give it to them or remove it.") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                pid = file.read().strip() or "unknown"
                raise StartError(
                    f"{self.data_dir} is in use by another `make run` (process {pid}); stop that one first."
                ) from None
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield


def _check_port(host: str, port: int) -> None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror:
        raise StartError(f"HOST={host} is no address of this machine; leave it away or name one.") from None
    except OSError as error:
        raise StartError(
            f"Port {port} of {host} cannot be used ({error.strerror}); "
            f"end what uses it, or take another: `PORT={port + 1 if 1024 <= port < 65535 else 5001} make run`."
        ) from None


def _local_address(host: str) -> str:
    """Return where this machine reaches what listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound


def _check_database(url: str) -> None:
    """See to it that the configured PostgreSQL is there, which otherwise a long traceback would tell."""
    plain_url = config.sqlalchemy_url(url).replace("postgresql+psycopg2://", "postgresql://", 1)
    try:
        psycopg2.connect(plain_url, connect_timeout=5).close()
    except psycopg2.OperationalError as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise StartError(f"The PostgreSQL of DATABASE_URL cannot be reached: {reason}.") from None
    except psycopg2.ProgrammingError:
        pass  # A parameter that SQLAlchemy knows and libpq does not.


def _short(path: Path) -> Path:
    return path.relative_to(config.ROOT) if path.is_relative_to(config.ROOT) else path


def read_environment() -> dict[str, str]:
    """Return the environment, completed from `.env`; not from what an earlier run may have left in `.data/`."""
    environ = {name: value for name, value in dotenv_values(config.ROOT / ".env").items() if value is not None}
    environ.update(os.environ)
    environ["APP_ENV"] = environ.get("APP_ENV", "").strip() or "development"
    return environ


def main(argv: Sequence[str] | None = None) -> int:
    """Run the system until a signal ends it. Returns the exit code: 0 after a wanted stop, 1 with a sentence else."""
    parser = argparse.ArgumentParser(prog="python -m chatapi.dev", description="Run the whole system.")
    parser.add_argument("--data-dir", type=Path, default=config.DATA_DIR, help="where embedded servers keep their data")
    arguments = parser.parse_args(argv)
    try:
        return Runner(read_environment(), arguments.data_dir.resolve()).run()
    except (StartError, config.ConfigError) as error:
        write(sys.stderr, f"{error}\n")
    except OSError as error:
        write(sys.stderr, f"{error.filename or 'The system'} cannot be used: {error.strerror or error}.\n")
    return 1
