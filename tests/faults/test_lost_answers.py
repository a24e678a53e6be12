"""One API between unreliable connections: to its clients, to PostgreSQL and to Prefect (F4, F7, F10, F15, F16, F17)."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import httpx
import pytest
import pytest_asyncio

from api.transitions import MOVE, transition_id
from tests.support.core_bench import write_template
from tests.support.fault_bench import FINAL, ApiProcess, FaultBench, new_mark
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

EVENTS = b"/events/out"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(bench: FaultBench) -> AsyncIterator[ApiProcess]:
    """The API that the tests of this module share."""
    async with bench.api() as api:
        yield api


async def insist(api: ApiProcess, mark: str, **fields: Any) -> str:
    """A client that repeats its request, under one key, until it is told that there is a task; its id."""

    async def told() -> str | None:
        answer = await api.post(mark, key=mark, **fields)
        if answer.status_code in (200, 201):
            return str(answer.json()["id"])
        assert answer.status_code in (409, 503), answer.text
        assert answer.json()["code"] in ("idempotency_busy", "storage_unavailable")
        return None

    return await wait_until(told, timeout=60, description="the task is accepted")


async def completed_once(bench: FaultBench, api: ApiProcess, ids: list[str], ran: dict[str, int]) -> None:
    for task_id in ids:
        assert (await api.reaches(task_id, *FINAL))["status"] == "completed"
    assert [ran[task_id] for task_id in ids] == [1] * len(ids)
    await bench.nothing_is_live(ids)


async def test_a_client_that_gave_up_waiting_finds_its_task_by_its_key(bench: FaultBench, api: ApiProcess) -> None:
    mark, wanted = new_mark(), {"depends_on": [await api.accepted()]}
    slow = bench.database.hold(mark.encode(), b"COMMIT", times=1)
    with pytest.raises(httpx.ReadTimeout):
        await api.post(mark, key=mark, timeout=0.5, **wanted)
    await slow.reached.wait()
    busy = await asyncio.gather(*(api.post(mark, key=mark, **wanted) for _ in range(3)))
    assert {(answer.status_code, answer.json()["code"]) for answer in busy} == {(409, "idempotency_busy")}
    slow.release()

    task_id = await insist(api, mark, **wanted)
    again = await asyncio.gather(*(api.post(mark, key=mark, **wanted) for _ in range(20)))
    assert {answer.status_code for answer in again} == {200}
    assert {answer.headers["Idempotent-Replayed"] for answer in again} == {"true"}
    assert {(answer.json()["id"], answer.json()["created_at"]) for answer in again} == {
        (task_id, again[0].json()["created_at"])
    }
    assert (await api.post("other", key=mark)).status_code == 422
    assert await bench.task_of_mark(mark) == task_id


async def test_a_commit_whose_answer_is_lost_is_found_by_its_key(bench: FaultBench, api: ApiProcess) -> None:
    mark, wanted = new_mark(), {"depends_on": [await api.accepted()]}
    bench.database.lose_replies(mark.encode(), b"COMMIT", times=1)
    unknown = await api.post(mark, key=mark, **wanted)
    assert (unknown.status_code, unknown.json()["code"]) == (503, "storage_unavailable")
    assert int(unknown.headers["Retry-After"]) > 0
    task_id = await bench.task_of_mark(mark)
    again = await api.post(mark, key=mark, **wanted)
    assert (again.status_code, again.json()["id"]) == (200, task_id)
    async with bench.hand() as hand:
        await completed_once(bench, api, [str(task_id)], hand.ran)


async def test_answers_of_postgresql_that_are_lost_anywhere_double_nothing(bench: FaultBench, api: ApiProcess) -> None:
    bench.database.random = random.Random(11)  # noqa: S311
    lossy = [bench.database.lose_replies(what, chance=0.15) for what in (b"COMMIT", b"mark-")]
    async with bench.hand() as hand:
        first = await insist(api, new_mark())
        ids = [first, *[await insist(api, new_mark(), depends_on=[first]) for _ in range(5)]]
        ids += [await insist(api, new_mark()) for _ in range(5)]
        await completed_once(bench, api, ids, hand.ran)
    assert all(fault.hits > 0 for fault in lossy)


async def test_tasks_are_accepted_while_prefect_is_away_and_run_when_it_is_back(
    bench: FaultBench, api: ApiProcess
) -> None:
    await bench.way.cut()
    try:
        ids = [await api.accepted(priority=number) for number in range(1, 11)]
        ready = await api.http.get(api.http.base_url.join("/ready"))
        assert (ready.status_code, list(ready.json()["missing"])) == (503, ["prefect"])
        assert {(await api.get(task_id))["status"] for task_id in ids} == {"queued"}
    finally:
        await bench.way.open()
    async with bench.hand() as hand:
        await completed_once(bench, api, ids, hand.ran)
    assert (await api.http.get(api.http.base_url.join("/ready"))).status_code == 200


async def test_answers_of_prefect_that_are_lost_make_no_twin(bench: FaultBench, api: ApiProcess) -> None:
    bench.way.random = random.Random(16)  # noqa: S311
    lossy = [bench.way.lose_replies(path, chance=0.3) for path in (b"/create_flow_run", b"/set_state")]
    first = await api.accepted(priority=2)
    ids = [first, *[await api.accepted(depends_on=[first]) for _ in range(4)]]
    ids += [await api.accepted(priority=3) for _ in range(4)]
    moves = await asyncio.gather(*(api.patch(task_id, 9) for task_id in ids[-2:]))
    assert {answer.status_code for answer in moves} <= {200, 503}
    async with bench.hand() as hand:
        await completed_once(bench, api, ids, hand.ran)
    for task_id in ids:
        assert len(await bench.prefect.all_runs(task_id)) == 1
    assert all(fault.hits > 0 for fault in lossy)


async def test_a_release_whose_answer_is_lost_takes_no_run_from_the_worker_that_has_it(
    bench: FaultBench, api: ApiProcess
) -> None:
    prefect, first = bench.prefect, await api.accepted()
    dependent = await api.accepted(depends_on=[first])
    first_run, run = await api.run_of(first), await api.run_of(dependent)
    unheard = bench.way.hold_reply(b"/set_state", str(transition_id(UUID(run), "released")).encode())
    postponed = api.events("dispatch_postponed")
    await prefect.start(first_run)
    await prefect.complete(first_run)
    await unheard.reached.wait()
    await prefect.start(run)
    await bench.way.break_connections()  # the answer is lost with them

    def noticed() -> bool:
        return api.events("dispatch_postponed") > postponed or unheard.hits > 1

    await wait_until(noticed, description="the dispatcher knows that it has no answer")
    bench.heal()
    await api.reaches(dependent, "running")
    await prefect.complete(run)
    await api.reaches(dependent, "completed")
    states = (await prefect.http.get("/flow_run_states/", params={"flow_run_id": run})).json()
    assert [state["type"] for state in sorted(states, key=lambda state: state["timestamp"])][-3:] == [
        "PENDING",
        "RUNNING",
        "COMPLETED",
    ]


async def test_a_move_that_the_leader_finishes_meanwhile_is_no_conflict(bench: FaultBench, api: ApiProcess) -> None:
    task_id = await api.accepted(priority=3)
    run = await api.run_of(task_id)
    slow = bench.way.hold_reply(b"/set_state", str(transition_id(UUID(run), MOVE)).encode(), times=1)
    moving = asyncio.create_task(api.patch(task_id, 9))
    await slow.reached.wait()

    async def moved() -> bool:
        return (await api.get(task_id))["priority"] == 9 and await bench.prefect.run(run) is None

    await wait_until(moved, description="the leader has moved the task in its place")
    slow.release()
    assert (await moving).status_code == 200
    async with bench.hand() as hand:
        await completed_once(bench, api, [task_id], hand.ran)


async def test_without_events_or_with_a_broken_stream_everything_arrives(bench: FaultBench, api: ApiProcess) -> None:
    async def cut_regularly() -> None:
        while True:
            await asyncio.sleep(1)
            await bench.way.break_connections(EVENTS)

    async with bench.hand() as hand:
        deaf = bench.way.lose_replies(EVENTS)
        await bench.way.break_connections(EVENTS)
        first = await api.accepted()
        ids = [first, await api.accepted(depends_on=[first])]
        await completed_once(bench, api, ids, hand.ran)
        assert deaf.reached.is_set()
        bench.heal()

        cutting = asyncio.create_task(cut_regularly())
        try:
            for _ in range(3):
                ids = [await api.accepted(), await api.accepted()]
                await completed_once(bench, api, ids, hand.ran)
        finally:
            cutting.cancel()
            await asyncio.gather(cutting, return_exceptions=True)


async def test_a_template_that_changes_before_the_dispatch_leaves_one_run_with_what_was_asked_for(
    bench: FaultBench, api: ApiProcess
) -> None:
    """The row holds parameters and policy as they were accepted; the flow and its deployment are those of the start."""
    prefect, marks = bench.prefect, [new_mark(), new_mark()]
    unheard = bench.way.lose_replies(b"create_flow_run", marks[1].encode())
    second = await api.accepted(marks[1])
    await unheard.reached.wait()  # its run exists, and the API does not know
    await bench.way.cut()
    first = await api.accepted(marks[0])
    try:
        write_template(bench.folder / "templates", prefect.template, description="Changed.", retries=3)

        async def known() -> bool:
            shown = await api.http.get(f"/templates/{prefect.template}")
            return bool(shown.json()["description"] == "Changed.")

        await wait_until(known, description="the API has read the new version")
        await prefect.http.delete(f"/deployments/{prefect.deployment_id}")  # and its scheduled runs with it
        prefect.deployment_id = await prefect.deploy(prefect.template)
    finally:
        unheard.release()
        await bench.way.open()
    async with bench.hand() as hand:
        await completed_once(bench, api, [first, second], hand.ran)
    for task_id, mark in zip((first, second), marks, strict=True):
        [run] = await prefect.all_runs(task_id)
        assert run["parameters"] == {"x": {"mark": mark}}
        assert run["deployment_id"] == prefect.deployment_id
        [row] = await bench.sql("SELECT retries FROM task WHERE id = $1::uuid", task_id)
        assert row["retries"] == 0


async def test_a_frozen_api_goes_on_where_it_was(bench: FaultBench, api: ApiProcess) -> None:
    async with bench.hand() as hand:
        ids = [await api.accepted() for _ in range(4)]
        api.signal(signal.SIGSTOP)
        await asyncio.sleep(3)
        api.signal(signal.SIGCONT)
        await completed_once(bench, api, ids, hand.ran)
