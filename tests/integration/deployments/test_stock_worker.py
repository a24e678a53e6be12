"""Prefect's own process worker keeps our order, because priorities are its work queues."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ai_task_orchestra import protocol
from ai_task_orchestra.settings import Settings
from deployments.bootstrap import bootstrap
from tests.support import servers
from tests.support.waiting import wait_until

ARRIVAL = (3, 10, 1, 7, 5, 2, 9, 5, 4, 8, 10, 6)


@pytest.fixture
def http(prefect_api_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=prefect_api_url, timeout=60) as http:
        yield http


def call(http: httpx.Client, method: str, path: str, body: Any = None) -> Any:
    answer = http.request(method, path, json=body)
    answer.raise_for_status()
    return answer.json() if answer.content else None


async def test_a_stock_process_worker_with_a_limit_starts_the_most_urgent_run_first(
    http: httpx.Client, prefect_api_url: str, tmp_path: Path
) -> None:
    (tmp_path / "templates").mkdir()
    pool = f"pool-{uuid.uuid4().hex[:8]}"
    await bootstrap(
        Settings(home=tmp_path, templates_dir=tmp_path / "templates", work_pool=pool, prefect_api_url=prefect_api_url)
    )
    # Its runs do nothing: what counts is the order in which they are claimed.
    nothing = {"job_configuration": {"command": f"{sys.executable} -S -c pass"}, "variables": {"type": "object"}}
    call(http, "PATCH", f"/work_pools/{pool}", {"base_job_template": nothing})
    flow = call(http, "POST", "/flows/", {"name": pool})
    deployment = {"name": pool, "flow_id": flow["id"], "work_pool_name": pool, "work_queue_name": "priority-5"}
    made = call(http, "POST", "/deployments/", deployment | {"entrypoint": "nowhere.py:flow"})
    runs: dict[int, list[str]] = {priority: [] for priority in protocol.PRIORITIES}
    for priority in ARRIVAL:
        wanted = {
            "work_queue_name": protocol.queue_name(priority),
            "state": {"type": "SCHEDULED", "name": protocol.STATE_QUEUED},
        }
        run = call(http, "POST", f"/deployments/{made['id']}/create_flow_run", wanted)
        runs[priority].append(run["id"])
    expected = [run for priority in reversed(protocol.PRIORITIES) for run in runs[priority]]

    def claimed() -> list[str]:
        """The runs in the order in which they were claimed, once all have been."""
        found = []
        for run in expected:
            states = http.get("/flow_run_states/", params={"flow_run_id": run}).raise_for_status().json()
            times = [state["timestamp"] for state in states if state["type"] == "PENDING"]
            if not times:
                return []
            found.append((min(times), run))
        return [run for _, run in sorted(found)]

    environment = servers.prefect_environment(tmp_path) | {
        "PREFECT_API_URL": prefect_api_url,
        "PREFECT_WORKER_QUERY_SECONDS": "1",
    }
    worker = ["-m", "prefect", "worker", "start", "--pool", pool, "--type", "process", "--limit", "1"]
    log = tmp_path / "worker.log"
    with servers.process([sys.executable, *worker], env=environment, log=log, cwd=tmp_path):
        try:
            order = await wait_until(claimed, timeout=160, description="the worker has claimed every run")
        finally:
            print(log.read_text())  # what pytest shows of a failed test
    assert order == expected
