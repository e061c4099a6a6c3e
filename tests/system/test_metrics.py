"""The figures of web, worker and sweeper together, whichever process is asked for them."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from tests.support import Account, wait_for
from tests.system.support import METRICS_TOKEN, System, finished


def scrape(system: System) -> dict[str, float]:
    answer = system.client.get("/metrics", headers={"Authorization": f"Bearer {METRICS_TOKEN}"})
    assert answer.status_code == 200, answer.text
    families = text_string_to_metric_families(answer.text)
    return {sample.name: sample.value for family in families for sample in family.samples if not sample.labels}


def test_metrics_add_up_what_all_processes_count_and_outlive_them(system: System, someone: Account) -> None:
    room_id = someone.open_room()
    before = scrape(system)
    reply_ids = [someone.prompt(room_id, "hello") for _ in range(6)]
    wait_for(lambda: finished(someone, room_id, reply_ids))

    system.kill("worker")
    system["worker"].restart()

    # Several, for both of the processes that may answer.
    for found in [scrape(system) for _ in range(8)]:
        for name in (
            "chatapi_replies_accepted_total",
            "chatapi_replies_completed_total",
            "chatapi_reply_duration_seconds_count",
            "chatapi_reply_first_text_seconds_count",
        ):
            assert found[name] - before[name] == 6, name
        assert found["chatapi_database_up"] == 1
        assert found["chatapi_open_streams"] == 0
