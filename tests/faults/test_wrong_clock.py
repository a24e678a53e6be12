"""An API or a worker whose clock is an hour wrong: nothing is early, nothing is late, nothing is stuck (F41)."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect.states import Scheduled

from tests.support.core_bench import write_template
from tests.support.fault_bench import ApiProcess, FaultBench
from tests.support.waiting import wait_until
from tests.support.worker_bench import open_bench

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOUR = 3600
EVENTS = b"/events/out"
RETRY_SECONDS = 2
#: So seldom that it does not count.
NEVER = "600"


def wrong_by(seconds: int, module: str) -> tuple[str, ...]:
    return ("tests.support.wrong_clock", str(seconds), module)


@pytest.mark.parametrize("ahead", [HOUR, -HOUR])
async def test_an_api_with_a_wrong_clock_does_everything_at_its_time(bench: FaultBench, ahead: int) -> None:
    """By its regular looks alone, without events and without reading everything again and again."""
    prefect = bench.prefect
    retried = f"{prefect.template}-retried"
    write_template(bench.folder / "templates", retried, retries=1, retry_delay_seconds=RETRY_SECONDS)
    await prefect.deploy(retried)
    bench.way.lose_replies(EVENTS)
    async with bench.api(*wrong_by(ahead, "api.serve"), ORCHESTRA_MIRROR_FULL_SECONDS=NEVER) as api:
        assert abs(await api.clock_ahead() - ahead) < HOUR / 2
        await fails_and_waits(bench, api, retried)
        async with bench.hand() as hand:
            [first, *others] = [await api.accepted() for _ in range(6)]
            for task_id in (first, *others):
                await api.reaches(task_id, "completed")
            quick = await prefect.quick_run(parameters={"x": {}})
            await wait_until(lambda: known(api, quick), timeout=30, description="the quick run is a task")
            await api.reaches(quick, "completed")
        assert set(hand.ran.values()) == {1}
        await is_asked_before_it_is_forced(bench, api, first)


async def known(api: ApiProcess, task_id: str) -> bool:
    return (await api.http.get(f"/tasks/{task_id}")).status_code == 200


async def fails_and_waits(bench: FaultBench, api: ApiProcess, template: str) -> None:
    """The second attempt begins after its delay, not an hour later or at once."""
    prefect = bench.prefect
    task_id = await api.accepted(template=template)
    first = await api.run_of(task_id)
    await prefect.start(first)
    await prefect.fail(first)

    async def second() -> dict[str, Any] | None:
        [*_, last] = await prefect.all_runs(task_id)
        return last if last["id"] != first else None

    run = await wait_until(second, timeout=60, description="a second attempt")
    failed = await prefect.run(first)
    assert failed is not None
    waited = datetime.fromisoformat(run["created"]) - datetime.fromisoformat(failed["state"]["timestamp"])
    assert waited >= timedelta(seconds=RETRY_SECONDS)
    assert run["id"] in await prefect.due()
    await api.cancel(task_id)
    await api.reaches(task_id, "cancelled")


async def is_asked_before_it_is_forced(bench: FaultBench, api: ApiProcess, task_id: str) -> None:
    """Somebody starts a finished task's run by hand: its worker gets the time to stop it."""
    prefect, run_id = bench.prefect, (await api.get(task_id))["flow_run_id"]
    await prefect.set(run_id, "SCHEDULED")
    await prefect.start(run_id)

    async def stopping() -> str | None:
        run = await prefect.run(run_id)
        state = str(run["state_type"]) if run else ""
        return state if state in ("CANCELLING", "CANCELLED") else None

    assert await wait_until(stopping, timeout=30, description="the run is stopped") == "CANCELLING"
    await prefect.set(run_id, "CANCELLED", force=True)


async def test_an_api_with_a_clock_ahead_hears_events(bench: FaultBench) -> None:
    """Here nothing but an event can tell it in time."""
    seldom = dict.fromkeys(("ORCHESTRA_MIRROR_ACTIVE_SECONDS", "ORCHESTRA_MIRROR_FULL_SECONDS"), NEVER)
    async with bench.api(*wrong_by(HOUR, "api.serve"), **seldom, ORCHESTRA_ADOPT_SECONDS=NEVER) as api:
        await wait_until(lambda: api.events("events_connected"), timeout=60, description="it listens")
        async with bench.hand():
            await api.reaches(await api.accepted(), "completed")


@pytest.mark.parametrize("ahead", [HOUR, -HOUR])
async def test_a_worker_with_a_wrong_clock_starts_what_is_due_and_nothing_else(
    prefect_api_url: str, tmp_path: Path, ahead: int
) -> None:
    async with open_bench(prefect_api_url, tmp_path) as bench:
        later = await bench.client.create_flow_run_from_deployment(
            await bench.deployment("noop"), state=Scheduled(scheduled_time=datetime.now(UTC) + timedelta(minutes=30))
        )
        argv = [sys.executable, "-m", *wrong_by(ahead, "ai_task_orchestra.worker"), "--pool", bench.pool]
        with bench.worker(argv=argv, worker_limit=1, worker_grace_seconds=0.5, log_level="DEBUG") as worker:
            first = await bench.submit("noop")
            await bench.reaches(first, "Completed")
            assert (await bench.read(later.id)).state_name == "Scheduled"
            # A claim that it gives back is due again at once.
            for child in await worker.parked(2):
                child.suspend()  # it can't accept a run
            given_back = await bench.submit("noop")
            await bench.reaches(given_back, "Pending")
            await worker.stopped()
            run = await bench.read(given_back)
            assert run.state_name == "Queued"
            assert run.next_scheduled_start_time is not None
            assert run.next_scheduled_start_time <= datetime.now(UTC) + timedelta(minutes=1)
