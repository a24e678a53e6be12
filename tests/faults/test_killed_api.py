"""An API killed with SIGKILL at any point: what was accepted is done once, what was asked for happens (F1, F2, F3).

A process is stopped at an exact point by a proxy that holds what it says or is told there, and then killed.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any
from uuid import UUID

import httpx
import pytest

from ai_task_orchestra import protocol
from api.transitions import MOVE, RELEASE, transition_id
from tests.support.fault_bench import FINAL, ApiProcess, FaultBench, new_mark
from tests.support.fault_proxy import Fault
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

SEEDS = (1, 2)


async def killed_at(
    bench: FaultBench, api: ApiProcess, points: list[Fault], requests: list[Any], *, answered: int = 0
) -> list[Any]:
    """Kill the API once it stands at all `points` and the last `answered` of the `requests` have their answers.

    Returns what became of each request.
    """
    asked = [asyncio.ensure_future(request) for request in requests]
    await asyncio.wait_for(asyncio.gather(*(point.reached.wait() for point in points)), 14)
    await asyncio.gather(*asked[len(asked) - answered :])  # the dispatcher may be faster than the answer
    api.kill()
    for proxy in (bench.way, bench.database):
        await proxy.break_connections()  # what was held goes nowhere any more
    bench.heal()
    return await asyncio.gather(*asked, return_exceptions=True)


async def test_a_kill_while_accepting_or_creating_loses_no_task_and_makes_none_twice(bench: FaultBench) -> None:
    marks = {point: new_mark() for point in ("unsent", "unheard", "uncommitted", "committed", "uncreated", "created")}
    says = {point: mark.encode() for point, mark in marks.items()}
    points = [
        bench.database.hold(says["unsent"]),
        bench.database.hold_reply(says["unheard"]),
        bench.database.hold(says["uncommitted"], b"COMMIT"),
        bench.database.hold_reply(says["committed"], b"COMMIT"),
        bench.way.hold(b"create_flow_run", says["uncreated"]),
        bench.way.hold_reply(b"create_flow_run", says["created"]),
    ]
    async with bench.api() as api:
        first = await api.accepted()
        # What waits for others is written in a transaction of several statements.
        waits = {point: [first] for point in ("uncommitted", "committed")}
        posts = [api.post(mark, key=mark, depends_on=waits.get(point, [])) for point, mark in marks.items()]
        answers = await killed_at(bench, api, points, posts, answered=2)
    told = [answer.status_code if isinstance(answer, httpx.Response) else None for answer in answers]
    assert told == [None, None, None, None, 201, 201]

    async def settled() -> set[str]:
        there = {point for point, mark in marks.items() if await bench.task_of_mark(mark)}
        return there if not there & {"unsent", "uncommitted"} else set()

    there = await wait_until(settled, description="what was not committed is gone")
    assert there >= {"committed", "uncreated", "created"}
    async with bench.api() as api, bench.hand() as hand:
        for point, mark in marks.items():
            again = [await api.post(mark, key=mark, depends_on=waits.get(point, [])) for _ in range(3)]
            assert [answer.status_code for answer in again] == [200 if point in there else 201, 200, 200]
            task_id = await bench.task_of_mark(mark)
            assert {answer.json()["id"] for answer in again} == {task_id}
            assert (await api.reaches(str(task_id), *FINAL))["status"] == "completed"
            assert hand.ran[str(task_id)] == 1
            keys = [run["idempotency_key"] for run in await bench.prefect.all_runs(task_id)]
            assert keys == [protocol.idempotency_key(str(task_id), 1)]


async def test_a_kill_while_a_task_moves_to_another_priority_leaves_it_whole(bench: FaultBench) -> None:
    async with bench.api() as api:
        ids = [await api.accepted(priority=5) for _ in range(6)]
        runs = [await api.run_of(task_id) for task_id in ids]
        claims = [str(transition_id(UUID(run), MOVE)).encode() for run in runs]
        deletes = [f"DELETE /api/flow_runs/{run}".encode() for run in runs]
        moved = [
            (UUID(run).bytes, UUID(task_id).bytes, b"delete", b"COMMIT") for run, task_id in zip(runs, ids, strict=True)
        ]
        points = [
            bench.way.hold(b"set_state", claims[0]),
            bench.way.hold_reply(b"set_state", claims[1]),
            bench.database.hold(*moved[2]),
            bench.database.hold_reply(*moved[3]),
            bench.way.hold(deletes[4]),
            bench.way.hold_reply(deletes[5]),
        ]
        await killed_at(bench, api, points, [api.patch(task_id, 8) for task_id in ids])
    async with bench.api() as api:

        async def moved_on() -> bool:
            return all([(await api.get(task_id))["priority"] == 8 for task_id in ids])

        # Only then a worker: it may rightly be faster than a move that Prefect has not heard of.
        await wait_until(moved_on, description="the next process has carried all moves through")
        async with bench.hand() as hand:
            for task_id in ids:
                task = await api.reaches(task_id, *FINAL)
                assert (task["status"], task["priority"], hand.ran[task_id]) == ("completed", 8, 1)
    await bench.nothing_is_live(ids)


async def test_a_kill_while_tasks_are_released_or_cancelled_finishes_both(bench: FaultBench) -> None:
    async with bench.api() as api:
        first = await api.accepted()
        held = [await api.accepted(depends_on=[first]) for _ in range(4)]
        doomed = [await api.accepted() for _ in range(2)]
        runs = [UUID(await api.run_of(task_id)) for task_id in (*held, *doomed)]
        says = ["release", "release", "released", "released", "cancel", "cancel"]
        assert says[0] == RELEASE
        points = []
        for number, (run, purpose) in enumerate(zip(runs, says, strict=True)):
            stop = bench.way.hold_reply if number % 2 else bench.way.hold
            points.append(stop(b"set_state", str(transition_id(run, purpose)).encode()))
        first_run = await api.run_of(first)
        await bench.prefect.start(first_run)
        await bench.prefect.complete(first_run)
        await killed_at(bench, api, points, [api.cancel(task_id) for task_id in doomed])
    async with bench.api() as api:
        for task_id in doomed:
            await api.reaches(task_id, "cancelled")
        async with bench.hand() as hand:
            for task_id in held:
                await api.reaches(task_id, "completed")
        assert [hand.ran[task_id] for task_id in (*held, *doomed)] == [1, 1, 1, 1, 0, 0]
    await bench.nothing_is_live([*held, *doomed])


async def test_kills_at_random_moments(bench: FaultBench) -> None:
    """Posts, moves and cancels, and a kill somewhere among them; each seed replays."""
    cancelled: set[str] = set()
    priorities: dict[str, int] = {}
    async with bench.hand(seconds=0.02) as hand:
        for seed in SEEDS:
            print(f"seed {seed}")
            dice = random.Random(seed)  # noqa: S311
            async with bench.api() as api:
                wanted = {new_mark(): dice.randint(1, 10) for _ in range(6)}
                work = [asyncio.create_task(_a_life(api, dice, *each, cancelled)) for each in wanted.items()]
                await asyncio.sleep(dice.uniform(0.1, 0.7))
                api.kill()
                await asyncio.gather(*work, return_exceptions=True)
            priorities |= wanted
        async with bench.api() as api:
            for mark, priority in priorities.items():
                answer = await api.post(mark, key=mark, priority=priority)
                assert answer.status_code in (200, 201), answer.text
                task = await api.reaches(answer.json()["id"], *FINAL)
                if task["id"] in cancelled:
                    assert task["status"] == "cancelled"
                    assert hand.ran[task["id"]] <= 1
                elif task["status"] == "completed":
                    assert hand.ran[task["id"]] == 1
                else:  # its DELETE was recorded, but the answer did not arrive
                    assert task["status"] == "cancelled"
    await bench.nothing_is_live([str(row["id"]) for row in await bench.sql("SELECT id FROM task")])


async def _a_life(api: ApiProcess, dice: random.Random, mark: str, priority: int, cancelled: set[str]) -> None:
    """One task's requests, until the API is gone."""
    await asyncio.sleep(dice.uniform(0, 0.4))
    task_id = await api.accepted(mark, key=mark, priority=priority)
    await asyncio.sleep(dice.uniform(0, 0.2))
    if dice.random() < 0.4:
        await api.patch(task_id, dice.randint(1, 10))
    if dice.random() < 0.3 and (await api.cancel(task_id)).status_code == 204:
        cancelled.add(task_id)
