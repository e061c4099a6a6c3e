"""The nginx that ships with the service, as it ships, before the running system."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
import requests

from chatapi.dev.embedded import free_port
from chatapi.errors import ServiceUnavailableError, http_error
from chatapi.headers import SECURITY_HEADERS
from chatapi.parsing import MAX_BODY_BYTES, MAX_WEBHOOK_BYTES
from config import ROOT
from tests.support import Account, wait_for
from tests.system.support import METRICS_TOKEN, HttpClient, System
from tests.system.test_half_open import HEAD
from tests.tls import Authority

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

SETTINGS = {"TRUSTED_PROXIES": "1", "HOST": "127.0.0.1"}
SHIPPED = ROOT / "deploy" / "nginx"
CONNECTIONS_OF_AN_ADDRESS = 256
OF_HTTP = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.NOT_FOUND,
    HTTPStatus.METHOD_NOT_ALLOWED,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
)
SENTENCES = {error.status: error.message for error in (ServiceUnavailableError(), *map(http_error, OF_HTTP))}
"""What the service says, of what nginx may say in its place."""
HALF_SENT = (b"", b"GET /user/me HT", b"GET /user/me HTTP/1.1\r\nX-Drip: ", HEAD + b"Content-Length: 500\r\n\r\n{")


class Nginx:
    """Debian's nginx with the shipped files; only addresses and folders are others."""

    def __init__(self, folder: Path, upstream: int) -> None:
        self.port = free_port()
        self.folder = folder
        shutil.copytree(SHIPPED, folder / "conf")
        self.replace("upstream.conf", "server web:5000", f"server 127.0.0.1:{upstream}")
        self.replace("nginx.conf", "listen 8080", f"listen 127.0.0.1:{self.port}")
        # Workers of a master that is root are somebody else, who has to get to the temporary files.
        (folder / "tmp").mkdir(mode=0o777)
        for parent in (folder, folder.parent):
            parent.chmod(0o755)
        self.replace("nginx.conf", "/tmp/", f"{folder}/tmp/")  # noqa: S108 - of its container
        self.process: subprocess.Popen[bytes] | None = None

    def replace(self, name: str, old: str, new: str) -> None:
        path = self.folder / "conf" / name
        text = path.read_text()
        assert old in text, (name, old)
        path.write_text(text.replace(old, new))

    @property
    def command(self) -> list[str]:
        return ["nginx", "-p", str(self.folder), "-c", str(self.folder / "conf" / "nginx.conf"), "-g", "daemon off;"]

    def start(self) -> None:
        with (self.folder / "out").open("ab") as out, (self.folder / "err").open("ab") as err:
            self.process = subprocess.Popen(self.command, stdout=out, stderr=err)
        wait_for(self.is_up, seconds=10)

    def is_up(self) -> bool:
        try:
            return requests.get(f"http://127.0.0.1:{self.port}/health/live", timeout=2).status_code > 0
        except requests.RequestException:
            return False

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            self.process.wait(20)

    def log(self) -> list[dict[str, Any]]:
        """Return the lines about what nginx has refused."""
        return [json.loads(line) for line in (self.folder / "out").read_text().splitlines()]

    def errors(self) -> str:
        return (self.folder / "err").read_text()


@pytest.fixture
def make_nginx(tmp_path: Path) -> Iterator[Callable[[int], Nginx]]:
    """Return what makes an nginx before a port, not started."""
    if shutil.which("nginx") is None:
        if os.environ.get("NGINX_IS_NEEDED"):
            pytest.fail("nginx is not installed")
        pytest.skip("nginx is not installed; .ci/check-containers does so")
    made: list[Nginx] = []

    def make(upstream: int) -> Nginx:
        made.append(Nginx(tmp_path / "nginx" / str(len(made)), upstream))
        return made[-1]

    yield make
    for each in made:
        each.stop()


@pytest.fixture
def nginx(make_nginx: Callable[[int], Nginx], system: System) -> Nginx:
    """Nginx before the running system."""
    made = make_nginx(system.port)
    made.start()
    return made


@pytest.fixture
def through(nginx: Nginx, someone: Account) -> Account:
    """Somebody who is signed in, and calls through nginx."""
    return Account(someone.id, someone.mobile_number, someone.token, HttpClient(nginx.port))  # type: ignore[arg-type]


def requests_seen(system: System) -> int:
    """Return how many requests the service has counted."""
    answer = system.client.get("/metrics", headers={"Authorization": f"Bearer {METRICS_TOKEN}"})
    lines = [line for line in answer.text.splitlines() if line.startswith("chatapi_http_requests_total{")]
    return sum(int(float(line.rpartition(" ")[2])) for line in lines if 'route="/metrics"' not in line)


def refusal(answer: requests.Response) -> tuple[int, str]:
    """Return status and slug, and hold that the answer has the form of the service's own errors."""
    body = answer.json()
    assert set(body) == {"code", "status", "error", "message"}
    assert body["code"] == answer.status_code
    assert body["status"] == HTTPStatus(answer.status_code).phrase
    assert body["message"] == SENTENCES.get(answer.status_code, body["message"])
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["X-Request-ID"]
    assert answer.headers["Cache-Control"] == "no-store"
    assert {name: answer.headers.get(name) for name in SECURITY_HEADERS} == SECURITY_HEADERS
    return answer.status_code, body["error"]


def test_configuration_is_accepted_without_a_warning(make_nginx: Callable[[int], Nginx]) -> None:
    made = make_nginx(1)
    done = subprocess.run([*made.command, "-t"], check=False, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert "[warn]" not in done.stderr
    assert "[alert]" not in done.stderr


def test_requests_and_errors_of_the_service_pass_as_they_are(nginx: Nginx, system: System, through: Account) -> None:
    room = through.open_room(title="Through nginx")
    answer = through.client.get(f"/chatroom/{room}", headers={**through.headers, "X-Request-ID": "my-own.1"})
    assert answer.status_code == 200
    assert answer.headers["X-Request-ID"] == "my-own.1"
    for path, status in (("/chatroom/nothing", 404), ("/no-such-thing", 404)):
        direct, passed = (client.get(path, headers=through.headers) for client in (system.client, through.client))
        assert passed.status_code == direct.status_code == status
        assert passed.get_json() == direct.get_json()
        for name in ("X-Frame-Options", "X-Request-ID", "Cache-Control", "Strict-Transport-Security"):
            assert "," not in passed.headers[name], name
    assert nginx.log() == []


def test_files_fit_into_another_nginx(make_nginx: Callable[[int], Nginx]) -> None:
    made = make_nginx(free_port())
    (made.folder / "conf" / "nginx.conf").write_text(
        f"pid {made.folder / 'tmp' / 'pid'}; events {{}} http {{ include upstream.conf; include http.conf; "
        f"server {{ listen 127.0.0.1:{made.port}; include site.conf; }} }}"
    )

    made.start()

    refused = requests.get(f"http://127.0.0.1:{made.port}/user/me", timeout=10)
    assert refusal(refused) == (503, "service_unavailable")


def test_stream_comes_piece_by_piece(nginx: Nginx, through: Account) -> None:
    room = through.open_room()
    reply = through.prompt(room, "slowly [[words=40 chunk_ms=100]]")
    with requests.get(
        f"http://127.0.0.1:{nginx.port}/chatroom/{room}/message/{reply}/stream",
        headers=through.headers,
        stream=True,
        timeout=30,
    ) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        lines = answer.iter_lines(chunk_size=1)
        times = [time.monotonic() for line in lines if line.startswith(b"event: delta")]

    assert len(times) > 5
    # Were they collected, they would all come at the end.
    assert times[-1] - times[0] > 0.6
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert max(gaps) < (times[-1] - times[0]) / 2


def test_request_that_waits_for_its_reply_gets_it(through: Account) -> None:
    room = through.open_room()
    answer = through.client.post(
        f"/chatroom/{room}/message",
        json={"content": "[[latency_ms=2000]] hello"},
        headers={**through.headers, "Prefer": "wait=30"},
    )
    assert answer.get_json()["ai_message"]["status"] == "completed"


def test_half_sent_requests_keep_nobody_waiting_and_never_reach_the_service(nginx: Nginx, system: System) -> None:
    seen = requests_seen(system)
    with ExitStack() as stack:
        for index in range(200):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", nginx.port)))
            connection.sendall(HALF_SENT[index % len(HALF_SENT)])
        at_service = connections_to(system.port)
        answers = [HttpClient(nginx.port).get("/health") for _ in range(20)]

    assert {answer.status_code for answer in answers} == {200}
    assert max(answer.seconds for answer in answers) < 1
    assert at_service < 10
    # Twenty of these, and none of those.
    assert requests_seen(system) == seen + 20


def connections_to(port: int) -> int:
    """Return how many connections there are to a port of this machine, by the kernel's word."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(1 for row in rows if int(row[2].rpartition(":")[2], 16) == port and row[3] == "01")


def test_half_sent_requests_are_ended(nginx: Nginx) -> None:
    connections = []
    with ExitStack() as stack:
        began = time.monotonic()
        for sent in HALF_SENT[1:]:
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", nginx.port), timeout=20))
            connection.sendall(sent)
            connections.append(connection)
        for connection in connections:
            try:
                while connection.recv(65536):
                    pass
            except ConnectionResetError:
                pass

    assert 9 < time.monotonic() - began < 15


def test_one_address_has_only_so_many_requests_under_way(nginx: Nginx) -> None:
    with ExitStack() as stack:
        # More than there is room for: a question that is under way meanwhile has a place of theirs.
        for _ in range(CONNECTIONS_OF_AN_ADDRESS + 16):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", nginx.port)))
            connection.sendall(HALF_SENT[-1])
        wait_for(lambda: requests.get(f"http://127.0.0.1:{nginx.port}/health", timeout=5).status_code == 429)
        refused = requests.get(f"http://127.0.0.1:{nginx.port}/health", timeout=5)

    assert refusal(refused) == (429, "too_many_connections")
    wait_for(lambda: requests.get(f"http://127.0.0.1:{nginx.port}/health", timeout=5).ok)
    assert {line["status"] for line in nginx.log()} >= {429}
    assert all("path" not in line and "/health" not in json.dumps(line) for line in nginx.log())


def test_address_of_the_client_counts_and_not_what_it_says(nginx: Nginx, system: System) -> None:
    remaining: dict[str, list[int]] = {}
    for client in ("127.0.0.1", "127.0.0.2"):
        for said in ("203.0.113.1", "203.0.113.2"):
            remaining.setdefault(client, []).append(budget_left(nginx, client, said))

    # Each address has one budget of its own, whatever it says of itself.
    assert [first - second for first, second in remaining.values()] == [1, 1]


def budget_left(nginx: Nginx, client: str, said: str) -> int:
    """Make a request from an address that names another one; return what is left of the budget it counts to."""
    connection = http.client.HTTPConnection("127.0.0.1", nginx.port, source_address=(client, 0), timeout=10)
    connection.request("GET", "/health", headers={"X-Forwarded-For": said, "X-Forwarded-Host": "evil.example"})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return int(answer.headers["X-RateLimit-Remaining"])


def test_address_that_a_proxy_before_nginx_names_counts_once_that_proxy_is_believed(
    make_nginx: Callable[[int], Nginx], system: System
) -> None:
    made = make_nginx(system.port)
    believed = "include site.conf;\nset_real_ip_from 127.0.0.2;\nreal_ip_header X-Forwarded-For;"
    made.replace("nginx.conf", "include site.conf;", believed)
    made.start()

    for client, is_believed in (("127.0.0.2", True), ("127.0.0.3", False)):
        left = [budget_left(made, client, said) for said in ("203.0.113.8", "203.0.113.9")]
        assert left[0] - left[1] == (0 if is_believed else 1)


@pytest.mark.parametrize(
    "path", ["/metrics", "/metrics/", "//metrics", "/%6detrics", "/x/../metrics", "/metrics?a=b", "/./metrics"]
)
def test_metrics_are_not_for_the_outside(nginx: Nginx, path: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", nginx.port, timeout=10)
    connection.request("GET", path, headers={"Authorization": f"Bearer {METRICS_TOKEN}"})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()

    assert answer.status == 404
    assert json.loads(body)["error"] == "not_found"
    assert b"chatapi_" not in body


def test_bodies_past_the_bounds_of_the_service_are_refused_unread(nginx: Nginx, system: System) -> None:
    url = f"http://127.0.0.1:{nginx.port}"
    seen = requests_seen(system)
    for path, bound in (("/auth/login", MAX_BODY_BYTES), ("/webhook/stripe", MAX_WEBHOOK_BYTES)):
        kind = {"Content-Type": "application/json"}
        refused = requests.post(url + path, data=b" " * (bound + 1), headers=kind, timeout=10)
        assert refusal(refused) == (413, "payload_too_large")
        assert requests_seen(system) == seen

        taken = requests.post(url + path, data=b" " * bound, headers=kind, timeout=10)
        assert taken.status_code in (400, 401, 422), taken.text
        seen += 1
        assert requests_seen(system) == seen


def test_what_nginx_refuses_has_the_form_of_the_services_errors(nginx: Nginx) -> None:
    url = f"http://127.0.0.1:{nginx.port}"
    assert refusal(requests.get(f"{url}/{'a' * 9000}", timeout=10)) == (414, "request_uri_too_long")
    long = requests.get(url, headers={"X-Long": "a" * 9000}, timeout=10)
    assert refusal(long) == (431, "request_header_fields_too_large")
    own = requests.get(f"{url}/metrics", headers={"X-Request-ID": "my-own.1"}, timeout=10)
    assert own.headers["X-Request-ID"] == "my-own.1"
    strange = requests.get(f"{url}/metrics", headers={"X-Request-ID": 'no"good'}, timeout=10)
    assert re.fullmatch("[0-9a-f]{32}", strange.headers["X-Request-ID"])


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"GET / HTTP/3.0\r\nHost: a\r\n\r\n",
    ],
)
def test_what_is_no_request_is_the_clients_fault(nginx: Nginx, head: bytes) -> None:
    with socket.create_connection(("127.0.0.1", nginx.port), timeout=10) as connection:
        connection.sendall(head)
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b'"code":400,"status":"Bad Request","error":"bad_request"' in answer
    assert b"\r\nX-Request-ID: " in answer


def test_few_long_bodies_of_one_address_are_held_at_a_time(nginx: Nginx) -> None:
    url = f"http://127.0.0.1:{nginx.port}"
    with ExitStack() as stack:
        for _ in range(40):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", nginx.port)))
            connection.sendall(b"POST /webhook/stripe HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n{")
        wait_for(lambda: requests.post(f"{url}/webhook/stripe", data=b"{}", timeout=5).status_code == 429)
        assert requests.get(f"{url}/health", timeout=5).status_code == 200


def test_service_that_is_down_is_503_with_retry_after(make_nginx: Callable[[int], Nginx]) -> None:
    made = make_nginx(free_port())
    made.start()
    answer = requests.get(f"http://127.0.0.1:{made.port}/health", timeout=10)

    assert refusal(answer) == (503, "service_unavailable")
    assert answer.headers["Retry-After"] == "2"


def test_tls_is_taken_in_once_it_is_there(make_nginx: Callable[[int], Nginx], system: System, tmp_path: Path) -> None:
    made = make_nginx(system.port)
    authority = Authority(tmp_path / "authority", "tests")
    authority.server_context("127.0.0.1")
    pem = tmp_path / "authority" / "server-127.0.0.1.pem"
    port = free_port()
    shutil.copy(SHIPPED / "tls.conf.example", made.folder / "conf" / "tls.conf")
    made.replace("tls.conf", "listen 8443", f"listen 127.0.0.1:{port}")
    for name in ("fullchain.pem", "privkey.pem"):
        made.replace("tls.conf", f"/etc/nginx/tls/{name}", str(pem))
    made.start()

    answer = requests.get(f"https://127.0.0.1:{port}/health", verify=str(authority.file), timeout=10)
    assert answer.json()["status"] == "OK"
