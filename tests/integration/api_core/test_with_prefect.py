"""What must hold against the real Prefect: its states, its queues, its order. A worker is played by hand."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from ai_task_orchestra import protocol
from ai_task_orchestra.errors import ConflictError
from ai_task_orchestra.settings import Settings
from tests.support.core_bench import CoreBench, core_settings, open_bench
from tests.support.prefect_bench import PrefectBench
from tests.support.servers import free_port
from tests.support.waiting import wait_until


async def test_a_dependent_is_hidden_until_its_dependency_completes(bench: CoreBench, prefect: PrefectBench) -> None:
    first = await bench.submit()
    second = await bench.submit(depends_on=[first])
    first_run, second_run = await bench.run_of(first), await bench.run_of(second, state=protocol.STATE_HELD)
    assert await prefect.due() == [first_run]

    await prefect.start(first_run)
    await prefect.complete(first_run)

    assert await bench.run_of(second, state=protocol.STATE_QUEUED) == second_run
    assert await prefect.due() == [second_run]


async def test_a_failure_cancels_the_held_dependent_in_prefect_too(bench: CoreBench, prefect: PrefectBench) -> None:
    first = await bench.submit()
    second = await bench.submit(depends_on=[first])
    await bench.run_of(second, state=protocol.STATE_HELD)
    first_run = await bench.run_of(first)

    await prefect.start(first_run)
    await prefect.fail(first_run, "step 'x': no such file")

    assert ((await bench.status(first, "failed")).error or {})["message"] == "step 'x': no such file"
    assert ((await bench.status(second, "cancelled")).error or {})["type"] == "dependency_failed"
    await bench.run_of(second, state="Cancelled")


async def test_the_order_of_the_queues_follows_the_priorities_even_when_they_change(
    bench: CoreBench, prefect: PrefectBench
) -> None:
    ids = {priority: await bench.submit(priority=priority) for priority in (5, 1, 10, 7)}
    for task_id in ids.values():
        await bench.run_of(task_id)
    moved = await bench.prioritise(ids[1], 9)

    runs = {priority: await bench.run_of(task_id) for priority, task_id in ids.items()}
    assert await prefect.due() == [runs[10], runs[1], runs[7], runs[5]]
    run = await prefect.run(moved.flow_run_id or "")
    assert run is not None and run["work_queue_name"] == "priority-9"
    assert len(await prefect.all_runs(ids[1])) == 1


async def test_moves_and_claims_that_race_end_as_one_or_the_other(bench: CoreBench, prefect: PrefectBench) -> None:
    for delay in (0.0, 0.01, 0.03):
        task_id = await bench.submit(priority=5)
        run_id = await bench.run_of(task_id)

        async def move(task_id: str = task_id) -> bool:
            try:
                await bench.prioritise(task_id, 8)
            except ConflictError:
                return False
            return True

        async def take(run_id: str = run_id, delay: float = delay) -> bool:
            await asyncio.sleep(delay)
            response = await prefect.http.post(f"/flow_runs/{run_id}/set_state", json={"state": {"type": "PENDING"}})
            return response.status_code < 300 and response.json()["status"] == "ACCEPT"

        moved, taken = await asyncio.gather(move(), take())
        assert moved != taken
        assert (await bench.get(task_id)).priority == (8 if moved else 5)


async def test_queued_and_running_tasks_are_cancelled(bench: CoreBench, prefect: PrefectBench) -> None:
    queued, running = await bench.submit(), await bench.submit()
    queued_run, running_run = await bench.run_of(queued), await bench.run_of(running)
    await prefect.start(running_run)

    await bench.cancel(queued)
    await bench.cancel(running)

    assert (await bench.get(queued)).status == "cancelled"
    assert not await prefect.claim(queued_run)
    await bench.run_of(running, state="Cancelling")
    await prefect.set(running_run, "CANCELLED", force=True)
    await bench.status(running, "cancelled")


async def test_a_lost_attempt_is_followed_by_another_run(bench: CoreBench, prefect: PrefectBench) -> None:
    task_id = await bench.submit(priority=3)
    first = await bench.run_of(task_id)
    await prefect.start(first)
    await prefect.set(first, "CRASHED", message="Process killed.")

    second = await bench.run_of(task_id, other_than=first, state=protocol.STATE_QUEUED)
    run = await prefect.run(second)
    assert run is not None and run["work_queue_name"] == "priority-3"
    await prefect.start(second)
    await prefect.complete(second)
    view = await bench.status(task_id, "completed")
    assert [attempt.outcome for attempt in view.attempts] == ["crashed", "completed"]


async def test_quick_runs_become_tasks(bench: CoreBench, prefect: PrefectBench) -> None:
    run_id = await prefect.quick_run(parameters={"x": {"a": 1}}, work_queue_name="priority-7")

    async def found() -> bool:
        return any(view.id == run_id for view in (await bench.service.list(tenant="default"))[0])

    await wait_until(found, description="the quick run is a task")
    view = await bench.get(run_id)
    assert (view.template, view.priority, view.parameters) == (prefect.template, 7, {"x": {"a": 1}})


async def test_a_worker_that_stops_beating_loses_its_run(
    settings: Settings, prefect: PrefectBench, tmp_path: Path, prefect_api_url: str
) -> None:
    quick = core_settings(
        tmp_path, settings.database_url or "", prefect_api_url, prefect.pool, worker_lease_seconds=1.5
    )
    await prefect.heartbeat("machine")
    async with open_bench(quick, prefect) as bench:
        task_id = await bench.submit()
        run_id = await bench.run_of(task_id)
        await prefect.start(run_id, "machine")
        await bench.run_of(task_id, other_than=run_id)
        lost = await prefect.run(run_id)
        assert lost is not None and lost["state_type"] == "CRASHED"


async def test_logs_come_with_level_and_step(bench: CoreBench, prefect: PrefectBench) -> None:
    task_id = await bench.submit()
    run_id = await bench.run_of(task_id)
    task_run = await prefect.post(
        "/task_runs/", {"flow_run_id": run_id, "task_key": "t", "dynamic_key": "0", "name": "clone"}
    )
    moments = [f"2026-01-01T00:00:0{second}Z" for second in range(3)]
    logs = [
        {"name": "n", "level": 20, "message": "begun", "timestamp": moments[0], "flow_run_id": run_id},
        {"name": "n", "level": 40, "message": "broke", "timestamp": moments[1], "flow_run_id": run_id}
        | {"task_run_id": task_run["id"]},
        {"name": "n", "level": 20, "message": "over", "timestamp": moments[2], "flow_run_id": run_id},
    ]
    await prefect.post("/logs/", logs)

    lines = await bench.service.logs(task_id, tenant="default", limit=2, offset=0)
    assert [(line.level, line.step, line.message) for line in lines] == [
        ("INFO", None, "begun"),
        ("ERROR", "clone", "broke"),
    ]
    rest = await bench.service.logs(task_id, tenant="default", limit=2, offset=2)
    assert [line.message for line in rest] == ["over"]


async def test_the_page_of_a_run_is_where_prefects_ui_has_it(bench: CoreBench, prefect: PrefectBench) -> None:
    task_id = await bench.submit()
    await bench.run_of(task_id)
    url = (await bench.get(task_id)).flow_run_url
    assert url is not None
    answer = await prefect.http.get(url, headers={"Accept": "text/html"}, follow_redirects=True)
    assert answer.status_code == 200
    assert "text/html" in answer.headers["content-type"]


async def test_a_task_submitted_while_prefect_is_away_is_dispatched_when_it_is_back(
    settings: Settings, prefect: PrefectBench, tmp_path: Path
) -> None:
    port = free_port()
    away = core_settings(tmp_path, settings.database_url or "", f"http://127.0.0.1:{port}/api", prefect.pool)
    async with open_bench(away, prefect) as bench:
        task_id = await bench.submit(priority=3)
        assert "does not answer" in (await bench.service.readiness())["prefect"]

        upstream = prefect.http.base_url
        server = await _forward(port, upstream.host, upstream.port or 80)
        try:
            run = await prefect.run(await bench.run_of(task_id))
            assert run is not None and run["work_queue_name"] == "priority-3"
            assert await bench.service.readiness() == {}
        finally:
            server.close()
    assert len(await prefect.all_runs()) == 1


@pytest.mark.parametrize("value", [{"a": "\u00e9\u4e16 \U0001f600"}, {"a": [None, True, 1e-9, -(2**53)]}])
async def test_parameters_arrive_as_they_were_given(
    bench: CoreBench, prefect: PrefectBench, value: dict[str, object]
) -> None:
    task_id = await bench.submit(parameters={"x": value})
    run = await prefect.run(await bench.run_of(task_id))
    assert run is not None and run["parameters"] == {"x": value}


async def _forward(port: int, host: str, target: int) -> asyncio.Server:
    """A plain TCP forwarder: Prefect comes back at the address where nobody answered."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(host, target)
        await asyncio.gather(_copy(reader, back), _copy(there, writer))

    return await asyncio.start_server(serve, "127.0.0.1", port, family=socket.AF_INET)


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
    except OSError:
        pass
    finally:
        target.close()
