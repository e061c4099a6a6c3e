"""The runner as a process of its own: with real servers, signals and clashes, and light stand-ins for the system."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import psycopg2
import pytest
import redis
from dotenv import dotenv_values
from stripe import StripeClient

import config
from chatapi.dev.embedded import free_port
from chatapi.dev.processes import wait_until
from chatapi.dev.system import system_children
from chatapi.replies.monitor import QUEUES
from config_billing import is_configured

# A system of the same shape that starts at once: a web process that answers, and others that only exist.
LIGHT_SYSTEM = """
import os, signal, sys, time
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})  # As __main__ does.
from pathlib import Path
from chatapi.dev.processes import Child
from chatapi.dev.run import Runner, main
from chatapi.dev import run

WEB = '''
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
'''
WORKER = '''
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("worker is up", flush=True)
time.sleep(600)
'''

def child(name, program, environ, log_dir):
    return Child(name, [sys.executable, "-c", program], env=dict(environ), log=log_dir / f"{name}.log")

def children(environ, port, log_dir):
    worker = os.environ.get("TEST_WORKER", WORKER)
    return [child("web", WEB, environ, log_dir), child("worker", worker, environ, log_dir)]

def migration(environ, log_dir):
    return child("migrations", os.environ.get("TEST_MIGRATION", "pass"), environ, log_dir)

run.STEADY_SECONDS = 0.5
run.Runner.__init__.__kwdefaults__.update(children=children, migration=migration)
sys.exit(main())
"""


class Run:
    """A runner that was started, and what it has said."""

    def __init__(self, data_dir: Path, environ: dict[str, str], program: Sequence[str]) -> None:
        self.data_dir = data_dir
        self.port = int(environ["PORT"])
        self.output = Path(environ["TEST_OUTPUT"], f"{self.port}.out")
        self.errors = Path(environ["TEST_OUTPUT"], f"{self.port}.err")
        with self.output.open("w") as output, self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, *program, "--data-dir", str(data_dir)],
                env=environ,
                cwd=config.ROOT,
                stdout=output,
                stderr=errors,
                start_new_session=True,
            )

    def wait_ready(self) -> None:
        ready = wait_until(lambda: "Ready: " in self.output.read_text() or self.process.poll() is not None, 60)
        assert ready
        assert self.process.poll() is None, self.errors.read_text()

    def services(self) -> dict[str, str | None]:
        return dotenv_values(self.data_dir / "services.env")

    def processes(self) -> set[int]:
        """Return the pids of everything that runs with our environment, or on our data as the servers do."""
        return {int(path.name) for path in Path("/proc").glob("[0-9]*") if self._is_ours(path)}

    def _is_ours(self, process: Path) -> bool:
        try:
            is_child = f"TEST_RUN={self.data_dir}\0".encode() in (process / "environ").read_bytes()
            return is_child or (process / "cwd").readlink().is_relative_to(self.data_dir)
        except OSError:  # It has ended.
            return False


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Start a runner. It uses embedded servers in a folder of this test unless `names` say otherwise."""
    started: list[Run] = []

    def start(data_dir: Path | None = None, program: Sequence[str] = ("-c", LIGHT_SYSTEM), **names: str) -> Run:
        data_dir = data_dir or tmp_path / "data"
        environ = {
            **os.environ,
            "APP_ENV": "development",
            "DATABASE_URL": "",
            "REDIS_URL": "",
            "GEMINI_API_ENDPOINT": "http://127.0.0.1:9",
            "STRIPE_API_BASE": "http://127.0.0.1:9",
            "STRIPE_SECRET_KEY": "",
            "FRONTEND_URL": "",
            "JWT_SECRET": "only these tests know it, 0123456789",
            "PORT": str(free_port()),
            "TEST_RUN": str(data_dir),
            "TEST_OUTPUT": str(tmp_path),
            **names,
        }
        run = Run(data_dir, environ, program)
        started.append(run)
        return run

    yield start
    for run in started:
        run.process.terminate()
        run.process.wait(60)
    for run in started if sys.platform == "linux" else []:
        for pid in run.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def hang_up_is(action: signal.Handlers) -> Iterator[None]:
    """Have what is started within the block begin with SIGHUP's default or ignoring it, as a shell or nohup has it.

    What ignores the signal hands that down: without this, whoever runs the suite under nohup decides.
    """
    before = signal.signal(signal.SIGHUP, action)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def test_run_says_one_line_when_everything_is_up(start: Callable[..., Run]) -> None:
    run = start()
    run.wait_ready()
    assert answers(run.port)
    lines = run.output.read_text().splitlines()
    assert lines[0] == (
        f"Ready: http://localhost:{run.port} (docs at /docs; PostgreSQL and Valkey embedded under {run.data_dir}/)"
    )
    assert wait_until(lambda: run.output.read_text().splitlines()[1:] == ["worker is up"], 5)
    assert run.errors.read_text() == ""


def test_run_tells_flask_commands_where_its_servers_are_while_they_are_up(start: Callable[..., Run]) -> None:
    run = start()
    run.wait_ready()
    services = run.services()
    assert (run.data_dir / "services.env").stat().st_mode & 0o777 == 0o600
    assert set(services) == {"DATABASE_URL", "REDIS_URL"}
    psycopg2.connect(services["DATABASE_URL"]).close()
    with redis.Redis.from_url(services["REDIS_URL"] or "") as client:
        assert client.ping()
    run.process.terminate()
    assert run.process.wait(30) == 0
    assert not (run.data_dir / "services.env").exists()


def stripe_of(run: Run) -> StripeClient:
    services = run.services()
    return StripeClient(services["STRIPE_SECRET_KEY"] or "", base_addresses={"api": services["STRIPE_API_BASE"] or ""})


def test_run_starts_a_stand_in_for_stripe_with_something_to_sell(start: Callable[..., Run]) -> None:
    run = start(STRIPE_API_BASE="")
    run.wait_ready()

    assert run.output.read_text().splitlines()[0].endswith("; Stripe is a stand-in)")
    services = run.services()
    price = stripe_of(run).v1.prices.retrieve(services["STRIPE_PRICE_ID"] or "")
    assert (price.active, price.unit_amount, price.currency) == (True, 900, "usd")
    assert services["FRONTEND_URL"] == f"{services['STRIPE_API_BASE']}/frontend"
    assert services["STAND_INS"] == "Stripe"
    settings = config.load_settings(
        {"APP_ENV": "development", **{name: value or "" for name, value in services.items()}}
    )
    assert is_configured(settings)
    (endpoint,) = stripe_of(run).v1.webhook_endpoints.list()
    assert endpoint.url == f"http://127.0.0.1:{run.port}/webhook/stripe"


def test_run_has_stripes_stand_in_sign_with_the_secret_that_the_service_knows(start: Callable[..., Run]) -> None:
    run = start(STRIPE_API_BASE="")
    run.wait_ready()

    state = json.loads((run.data_dir / "stripe.json").read_text())

    secrets = [private["secrets"] for private in state["private"].values() if "secrets" in private]
    assert secrets == [[run.services()["STRIPE_WEBHOOK_SECRET"]]]


def test_second_run_keeps_stripes_customers_and_its_one_endpoint(start: Callable[..., Run]) -> None:
    run = start(STRIPE_API_BASE="")
    run.wait_ready()
    customer = stripe_of(run).v1.customers.create({"email": "ada@example.com"})
    secret = run.services()["STRIPE_WEBHOOK_SECRET"]
    for name in ("stripe_webhook_secret", "stripe.json"):
        assert (run.data_dir / name).stat().st_mode & 0o777 == 0o600
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(30) == 0

    again = start(STRIPE_API_BASE="")
    again.wait_ready()

    assert stripe_of(again).v1.customers.retrieve(customer.id).email == "ada@example.com"
    assert again.services()["STRIPE_WEBHOOK_SECRET"] == secret
    (endpoint,) = stripe_of(again).v1.webhook_endpoints.list()
    assert endpoint.url == f"http://127.0.0.1:{again.port}/webhook/stripe"
    assert len(list(stripe_of(again).v1.prices.list())) == 1


def test_run_starts_no_stand_in_for_stripe_when_there_is_a_key(start: Callable[..., Run]) -> None:
    run = start(STRIPE_API_BASE="", STRIPE_SECRET_KEY="sk_test_somebody")
    run.wait_ready()

    assert "stand-in" not in run.output.read_text()
    assert set(run.services()) == {"DATABASE_URL", "REDIS_URL"}


@pytest.mark.parametrize("name", ["STRIPE_SECRET_KEY", "STRIPE_API_BASE"])
def test_flask_commands_with_a_stripe_of_their_own_take_nothing_of_the_stand_ins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(config, "DATA_DIR", tmp_path)
    monkeypatch.setenv("APP_ENV", "development")
    services = "REDIS_URL='redis://there'\nSTRIPE_SECRET_KEY='sk_test_stand_in'\nSTRIPE_API_BASE='http://here'\n"
    (tmp_path / "services.env").write_text(services)
    for each in ("REDIS_URL", "STRIPE_SECRET_KEY", "STRIPE_API_BASE"):
        monkeypatch.delenv(each, raising=False)
    both = config.load_environment()
    monkeypatch.setenv(name, "mine")

    found = config.load_environment()

    assert (both["STRIPE_SECRET_KEY"], both["STRIPE_API_BASE"]) == ("sk_test_stand_in", "http://here")
    assert {each for each in found if each.startswith("STRIPE_")} == {name}
    assert found["REDIS_URL"] == "redis://there"


def test_run_sends_people_to_their_own_front_end_when_there_is_one(start: Callable[..., Run]) -> None:
    run = start(STRIPE_API_BASE="", FRONTEND_URL="http://localhost:3000")
    run.wait_ready()

    assert run.services()["FRONTEND_URL"] == "http://localhost:3000"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("number", "times"), [(signal.SIGINT, 1), (signal.SIGTERM, 2), (signal.SIGHUP, 1)])
def test_run_ends_every_process_on_a_signal(start: Callable[..., Run], number: signal.Signals, times: int) -> None:
    with hang_up_is(signal.SIG_DFL):
        run = start()
    run.wait_ready()
    assert len(run.processes()) > 5
    for _ in range(times):
        os.killpg(run.process.pid, number)
        time.sleep(0.05)
    assert run.process.wait(30) == 0
    assert wait_until(lambda: not run.processes(), 5), run.processes()
    assert run.errors.read_text() == ""


def test_run_goes_on_when_its_terminal_is_closed_under_nohup(start: Callable[..., Run]) -> None:
    with hang_up_is(signal.SIG_IGN):
        run = start()
    run.wait_ready()
    os.killpg(run.process.pid, signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):  # It looks ten times a second whether it is to end.
        run.process.wait(0.5)
    assert answers(run.port)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.1, 0.3, 0.6, 1.0, 1.5, 2.0, 2.5])
def test_run_ends_every_process_when_stopped_while_it_starts(start: Callable[..., Run], seconds: float) -> None:
    run = start()
    time.sleep(seconds)
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(30) in (0, -signal.SIGINT)  # The latter before Python has read its first line of ours.
    assert wait_until(lambda: not run.processes(), 5), run.processes()
    if run.process.returncode == 0:
        assert run.errors.read_text() == ""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
def test_run_leaves_no_process_and_a_usable_folder_when_killed(start: Callable[..., Run]) -> None:
    run = start()
    run.wait_ready()
    run.process.kill()
    run.process.wait(5)
    # All but what the worker of this test has started itself, and does not end.
    assert wait_until(lambda: len(run.processes()) == 1, 30)
    again = start()
    again.wait_ready()
    assert again.errors.read_text() == ""


def test_second_run_keeps_the_data(start: Callable[..., Run]) -> None:
    run = start()
    run.wait_ready()
    connection = psycopg2.connect(run.services()["DATABASE_URL"])
    with connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE kept (n int)")
    connection.close()
    with redis.Redis.from_url(run.services()["REDIS_URL"] or "") as client:
        client.set("kept", "1")
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(30) == 0
    again = start()
    again.wait_ready()
    connection = psycopg2.connect(again.services()["DATABASE_URL"])
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM kept")
        assert cursor.fetchone() == (0,)
    connection.close()
    with redis.Redis.from_url(again.services()["REDIS_URL"] or "", decode_responses=True) as client:
        assert client.get("kept") == "1"


def test_run_restarts_a_killed_database_and_says_so(start: Callable[..., Run]) -> None:
    run = start()
    run.wait_ready()
    pid = int((run.data_dir / "postgres" / "data" / "postmaster.pid").read_text().split()[0])
    os.kill(pid, signal.SIGKILL)
    line = "PostgreSQL ended (killed by SIGKILL); starting it again in 0.5 s.\n"
    assert wait_until(lambda: run.errors.read_text() == line, 10)

    def is_up() -> bool:
        try:
            psycopg2.connect(run.services()["DATABASE_URL"]).close()
        except psycopg2.OperationalError:
            return False
        return True

    assert wait_until(is_up, 20)
    assert run.process.poll() is None


def test_run_says_in_a_sentence_that_the_port_is_taken(start: Callable[..., Run]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", free_port()))
        other.listen()
        port = other.getsockname()[1]
        run = start(PORT=str(port))
        assert run.process.wait(30) == 1
    assert run.errors.read_text() == (
        f"Port {port} of 127.0.0.1 cannot be used (Address already in use); "
        f"end what uses it, or take another: `PORT={port + 1} make run`.\n"
    )
    assert run.output.read_text() == ""


def test_run_says_in_a_sentence_that_its_folder_is_in_use(start: Callable[..., Run]) -> None:
    first = start()
    first.wait_ready()
    second = start()
    assert second.process.wait(30) == 1
    assert second.errors.read_text() == (
        f"{first.data_dir} is in use by another `make run` (process {first.process.pid}); stop that one first.\n"
    )
    assert answers(first.port)


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("raise ValueError('no such thing')", "exit status 1: ValueError: no such thing"),
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL"),
    ],
)
def test_run_gives_up_in_a_sentence_when_a_process_keeps_dying(
    start: Callable[..., Run], program: str, reason: str
) -> None:
    run = start(TEST_WORKER=program)
    assert run.process.wait(60) == 1
    log = run.data_dir / "logs" / "worker.log"
    assert run.errors.read_text() == f"worker died 3 times at the start: {reason} ({log} has the rest).\n"
    assert wait_until(lambda: not run.processes(), 5)


def test_run_says_in_a_sentence_that_migrations_failed(start: Callable[..., Run]) -> None:
    run = start(TEST_MIGRATION="raise ValueError('bad revision')")
    assert run.process.wait(60) == 1
    log = run.data_dir / "logs" / "migrations.log"
    sentence = "The database cannot be migrated: exit status 1: ValueError: bad revision"
    assert run.errors.read_text() == f"{sentence} ({log} has the rest).\n"
    assert wait_until(lambda: not run.processes(), 5)


def test_run_says_in_a_sentence_that_a_configured_database_is_away(start: Callable[..., Run]) -> None:
    run = start(DATABASE_URL=f"postgresql://somebody:secret@127.0.0.1:{free_port()}/chat")
    assert run.process.wait(30) == 1
    said = run.errors.read_text()
    assert said.startswith("The PostgreSQL of DATABASE_URL cannot be reached: ")
    assert said.count("\n") == 1
    assert "secret" not in said


def test_production_run_starts_no_server_and_names_what_is_missing(start: Callable[..., Run]) -> None:
    run = start(APP_ENV="production", GEMINI_API_ENDPOINT="")
    assert run.process.wait(30) == 1
    said = run.errors.read_text()
    assert said.startswith("Cannot start:\n")
    for name in ("DATABASE_URL", "REDIS_URL", "GEMINI_API_KEY", "OTP_DELIVERY"):
        assert f"- {name} is not set" in said
    assert "Traceback" not in said
    assert not (run.data_dir / "postgres").exists()


def test_run_says_in_a_sentence_that_its_folder_cannot_be_used(start: Callable[..., Run], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    run = start(data_dir=tmp_path / "file" / "data")
    assert run.process.wait(30) == 1
    assert run.errors.read_text().count("\n") == 1
    assert "Traceback" not in run.errors.read_text()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_real_system_comes_back_when_its_processes_are_killed_and_ends_in_order(start: Callable[..., Run]) -> None:
    run = start(program=("-m", "chatapi.dev"), GEMINI_API_ENDPOINT="", STRIPE_API_BASE="")
    run.wait_ready()
    assert run.output.read_text().splitlines()[0].endswith("; Gemini and Stripe are stand-ins)")
    commands = {
        "web": b"gunicorn\0wsgi:app",
        "worker": b"--queues\0replies",
        "chores": b"--queues\0chores",
        "billing": b"--queues\0billing",
        "sweeper": b"flask\0sweeper",
        "Gemini's stand-in": b"chatapi.dev.gemini_standin",
        "Stripe's stand-in": b"chatapi.dev.stripe.standin",
        "Valkey": b"valkey-server",
        "PostgreSQL": b"bin/postgres",
    }
    leaders = {name: leader(run, command) for name, command in commands.items()}
    for pid in leaders.values():
        os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: len(run.errors.read_text().splitlines()) >= len(commands), 30)
    for name in commands:
        assert f"{name} ended (killed by SIGKILL); starting it again in 0.5 s.\n" in run.errors.read_text()
    assert wait_until(lambda: answers(run.port), 30)
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(60) == 0
    assert wait_until(lambda: not run.processes(), 5), run.processes()


@pytest.mark.slow
def test_real_system_takes_a_payment_on_the_stand_ins_page_and_names_its_stand_ins(start: Callable[..., Run]) -> None:
    run = start(program=("-m", "chatapi.dev"), GEMINI_API_ENDPOINT="", STRIPE_API_BASE="")
    run.wait_ready()
    number = f"+1{time.time_ns() % 10**12:012d}"
    otp = call(run, "/auth/send-otp", {"mobile_number": number})["otp"]
    token = call(run, "/auth/verify-otp", {"mobile_number": number, "otp": otp})["token"]

    page = call(run, "/subscribe/pro", {}, token)["checkout_url"]
    with urlopen(page, b"action=pay", timeout=10) as answer:  # noqa: S310 - of our own stand-in
        assert "Payment page closed" in answer.read().decode()

    def has_pro() -> bool:
        return bool(call(run, "/user/me", None, token)["user"]["subscription_tier"] == "pro")

    assert wait_until(has_pro, 15)
    assert call(run, "/health/ready")["notes"] == ["Gemini is a stand-in", "Stripe is a stand-in"]


def call(run: Run, path: str, body: Any = None, token: str | None = None) -> Any:
    """Call the system over HTTP: with a body by POST."""
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    data = None if body is None else json.dumps(body).encode()
    request = Request(f"http://127.0.0.1:{run.port}{path}", data, headers)
    with urlopen(request, timeout=10) as answer:  # noqa: S310
        return json.load(answer)


def leader(run: Run, command: bytes) -> int:
    """Return the pid of the one process of `run` that has `command` in its command line and leads its group."""
    (pid,) = (
        pid
        for pid in run.processes()
        if os.getpgid(pid) == pid and command in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    return pid


NOWHERE = {
    "APP_ENV": "development",
    "DATABASE_URL": "postgresql://postgres@/postgres?host=/nowhere",
    "REDIS_URL": "redis://127.0.0.1:1/0",
    "JWT_SECRET": "only these tests know it, 0123456789",
}


def test_system_children_listen_where_they_are_told_and_use_the_given_servers() -> None:
    environ = {**NOWHERE, "WORKER_THREADS": "7"}
    children = {child.name: child for child in system_children(environ, 20001)}
    assert list(children) == ["web", "worker", "chores", "billing", "sweeper"]
    for child in children.values():
        assert child.env is not None
        assert child.env["DATABASE_URL"] == environ["DATABASE_URL"]
        assert child.env["PORT"] == "20001"
    worker = children["worker"]
    assert worker.env is not None
    assert worker.env["dramatiq_queue_prefetch"] == "7"
    assert worker.argv[worker.argv.index("--threads") + 1] == "7"


def test_runner_and_procfile_start_the_same_processes_and_each_queue_has_one() -> None:
    procfile = dict(line.split(": ", 1) for line in (config.ROOT / "Procfile").read_text().splitlines())
    started = {child.name: child.argv for child in system_children(NOWHERE, 20001)}

    assert list(procfile) == list(started)
    assert {name: queues_of(words.split()) for name, words in procfile.items()} == {
        name: queues_of(words) for name, words in started.items()
    }
    assert sorted(queue for words in started.values() for queue in queues_of(words)) == sorted(QUEUES)


def queues_of(words: Sequence[str]) -> list[str]:
    """Return the queues that a command line names."""
    if "--queues" not in words:
        return []
    return list(takewhile(lambda word: not word.startswith("-"), words[list(words).index("--queues") + 1 :]))
