"""The clients that come with the service, and those made from its document, against a running system.

Each tool is also shown something that is wrong, so that what it passes means something.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from chatapi.errors import RateLimitedError, envelope
from config import ROOT
from tests.clients.conftest import Tools

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

CLIENTS = ROOT / "clients"
COLLECTION = CLIENTS / "chatapi.postman_collection.json"


def newman(tools: Tools, folder: Path, collection: Path, url: str, *options: str) -> dict[str, dict[str, int]]:
    """Run a collection; return what newman counted of requests, assertions and so on."""
    report = folder / "newman.json"
    done = tools(
        "newman", "run", collection, "--env-var", f"baseUrl={url}", "--reporters", "cli,json",
        "--reporter-json-export", report, "--color", "off", *options, cwd=folder,
    )  # fmt: skip
    run = json.loads(report.read_text())["run"]
    assert (done.returncode == 0) == (not run["failures"]), done.stdout[-5000:] + done.stderr
    return {**run["stats"], "failures": {"total": len(run["failures"]), "text": done.stdout[-8000:]}}


def test_collection_runs_through_twice(tools: Tools, url: str, tmp_path: Path) -> None:
    folders = json.loads(COLLECTION.read_text())["item"]
    requests = sum(len(folder["item"]) for folder in folders)

    counted = newman(tools, tmp_path, COLLECTION, url, "-n", "2")

    assert counted["failures"]["total"] == 0, counted["failures"]["text"]
    assert counted["requests"]["total"] >= 2 * (requests - 1)  # One is skipped if no prompt is left by then.
    assert counted["assertions"]["total"] >= 2 * requests


def test_collection_asserts_something_of_every_request(tools: Tools) -> None:
    folders = json.loads(COLLECTION.read_text())["item"]

    for item in (item for folder in folders for item in folder["item"]):
        script = "\n".join(
            line for event in item["event"] if event["listen"] == "test" for line in event["script"]["exec"]
        )
        assert "pm.test(" in script, item["name"]
        assert "have.status(" in script or "pm.response.code" in script, item["name"]


def test_collection_fails_when_an_answer_is_another(tools: Tools, url: str, tmp_path: Path) -> None:
    wrong = COLLECTION.read_text().replace("pm.response.to.have.status(200)", "pm.response.to.have.status(201)")
    (tmp_path / "wrong.json").write_text(wrong)

    counted = newman(tools, tmp_path, tmp_path / "wrong.json", url, "--folder", "1 Service")

    assert counted["failures"]["total"] == 2


class Refusing(BaseHTTPRequestHandler):
    """Refuses everything, as the service does when the request budget is used up."""

    def do_GET(self) -> None:
        body = envelope(RateLimitedError())
        self.send_response(429)
        self.send_header("Content-Type", "application/json")
        self.send_header("Retry-After", "60")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815 - http.server looks for these names

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_collection_comes_to_an_end_when_all_is_refused(tools: Tools, tmp_path: Path) -> None:
    folders = json.loads(COLLECTION.read_text())["item"]
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            counted = newman(tools, tmp_path, COLLECTION, f"http://127.0.0.1:{server.server_port}")
        finally:
            server.shutdown()

    assert counted["requests"]["total"] <= sum(len(folder["item"]) for folder in folders)
    assert counted["failures"]["total"] > counted["requests"]["total"]


def copy_rest(folder: Path, url: str) -> Path:
    """Copy app.rest as its reader would, with a `.env` of its own, and return where it is."""
    number = f"+1{time.time_ns() % 10**12:012d}"
    settings = (CLIENTS / ".env.template").read_text()
    settings = re.sub(r"(?m)^BASE_URL=.*", f"BASE_URL={url}", settings)
    settings = re.sub(r"(?m)^MOBILE_NUMBER=.*", f"MOBILE_NUMBER={number}", settings)
    (folder / ".env").write_text(settings)
    for name in ("app.rest", "httpyac.config.js"):
        shutil.copy(CLIENTS / name, folder)
    return folder / "app.rest"


def test_app_rest_runs_through(tools: Tools, url: str, tmp_path: Path) -> None:
    rest = copy_rest(tmp_path, url)
    text = rest.read_text()
    count = len(re.findall(r"(?m)^### ", text))
    assert count == len(re.findall(r"(?m)^# @expect [0-9]{3}$", text))

    done = tools("httpyac", "send", "app.rest", "--all", "--json", cwd=tmp_path)

    summary = json.loads(done.stdout)["summary"]
    assert (summary["successRequests"], summary["successTests"]) == (count, count), done.stdout[-5000:]
    assert done.returncode == 0


def test_app_rest_fails_when_an_answer_is_another(tools: Tools, url: str, tmp_path: Path) -> None:
    rest = copy_rest(tmp_path, url)
    first_two = "###".join(rest.read_text().split("###")[:3])
    rest.write_text(first_two.replace("@expect 200", "@expect 404", 1))

    done = tools("httpyac", "send", "app.rest", "--all", "--json", cwd=tmp_path)

    summary = json.loads(done.stdout)["summary"]
    assert (summary["failedTests"], summary["successTests"]) == (1, 1)
    assert done.returncode != 0


def test_document_has_nothing_that_redocly_minds(tools: Tools, document: Path) -> None:
    done = tools("redocly", "lint", "--config", CLIENTS / "redocly.yaml", document, cwd=document.parent)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in (done.stdout + done.stderr).lower().replace("deprecation warning", "")


def test_redocly_minds_a_wrong_example_and_a_missing_tag(tools: Tools, document: Path, tmp_path: Path) -> None:
    wrong = json.loads(document.read_text())
    del wrong["tags"][0]["description"]
    wrong["paths"]["/health"]["get"]["responses"]["200"]["content"]["application/json"]["example"] = {"status": 1}
    (tmp_path / "openapi.json").write_text(json.dumps(wrong))

    done = tools("redocly", "lint", "--config", CLIENTS / "redocly.yaml", "openapi.json", cwd=tmp_path)

    assert done.returncode != 0
    for rule in ("tag-description", "no-invalid-media-type-examples"):
        assert rule in done.stdout + done.stderr


def test_generated_client_is_typed_and_makes_the_main_walk(
    tools: Tools, url: str, document: Path, tmp_path: Path
) -> None:
    made = tools(
        "openapi-python-client", "generate", "--path", document, "--meta", "none", "--fail-on-warning",
        "--output-path", tmp_path / "chatapi_client", cwd=tmp_path,
    )  # fmt: skip
    assert made.returncode == 0, made.stdout + made.stderr
    (tmp_path / "chatapi_client/py.typed").touch()
    script = ROOT / "tests/clients/walk.py"

    checked = tools(
        str(ROOT / ".venv/bin/mypy"), "--strict", "--config-file", "", "--python-executable", tools.python,
        "--follow-imports", "silent", script, cwd=tmp_path, MYPYPATH=str(tmp_path),
    )  # fmt: skip
    walked = tools(str(tools.python), script, url, cwd=tmp_path, PYTHONPATH=str(tmp_path))

    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert walked.returncode == 0, walked.stdout + walked.stderr
