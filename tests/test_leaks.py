"""The search for leaks: it finds what is planted, and neither what is sanctioned nor what only looks like a secret."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from flask import Flask, Response

from config import ROOT
from tests.leaks import CODE, MOST_REPORTED, NUMBER, TOKEN, LeakSearch

MINE = "+998877665544332"
BARE = MINE.removeprefix("+")
OTP = "042917"
SIGNATURE = "s3cr3t-signature_of-the-token"
JWT = f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.{SIGNATURE}"
REFRESH = "an-opaque_refresh-token-of-43-characters--x"
SENT = {"mobile_number": MINE, "purpose": "login"}
HEADERS = [("Content-Type", "application/json"), ("Content-Length", "42917"), ("X-RateLimit-Remaining", OTP)]


@pytest.fixture
def search() -> LeakSearch:
    """A search of one's own that knows a code, two tokens and a number, told where they may be."""
    search = LeakSearch()
    answer(search, "/auth/send-otp", {"mobile_number": MINE, "otp": OTP})
    answer(search, "/auth/verify-otp", {"token": JWT, "refresh_token": REFRESH, "user": {"mobile_number": BARE}})
    assert search.findings() == []
    return search


def answer(search: LeakSearch, path: str, body: Any, status: int = 200, **headers: str) -> None:
    search.note_answer("POST", path, SENT, status, [*HEADERS, *headers.items()], json.dumps(body).encode())


def kinds(search: LeakSearch) -> list[str]:
    """Return the kinds of what was found, without telling any of it."""
    found = search.findings()
    assert not any(secret in line for line in found for secret in (BARE, OTP, SIGNATURE, REFRESH))
    return sorted(kind for line in found for kind in (CODE, TOKEN, NUMBER) if line.startswith(f"a {kind} in "))


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (f"2026-11-22T15:17:22.490239Z [info] otp_sent [chatapi] code={OTP}", CODE),
        (f'{{"event": "failed: \\n{OTP}"}}', CODE),
        (f"event=sent text='{OTP} is your code'", CODE),
        (f"GET /verify?otp=%22{OTP}%22", CODE),
        (f"\x1b[36mcode\x1b[0m=\x1b[35m{OTP}\x1b[0m", CODE),
        (f"[{OTP}]", CODE),
        (f"Authorization: Bearer {JWT}", TOKEN),
        (f"bad signature {SIGNATURE}", TOKEN),
        (f"token=refresh_{REFRESH}", TOKEN),
        (f"token={REFRESH[:20]}...", TOKEN),
        (f"KeyError: {MINE!r}", NUMBER),
        (f"POST /send?to=%2B{BARE}", NUMBER),
        (f"tel{BARE}x", NUMBER),
    ],
)
def test_secret_in_a_log_is_found(search: LeakSearch, line: str, kind: str) -> None:
    search.note_log("web.log", ["nothing", line])

    assert kinds(search) == [kind]
    assert search.findings()[0].startswith(f"a {kind} in web.log, line 2: ")


def test_secret_is_found_when_it_was_logged_before_it_was_known() -> None:
    search = LeakSearch()
    search.note_log("web.log", [f"code={OTP}"])
    assert search.findings() == []

    answer(search, "/auth/send-otp", {"otp": OTP})

    assert kinds(search) == [CODE]


@pytest.mark.parametrize(
    ("path", "status", "body", "kind"),
    [
        ("/auth/send-otp", 200, {"message": f"Your code is {OTP}"}, CODE),
        ("/auth/send-otp", 200, {"details": {"otp": OTP}}, CODE),
        ("/auth/send-otp", 400, {"otp": OTP}, CODE),
        ("/auth/verify-otp", 200, {"otp": OTP}, CODE),
        ("/auth/verify-otp", 200, [{"otp": OTP}], CODE),
        ("/user/me", 200, {"user": {"mobile_number": MINE, "token": JWT}}, TOKEN),
        ("/auth/refresh", 200, {"session": {"refresh_token": REFRESH}}, TOKEN),
        ("/auth/signup", 409, {"message": f"{BARE} is already registered"}, NUMBER),
        ("/auth/signup", 422, {"mobile_number": MINE}, NUMBER),
        ("/auth/verify-otp", 400, {"errors": {MINE: ["Unknown field."]}}, NUMBER),
        ("/chatroom", 200, {"chatrooms": [{"mobile_number": BARE}]}, NUMBER),
    ],
)
def test_secret_in_an_answer_is_found_when_it_is_not_in_its_member(
    search: LeakSearch, path: str, status: int, body: Any, kind: str
) -> None:
    answer(search, f"{path}?x=1", body, status)

    assert kinds(search) == [kind]
    assert f"the answer {status} to POST {path}: " in search.findings()[0]


@pytest.mark.parametrize(("value", "kind"), [(f'"{OTP}"', CODE), (f"Bearer {JWT}", TOKEN), (f"/user/{MINE}", NUMBER)])
def test_secret_in_a_header_is_found(search: LeakSearch, value: str, kind: str) -> None:
    answer(search, "/auth/send-otp", {"otp": OTP}, ETag=value)

    assert kinds(search) == [kind]


def test_secret_in_an_answer_that_is_no_json_is_found(search: LeakSearch) -> None:
    search.note_answer("GET", "/docs", None, 200, [], f"<p>{MINE}</p>".encode() + b"\xff")

    assert kinds(search) == [NUMBER]


def test_secrets_in_their_members_are_not_found(search: LeakSearch) -> None:
    user = {"user": {"mobile_number": MINE}}
    answer(search, "/auth/signup", {**user, "signup_token": REFRESH}, 201)
    answer(search, "/auth/forgot-password", {"mobile_number": MINE, "otp": OTP})
    answer(search, "/auth/login", {**user, "token": JWT, "refresh_token": REFRESH})
    answer(search, "/auth/refresh", {"token": JWT, "refresh_token": REFRESH})
    answer(search, "/user/me", user)
    answer(search, "/user/me/export", {**user, "chatrooms": []})

    assert search.findings() == []


@pytest.mark.parametrize(
    "line",
    [
        f"2026-11-22T15:17:22.{OTP}Z [info] request [chatapi] milliseconds=1.{OTP} status=200",
        f"[2026-11-22 15:19:29 +0000] [{OTP}] [INFO] Starting gunicorn 27.0.1",
        f"[2026-11-22 15:19:29 +0000] [{OTP}] [INFO] Listening at: http://127.0.0.1:31368 ({OTP})",
        f"[2026-11-22 15:19:29 +0000] [{OTP}] [INFO] Booting worker with pid: {OTP}",
        f"[2026-11-22 15:19:31,149] [PID {OTP}] [MainThread] [dramatiq.MainProcess] [INFO] booting up.",
        f"2026-11-22 15:20:01.430 UTC [{OTP}] LOG:  background worker (PID {OTP}) exited with exit code 1",
        f"2026-11-22 15:20:01.430 UTC [1] LOG:  process {OTP} still waiting, distance={OTP} kB",
        f"{OTP}:M 22 Nov 2026 15:19:28.466 * Valkey version=9.1.2, pid={OTP}, just started",
        f"{OTP}:signal-handler (1795360805) Received SIGTERM scheduling shutdown...",
        f"request_id={OTP}ab-55a0-77ae-bd63-d9a3c{OTP}c",
        f"request_id=01a203d5-55a0-77ae-bd63-{BARE[:12]}",
        f"1{OTP} {OTP}1 a{OTP} {OTP}Z 1{BARE} {BARE}1",
        f"other={REFRESH[1:]} {JWT[:36]}",
    ],
)
def test_what_only_looks_like_a_secret_is_not_found(search: LeakSearch, line: str) -> None:
    search.note_log("a.log", [line])

    assert search.findings() == []


def test_part_of_an_id_is_not_found_when_it_equals_a_number() -> None:
    search = LeakSearch()
    search.note_answer("POST", "/auth/send-otp", {"mobile_number": "998877665544"}, 200, [], b"{}")

    search.note_log("a.log", ["request_id=01a203d5-55a0-77ae-bd63-998877665544"])
    assert search.findings() == []
    search.note_log("a.log", ["to=998877665544"])
    assert kinds(search) == [NUMBER]


def test_published_examples_are_no_secrets() -> None:
    search = LeakSearch()
    search.note_answer("POST", "/auth/send-otp", {"mobile_number": "+15551234567"}, 200, [], b'{"otp": "123456"}')

    search.note_answer("GET", "/openapi.json", None, 200, [], b'{"examples": ["123456", "+15551234567"]}')

    assert search.findings() == []


@pytest.mark.parametrize(("status", "expected"), [(200, [CODE]), (400, [])])
def test_code_that_was_delivered_elsewhere_is_known_once_it_was_accepted(status: int, expected: list[str]) -> None:
    search = LeakSearch()
    search.note_log("chores.log", [f"text='{OTP} is your code'"])

    search.note_answer("POST", "/auth/verify-otp", {"mobile_number": MINE, "otp": OTP}, status, [], b"{}")

    assert kinds(search) == expected


def test_code_is_known_when_it_was_noted() -> None:
    search = LeakSearch()
    search.note_log("chores.log", [f"text='{OTP} is your code'"])

    search.note_code(OTP)

    assert kinds(search) == [CODE]


def test_logs_of_processes_are_searched(search: LeakSearch, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "postgres.log").write_text(f'ERROR:  invalid input syntax: "{MINE}"\n')
    (tmp_path / "logs" / "web.log").write_bytes(b"\xff\n" + f"token={JWT}\n".encode())

    search.note_log_files(tmp_path)

    assert [line.split(":")[0] for line in search.findings()] == [
        "a token in web.log, line 2",
        "a mobile number in postgres.log, line 1",
    ]


def fail() -> None:
    raise LookupError(f"no route for {MINE}")


def log_by_structlog() -> None:
    structlog.get_logger("tests.leaks").info("sent", to=MINE)


def log_by_a_library() -> None:
    logging.getLogger("urllib3").warning("Retrying %s", MINE)


def log_a_traceback() -> None:
    try:
        fail()
    except LookupError:
        logging.getLogger("tests.leaks").exception("failed")


@pytest.mark.parametrize("log", [log_by_structlog, log_by_a_library, log_a_traceback])
def test_logs_of_this_process_are_searched_in_both_forms(app: Flask, search: LeakSearch, log: Any) -> None:
    handlers = logging.getLogger().handlers
    with search.capture_logs():
        assert logging.getLogger().handlers is handlers
        log()
    log()

    (found,) = search.findings()
    assert found.startswith(f"a {NUMBER} in the log of the applications in this process, line 1: ")
    assert '"' in found, "The JSON comes first, in one line with its traceback."


def test_logs_are_searched_when_the_handlers_were_replaced_meanwhile(app: Flask, search: LeakSearch) -> None:
    root = logging.getLogger()
    handlers = root.handlers
    with search.capture_logs():
        root.handlers = []
        log_by_structlog()
    root.handlers = handlers

    assert kinds(search) == [NUMBER]


@pytest.fixture
def leaky() -> Flask:
    """An application that leaks in each of its answers."""
    app = Flask(__name__)

    @app.post("/auth/send-otp")
    def send_otp() -> dict[str, str]:
        return {"otp": OTP, "message": f"{OTP} was sent"}

    @app.get("/stream")
    def stream() -> Response:
        def parts() -> Iterator[str]:
            yield MINE[:7]
            yield MINE[7:]

        return Response(parts(), mimetype="text/plain")

    @app.delete("/empty")
    def empty() -> Response:
        return Response(status=204, headers={"X-Number": MINE})

    return app


def test_answers_of_an_application_are_searched_though_nobody_reads_them(leaky: Flask, search: LeakSearch) -> None:
    search.watch(leaky)

    assert leaky.test_client().post("/auth/send-otp", json=SENT).status_code == 200
    assert leaky.test_client().delete("/empty").status_code == 204

    assert kinds(search) == [CODE, NUMBER]


def test_streamed_answer_is_searched_when_it_was_read(leaky: Flask, search: LeakSearch) -> None:
    search.watch(leaky)
    with leaky.test_client().get("/stream") as answer:
        assert search.findings() == []
        assert answer.get_data(as_text=True) == MINE

    assert kinds(search) == [NUMBER]


def test_number_is_learned_from_a_request(leaky: Flask) -> None:
    search = LeakSearch()
    search.watch(leaky)
    leaky.test_client().post("/auth/send-otp", json={"mobile_number": MINE})

    search.note_log("web.log", [f"to={BARE}"])

    assert NUMBER in kinds(search)


def test_report_is_cut_when_it_is_long(search: LeakSearch) -> None:
    search.fail_on_findings()
    for number in range(MOST_REPORTED + 5):
        search.note_code(f"{number:06d}")
    search.note_log("web.log", [f"code={number:06d}" for number in range(MOST_REPORTED + 5)])

    with pytest.raises(pytest.fail.Exception, match=r"\ALeaked: a code in web\.log, line 1: code=<code>\n") as caught:
        search.fail_on_findings()

    lines = str(caught.value).splitlines()
    assert (len(lines), lines[-1]) == (MOST_REPORTED + 1, "and 5 more")


LEAKING_TEST = """
import structlog

def test_something(account):
    structlog.get_logger("chatapi").info("signed_in", number=account.mobile_number)
"""


def test_run_is_red_when_a_number_is_logged(tmp_path: Path) -> None:
    test = tmp_path / "test_leaking.py"
    test.write_text(LEAKING_TEST)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-p", "no:cacheprovider"]

    run = subprocess.run(
        [*command, f"--rootdir={ROOT}", f"--config-file={ROOT / 'pyproject.toml'}", str(test)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert run.returncode == 1, run.stdout + run.stderr
    assert "1 passed, 1 error" in run.stdout
    assert "Leaked: a mobile number in the log of the applications in this process, line " in run.stdout
    assert "number=<mobile number>" in run.stdout or '"number": "+<mobile number>"' in run.stdout
