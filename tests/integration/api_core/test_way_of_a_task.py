"""One task from its submission to its end, with a worker played by hand."""

from __future__ import annotations

from ai_task_orchestra import protocol
from tests.support.core_bench import CoreBench
from tests.support.prefect_bench import PrefectBench


async def test_a_submitted_task_gets_a_flow_run_in_the_queue_of_its_priority(
    bench: CoreBench, prefect: PrefectBench
) -> None:
    task_id = await bench.submit(parameters={"x": {"deep": [1, 2.0, "three"]}}, priority=8)

    run_id = await bench.run_of(task_id)

    run = await prefect.run(run_id)
    assert run is not None
    assert run["work_queue_name"] == "priority-8"
    assert run["work_pool_name"] == prefect.pool
    assert run["state_name"] == protocol.STATE_QUEUED
    assert run["name"] == f"{prefect.template}-{task_id[:8]}"
    assert run["parameters"] == {"x": {"deep": [1, 2.0, "three"]}}
    assert run["idempotency_key"] == protocol.idempotency_key(task_id, 1)
    assert set(run["tags"]) >= {"priority-8", f"task:{task_id}"}
    assert run["labels"][protocol.LABEL_TASK] == task_id
    assert run["labels"][protocol.LABEL_TENANT] == "default"
    assert await prefect.due() == [run_id]


async def test_a_completed_run_brings_result_usage_times_and_its_attempt(
    bench: CoreBench, prefect: PrefectBench
) -> None:
    task_id = await bench.submit()
    run_id = await bench.run_of(task_id)

    await prefect.start(run_id, "machine-1")
    running = await bench.status(task_id, "running")
    assert running.started_at is not None
    assert running.completed_at is None
    await prefect.complete(run_id, {"output": "forty-two"}, {"memory_used_gb": 1.5})

    done = await bench.status(task_id, "completed")
    assert done.result == {"output": "forty-two"}
    assert done.resource_usage == {"memory_used_gb": 1.5}
    assert done.error is None
    assert done.started_at == running.started_at
    assert done.completed_at is not None and done.started_at is not None
    assert done.created_at < done.started_at < done.completed_at
    [attempt] = done.attempts
    assert (attempt.number, attempt.outcome) == (1, "completed")
    assert attempt.started == done.started_at
    assert attempt.ended == done.completed_at
    assert done.flow_run_url == f"{bench.settings.prefect_ui_url}/runs/flow-run/{run_id}"
