"""That rules, dashboard, documentation and `/metrics` speak of the same things."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable

import pytest
import yaml
from flask import Flask
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from chatapi import metrics
from chatapi.extensions import db, in_transaction
from chatapi.replies.sweeper import beat
from config import ROOT
from tests.deploy.support import (
    DASHBOARD,
    PROMETHEUS,
    RUNBOOK,
    alerts,
    dashboard,
    expressions,
    metrics_in,
    panels,
    recorded,
    rules,
)

TOKEN = "scrapes-only-5a8e0f3c"
FROM_POSTGRESQL = re.compile(
    r"chatapi_(reply_jobs|reply_queue|sweep|codes|sign_in|pro_accounts|subscriptions|second_sub|billing)"
)
SEVERITIES = {"critical", "warning"}


@pytest.fixture(scope="module")
def exposed(make_app: Callable[..., Flask]) -> set[str]:
    """The names in `/metrics`, as queries have them."""
    app = make_app(METRICS_TOKEN=TOKEN)
    client = app.test_client()
    client.get("/health")  # So that there is a request to be counted.
    with app.app_context():
        in_transaction(beat)
        in_transaction(lambda: db.session.execute(text("UPDATE billing_reconciliation SET finished_at = now()")))
    metrics.model_called("flash", "answered", 1.0)
    answer = client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    families = text_string_to_metric_families(answer.get_data(as_text=True))
    return {f"{family.name}_total" if family.type == "counter" else family.name for family in families}


def test_every_metric_in_rules_and_dashboard_is_exposed(exposed: set[str]) -> None:
    named = {(where, name) for where, expression in expressions() for name in metrics_in(expression)}

    assert len(named) > 80
    assert [each for each in sorted(named) if each[1] not in exposed] == []


def test_every_series_that_rules_and_dashboard_take_as_recorded_is_recorded() -> None:
    named = {name for _, expression in expressions() for name in re.findall(r"chatapi:[a-z0-9_:]+", expression)}

    assert named == recorded()


def test_every_metric_is_documented_and_every_documented_one_is_exposed(exposed: set[str]) -> None:
    table = re.findall(r"^\| `(chatapi_[a-z0-9_]+)(?:\{[a-z, ]+\})?` \|", RUNBOOK.read_text(), re.MULTILINE)

    assert sorted(table) == sorted(
        exposed | {"chatapi_billing_reconciled_timestamp_seconds", "chatapi_sweep_age_seconds"}
    )
    assert metrics_in(RUNBOOK.read_text()) <= {*table, "chatapi_metrics"}


def test_every_alert_has_a_severity_and_a_page_that_says_what_to_do() -> None:
    headings = re.findall(r"^### (.+)$", RUNBOOK.read_text(), re.MULTILINE)

    assert len(alerts()) > 20
    for name, alert in alerts().items():
        assert alert["labels"]["severity"] in SEVERITIES, name
        assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}, name
        page, _, anchor = alert["annotations"]["runbook_url"].partition("#")
        assert ROOT / page == RUNBOOK, name
        assert anchor == name.lower(), name
        assert name in headings, name
    assert {heading for heading in headings if heading.startswith("Chatapi")} == set(alerts())


def test_every_alert_has_a_test_where_it_fires_and_one_where_it_does_not() -> None:
    tests = yaml.safe_load((PROMETHEUS / "tests" / "alerts_test.yml").read_text())["tests"]
    seen = {"fires": set(), "is quiet": set()}
    for test in tests:
        (query,) = test["promql_expr_test"]
        name, _, what = test["name"].partition(" ")
        assert f'alertname="{name}",alertstate="firing"' in query["expr"], name
        assert bool(query["exp_samples"]) is (what == "fires"), name
        seen[what].add(name)

    assert seen == {"fires": set(alerts()), "is quiet": set(alerts())}


def test_what_postgresql_gives_is_never_added_up_over_targets() -> None:
    for where, expression in expressions():
        for function, labels, inner in re.findall(r"\b(sum|count|avg)\b(?: by \(([^)]*)\))? \(?(\S+)", expression):
            is_per_target = "instance" in labels
            assert is_per_target or not FROM_POSTGRESQL.search(inner), (where, function)


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    found = dashboard()["panels"]
    cells = [
        (x, y)
        for grid in (panel["gridPos"] for panel in found)
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    ]

    assert len({panel["id"] for panel in found}) == len(found)
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_every_panel_is_whole_and_asks_the_chosen_data_source_for_the_chosen_job() -> None:
    for panel in panels():
        title = panel["title"]
        assert panel["description"], title
        assert panel["fieldConfig"]["defaults"]["unit"], title
        assert panel["datasource"]["uid"] == "${datasource}", title
        assert [target["refId"] for target in panel["targets"]] == list("ABCDEFG"[: len(panel["targets"])]), title
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}", title
            assert "$job" in target["expr"] or "ALERTS" in target["expr"], title
    assert [each["name"] for each in dashboard()["templating"]["list"]] == ["datasource", "job", "instance"]


def test_dashboard_has_a_row_for_each_part() -> None:
    titles = [panel["title"] for panel in dashboard()["panels"] if panel["type"] == "row"]

    assert titles == ["Overview", "Web", "Replies", "Queue", "Sign-in", "Billing", "Processes"]


def test_every_metric_that_is_exposed_is_looked_at(exposed: set[str]) -> None:
    looked_at = {name for _, expression in expressions() for name in metrics_in(expression)}

    assert exposed - looked_at == set()


def test_files_for_grafana_and_prometheus_can_be_read_and_name_no_other_place() -> None:
    for path in (path for folder in ("grafana", "prometheus") for path in (ROOT / "deploy" / folder).rglob("*.*")):
        content = path.read_text()
        json.loads(content) if path == DASHBOARD else yaml.safe_load(content)
        assert re.findall(r"https?://(?!127\.0\.0\.1)", content) == [], path
    (job,) = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]
    assert job["job_name"] == "chatapi"
    assert f'job="{job["job_name"]}"' in alerts()["ChatapiDown"]["expr"]


def test_rules_have_names_of_their_own() -> None:
    names = [rule.get("alert") or rule["record"] for rule in rules()]

    assert [name for name, group in itertools.groupby(sorted(names)) if len(list(group)) > 1] == []
