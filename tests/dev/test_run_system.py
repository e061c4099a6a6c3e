"""The whole system under the runner, and what its processes are."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from itertools import takewhile
from urllib.request import urlopen

import pytest

import config
from chatapi.dev.processes import wait_until
from chatapi.dev.system import system_children
from chatapi.replies.monitor import QUEUES
from tests.dev.run_support import Run, answers, call, leader


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


def test_web_is_not_given_an_empty_number_which_gunicorn_would_not_take() -> None:
    web = system_children({**NOWHERE, "WEB_CONCURRENCY": ""}, 20001)[0]

    assert web.env is not None
    assert web.env["WEB_CONCURRENCY"] == "2"


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
