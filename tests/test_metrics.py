"""`GET /metrics`, and figures that several processes share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from flask import Flask
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text
from werkzeug.test import TestResponse

from chatapi import metrics
from chatapi.chatrooms.endings import Ending, conclude
from chatapi.dev.embedded import free_port
from chatapi.dev.stripe.standin import StripeStandin
from chatapi.extensions import db, in_transaction
from chatapi.replies.jobs import schedule_retry, take_lease
from config import ROOT
from tests.subscriptions.support import Billing
from tests.support import Account, Services, wait_for
from tests.system.freezing import children_of

TOKEN = "scrapes-only-9f1c2b7d"

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture(scope="module")
def metered_app(make_app: Callable[..., Flask]) -> Flask:
    return make_app(METRICS_TOKEN=TOKEN, RATE_LIMIT_MAX_REQUESTS="10")


def scrape(client: FlaskClient, token: str = TOKEN) -> TestResponse:
    return client.get("/metrics", headers={"Authorization": f"Bearer {token}"})


def series(body: str) -> Series:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
    }


def read(client: FlaskClient) -> Callable[..., float]:
    """Scrape once; return what looks a figure up by its name and labels."""
    answer = scrape(client)
    assert answer.status_code == 200, answer.get_data(as_text=True)
    found = series(answer.get_data(as_text=True))
    return lambda name, **labels: found[name, frozenset(labels.items())]


@pytest.mark.parametrize(
    "header", [None, "Bearer", "Bearer x", f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer \xfc"]
)
def test_metrics_answer_401_without_the_token(metered_app: Flask, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}

    answer = metered_app.test_client().get("/metrics", headers=headers)

    assert (answer.status_code, answer.get_json()["error"]) == (401, "unauthorized")
    assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_metrics_answer_401_to_an_access_token(metered_app: Flask, account: Account) -> None:
    assert scrape(metered_app.test_client(), account.token).status_code == 401


def test_metrics_answer_as_an_address_that_is_not_there_when_no_token_is_set(client: FlaskClient) -> None:
    answer, missing = scrape(client), client.get("/no-such-thing", headers={"Authorization": f"Bearer {TOKEN}"})

    assert answer.status_code == 404
    assert answer.get_json() == missing.get_json()


def test_metrics_are_not_in_the_request_budget(metered_app: Flask) -> None:
    client = metered_app.test_client()

    answers = [scrape(client) for _ in range(15)]

    assert {answer.status_code for answer in answers} == {200}
    assert answers[0].headers["Content-Type"].startswith("text/plain; version=")


def test_metrics_count_a_reply_from_its_acceptance_to_its_end(app: Flask, metered_app: Flask, account: Account) -> None:
    client = metered_app.test_client()
    before = read(client)
    room_id = account.open_room()
    lease = lease_of(app, account.prompt(room_id, "hello"))
    failing = lease_of(app, account.prompt(account.open_room(), "hello"))
    with app.app_context():
        assert conclude(lease, Ending(status="completed", content="hi", prompt_tokens=7, output_tokens=3))
        assert conclude(failing, Ending(status="failed", error="timed_out"))

    after = read(client)

    def rise(name: str, **labels: str) -> float:
        return after(name, **labels) - before(name, **labels)

    assert rise("chatapi_replies_accepted_total") == 2
    assert rise("chatapi_replies_completed_total") == 1
    assert rise("chatapi_replies_failed_total", reason="timed_out") == 1
    assert rise("chatapi_replies_failed_total", reason="internal_error") == 0
    assert rise("chatapi_reply_tokens_total", kind="prompt") == 7
    assert rise("chatapi_reply_tokens_total", kind="output") == 3
    assert rise("chatapi_reply_duration_seconds_count") == 2
    assert rise("chatapi_reply_duration_seconds_bucket", le="300.0") == 2


def test_metrics_count_stops_retries_and_first_texts(metered_app: Flask) -> None:
    client = metered_app.test_client()
    metrics.retried("timed_out")
    before = read(client)
    metrics.ended("stopped", None, 2.0)
    metrics.retried("timed_out")
    metrics.first_text(0.3)
    metrics.stream_opened()
    metrics.stream_opened()
    metrics.stream_closed()

    after = read(client)

    metrics.stream_closed()
    for name, labels in (
        ("chatapi_replies_stopped_total", {}),
        ("chatapi_reply_retries_total", {"reason": "timed_out"}),
        ("chatapi_reply_first_text_seconds_count", {}),
        ("chatapi_reply_first_text_seconds_bucket", {"le": "0.5"}),
        ("chatapi_open_streams", {}),
    ):
        assert after(name, **labels) - before(name, **labels) == 1, name
    assert after("chatapi_reply_first_text_seconds_bucket", le="0.25") == before(
        "chatapi_reply_first_text_seconds_bucket", le="0.25"
    )


def test_metrics_keep_texts_out_of_their_labels(metered_app: Flask) -> None:
    metrics.retried("429 You exceeded your quota")
    metrics.ended("failed", None, 1.0)

    found = read(metered_app.test_client())

    assert found("chatapi_reply_retries_total", reason="other") >= 1
    assert found("chatapi_replies_failed_total", reason="other") >= 1
    assert "exceeded" not in scrape(metered_app.test_client()).get_data(as_text=True)


def test_metrics_show_the_queue_of_postgresql(app: Flask, metered_app: Flask, account: Account) -> None:
    with app.app_context():
        db.session.execute(text("DELETE FROM reply_jobs"))
        db.session.commit()
    _waiting, running, retrying = (account.prompt(account.open_room(), "hello") for _ in range(3))
    lease_of(app, running)
    with app.app_context():
        lease = lease_of(app, retrying)
        assert in_transaction(lambda: schedule_retry(lease, 3600, "timed_out"))
        db.session.execute(text("UPDATE reply_jobs SET run_at = now() - interval '90 s' WHERE attempts = 0"))
        db.session.commit()

    found = read(metered_app.test_client())

    assert found("chatapi_database_up") == 1
    assert [found("chatapi_reply_jobs", state=state) for state in ("waiting", "running", "retrying")] == [1, 1, 1]
    assert 90 <= found("chatapi_reply_queue_age_seconds") < 100


def test_metrics_show_billing_of_postgresql(
    app: Flask, metered_app: Flask, stripe: StripeStandin, sign_in: Callable[..., Account]
) -> None:
    billing = Billing(app, stripe)
    before = read(metered_app.test_client())
    billing.subscribe(sign_in())
    doubled = sign_in()
    billing.subscribe(doubled)
    stripe.subscribe(billing.customer_of(doubled), billing.price_id)
    billing.tell_all()
    billing.work()
    billing.rows("DELETE FROM stripe_events")
    billing.rows("UPDATE billing_closures SET due_at = NULL")
    billing.rows(
        "INSERT INTO stripe_events (id, event_id, type, status, due_at, stripe_created_at, received_at) VALUES "
        "(gen_random_uuid(), 'evt_m1', 'invoice.paid', 'received', now(), now(), now() - interval '90 s'), "
        "(gen_random_uuid(), 'evt_m2', 'invoice.paid', 'unmatched', NULL, now(), now() - interval '9 days'), "
        "(gen_random_uuid(), 'evt_m3', 'invoice.paid', 'handled', NULL, now(), now() - interval '9 days')"
    )
    billing.rows(
        "INSERT INTO billing_closures (id, stripe_customer_id, due_at) "
        "VALUES (gen_random_uuid(), 'cus_m1', now()), (gen_random_uuid(), 'cus_m2', NULL)"
    )
    billing.rows(
        "UPDATE billing_reconciliation SET finished_at = to_timestamp(1790000000.5), drifted = 2, unknown = 4, "
        "failed = 3, total_drifted = total_drifted + 7"
    )

    after = read(metered_app.test_client())

    def rise(name: str, **labels: str) -> float:
        return after(name, **labels) - before(name, **labels)

    assert rise("chatapi_pro_accounts") == 2
    assert rise("chatapi_subscriptions", status="active") == 3
    assert after("chatapi_subscriptions", status="incomplete_expired") == 0
    assert rise("chatapi_second_subscriptions") == 1
    assert [after("chatapi_billing_events", status=status) for status in ("received", "retrying", "unmatched")] == [
        1,
        0,
        1,
    ]
    assert 90 <= after("chatapi_billing_oldest_event_seconds") < 120
    assert after("chatapi_billing_closures") == 1
    assert after("chatapi_billing_drift") == 2
    assert rise("chatapi_billing_drift_total") == 7
    assert after("chatapi_billing_unknown_customers") == 4
    assert after("chatapi_billing_failed_customers") == 3
    assert after("chatapi_billing_reconciled_timestamp_seconds") == 1790000000.5
    billing.rows("DELETE FROM stripe_events WHERE event_id LIKE 'evt_m%'")
    billing.rows("DELETE FROM billing_closures WHERE stripe_customer_id LIKE 'cus_m_'")


def test_metrics_show_no_time_of_a_reconciliation_that_never_was(app: Flask, metered_app: Flask) -> None:
    with app.app_context():
        db.session.execute(text("UPDATE billing_reconciliation SET finished_at = NULL"))
        db.session.commit()

    found = read(metered_app.test_client())

    assert found("chatapi_billing_drift_total") >= 0
    with pytest.raises(KeyError):
        found("chatapi_billing_reconciled_timestamp_seconds")


def test_metrics_of_replies_are_shown_when_those_of_billing_cannot_be_read(app: Flask, metered_app: Flask) -> None:
    with app.app_context(), db.engine.connect() as other:
        other.execute(text("LOCK TABLE billing_reconciliation IN ACCESS EXCLUSIVE MODE"))
        began = time.monotonic()
        found = read(metered_app.test_client())
        seconds = time.monotonic() - began

    assert found("chatapi_database_up") == 1
    assert found("chatapi_reply_queue_age_seconds") >= 0
    assert seconds < 3
    with pytest.raises(KeyError):
        found("chatapi_pro_accounts")


def test_metrics_answer_within_seconds_when_postgresql_is_away(make_app: Callable[..., Flask]) -> None:
    app = make_app(METRICS_TOKEN=TOKEN, DATABASE_URL=f"postgresql://nobody@127.0.0.1:{free_port()}/none")

    found = read(app.test_client())

    assert found("chatapi_database_up") == 0
    assert found("chatapi_replies_accepted_total") >= 0
    for name in ("chatapi_reply_queue_age_seconds", "chatapi_pro_accounts"):
        with pytest.raises(KeyError):
            found(name)


@pytest.mark.slow
def test_metrics_answer_within_seconds_when_postgresql_hangs(metered_app: Flask, services: Services) -> None:
    pid = services.postgres_process.pid
    assert pid is not None
    backends = children_of(pid)
    for each in (pid, *backends):
        os.kill(each, signal.SIGSTOP)
    try:
        began = time.monotonic()
        found = [read(metered_app.test_client())("chatapi_database_up") for _ in range(2)]
        seconds = time.monotonic() - began
    finally:
        for each in (*backends, pid):
            os.kill(each, signal.SIGCONT)

    assert found == [0, 0]
    assert seconds < 6
    wait_for(lambda: read(metered_app.test_client())("chatapi_database_up") == 1)


def lease_of(app: Flask, reply_id: str) -> Any:
    with app.app_context():
        return in_transaction(lambda: take_lease(UUID(reply_id)))


COUNT = "from chatapi import metrics; metrics.accepted(); metrics.stream_opened()"
SHOW = """
import sys
from prometheus_client import CollectorRegistry, generate_latest
from chatapi import metrics
registry = CollectorRegistry()
for collector in metrics.collectors():
    registry.register(collector)
sys.stdout.buffer.write(generate_latest(registry))
"""


def python(folder: Path, code: str, **options: Any) -> subprocess.Popen[str]:
    environ = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)}
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True, **options
    )


def shown(folder: Path) -> Series:
    output, _ = python(folder, SHOW).communicate(timeout=20)
    return series(output)


NO_LABELS: frozenset[tuple[str, str]] = frozenset()


def test_figures_of_all_processes_are_added_up_and_those_of_the_present_end_with_their_process(tmp_path: Path) -> None:
    folder = tmp_path / "made-at-the-first-use"
    ended = python(folder, COUNT)
    ended.communicate(timeout=20)
    waiting = python(folder, COUNT + "\nprint('done', flush=True); input()", stdin=subprocess.PIPE)
    assert waiting.stdout is not None
    assert waiting.stdout.readline() == "done\n"

    found = shown(folder)
    assert found["chatapi_replies_accepted_total", NO_LABELS] == 2
    assert found["chatapi_open_streams", NO_LABELS] == 1

    waiting.kill()
    waiting.communicate()
    found = shown(folder)
    assert found["chatapi_replies_accepted_total", NO_LABELS] == 2
    assert found["chatapi_open_streams", NO_LABELS] == 0
    assert found["chatapi_replies_failed_total", frozenset({("reason", "timed_out")})] == 0


def test_command_that_counts_nothing_leaves_nothing_in_the_folder(tmp_path: Path) -> None:
    python(tmp_path, "import chatapi.app").communicate(timeout=20)

    assert list(tmp_path.iterdir()) == []


def test_gauge_that_a_former_process_of_our_number_left_is_not_ours(tmp_path: Path) -> None:
    code = f"""
import os, subprocess, sys
{COUNT}
if len(sys.argv) == 1:
    os.execv(sys.executable, [sys.executable, "-c", {(COUNT + chr(10) + SHOW)!r}])
"""
    output, _ = python(tmp_path, code).communicate(timeout=20)

    found = series(output)
    assert found["chatapi_open_streams", NO_LABELS] == 1
    assert found["chatapi_replies_accepted_total", NO_LABELS] == 2


def test_figures_are_kept_by_the_process_when_their_folder_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    output, _ = python(tmp_path / "file" / "folder", COUNT + "\n" + SHOW).communicate(timeout=20)

    assert series(output)["chatapi_replies_accepted_total", NO_LABELS] == 1


def test_folder_set_to_nothing_is_none_at_all(tmp_path: Path) -> None:
    environ = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": "", "APP_ENV": "production", "PYTHONPATH": str(ROOT)}

    output = subprocess.check_output([sys.executable, "-c", COUNT + SHOW], cwd=tmp_path, env=environ, text=True)

    assert series(output)["chatapi_replies_accepted_total", NO_LABELS] == 1
    assert list(tmp_path.iterdir()) == []
