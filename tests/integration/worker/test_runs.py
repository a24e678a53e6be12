"""What the worker does with the runs of its pool, on a real Prefect server."""

from __future__ import annotations

import asyncio
import itertools
import shutil
from pathlib import Path

from ai_task_orchestra import protocol
from tests.support import other_flow
from tests.support.waiting import wait_until
from tests.support.worker_bench import WorkerBench


async def test_a_run_completes_and_its_last_log_line_arrives(served: WorkerBench) -> None:
    talking, failing = await served.submit("talk", lines=100), await served.submit("fail")
    await served.reaches(talking, "Completed")
    assert "as it was told" in ((await served.reaches(failing, "Failed")).message or "")
    states = await served.states(talking)
    assert [state.name for state in states] == ["Queued", "Pending", "Running", "Completed"]
    assert [protocol.worker_of_claim(state.message) for state in states[1:3]] == ["tester", "tester"]
    lines = await served.logged(talking, "Finished in state")
    assert {f"line {number}" for number in range(100)} <= set(lines)

    async def task_completed() -> bool:
        return [task.state_name for task in await served.task_runs(talking)] == ["Completed"]

    await wait_until(task_completed, description="the task run arrived")


async def test_with_one_slot_the_order_is_priority_first_then_age(bench: WorkerBench) -> None:
    by_priority = {}
    for priority in (3, 10, 1, 7, 5, 2, 9, 4, 8, 6):
        count = 2 if priority in (5, 10) else 1
        by_priority[priority] = [await bench.submit("noop", priority=priority) for _ in range(count)]
    expected = [run for priority in reversed(protocol.PRIORITIES) for run in by_priority[priority]]
    with bench.worker(worker_limit=1):
        await bench.reaches(expected[-1], "Completed", timeout=60)
        spans = [await bench.span(run) for run in expected]
    for before, after in itertools.pairwise(spans):
        assert before[1] <= after[0]


async def test_never_more_runs_than_the_limit_and_a_free_slot_is_filled_at_once(bench: WorkerBench) -> None:
    with bench.worker(worker_limit=2, worker_poll_seconds=60):
        runs = [await bench.submit("wait", seconds=0.4) for _ in range(5)]
        for run in runs:
            await bench.reaches(run, "Completed")
        spans = [await bench.span(run) for run in runs]
    for moment, _ in spans:
        assert sum(start <= moment < end for start, end in spans) <= 2
    waits = [min(start - end for _, end in spans if end <= start) for start, _ in sorted(spans)[2:]]
    assert max(waits).total_seconds() < 5


async def test_a_run_that_becomes_due_wakes_the_worker_without_a_poll(bench: WorkerBench) -> None:
    with bench.worker(worker_poll_seconds=600):
        first = await bench.submit("noop")
        await bench.reaches(first, "Completed")
        await bench.reaches(await bench.submit("noop"), "Completed", timeout=10)


async def test_a_run_that_takes_a_while_says_in_which_process_of_which_worker(served: WorkerBench) -> None:
    run = await served.submit("wait", seconds=2)

    async def says_so() -> bool:
        return protocol.worker_of_run((await served.read(run)).infrastructure_pid) == "tester"

    await wait_until(says_so, description="the run has the worker's name and a process id")
    await served.reaches(run, "Completed")


async def test_children_hold_nothing_of_the_worker_or_of_each_other(served: WorkerBench) -> None:
    waiting = await served.submit("wait", seconds=1.5)
    await served.reaches(waiting, "Running")
    run = await served.submit("open_files")
    await served.reaches(run, "Completed")
    lines = await served.logged(run, "open: ")
    # Its link to the worker, and both ends of its event loop's wake-up.
    assert "open: 3 local, 0 pipes" in lines


async def test_a_run_knows_the_lease_of_its_worker(served: WorkerBench) -> None:
    await served.logged(await served.submit("look_at_lease"), "lease held: True")


async def test_somebody_elses_flow_is_loaded_as_its_deployment_says(served: WorkerBench, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    shutil.copy(Path(other_flow.__file__), tmp_path / "theirs" / "flow_file.py")
    await served.deployment("greet", entrypoint="flow_file.py:greet", path=str(tmp_path / "theirs"))
    await served.deployment("blocking", entrypoint="tests.support.sample_catalog:blocking")
    await served.deployment("missing", entrypoint="no_such_module.flow")
    await served.deployment("gone", entrypoint="tests.support.sample_catalog.gone")
    greet, blocking, missing, gone = await asyncio.gather(
        served.submit("greet", name="you"), served.submit("blocking"), served.submit("missing"), served.submit("gone")
    )
    await served.reaches(greet, "Completed")
    await served.reaches(blocking, "Completed")
    assert "hello you" in await served.logged(greet, "hello")
    assert "could not be loaded" in ((await served.reaches(missing, "Failed")).message or "")
    assert "no such template" in ((await served.reaches(gone, "Failed")).message or "")
