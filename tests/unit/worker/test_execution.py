"""What becomes of a claimed run, with children and a Prefect that do as the test says."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

import pytest

from ai_task_orchestra.lease import Lease, now
from ai_task_orchestra.worker.child_link import LinkBrokenError, Message
from ai_task_orchestra.worker.child_pool import ChildPool
from ai_task_orchestra.worker.execution import Execution, Surroundings
from ai_task_orchestra.worker.prefect_gateway import Candidate, Deployment, PrefectGateway
from ai_task_orchestra.worker.template_client import Child, Exit
from tests.support.waiting import wait_until

ACCEPTED: Message = {"event": "accepted"}
FINISHED: Message = {"event": "finished", "state": "COMPLETED"}
ENDS_WELL = Exit(0)


class FakeChild:
    """Reports what it is told to, then it ends; without an end it goes on until it is killed."""

    pid = 1

    def __init__(self, *reports: Message, ends: Exit | None = ENDS_WELL, takes_orders: bool = True) -> None:
        self.orders: list[Message] = []
        self.killed = False
        self._takes_orders = takes_orders
        self._ends = ends
        self._reports = list(reports)
        self.exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

    async def send(self, order: Message) -> None:
        if not self._takes_orders:
            raise LinkBrokenError
        self.orders.append(order)

    async def report(self) -> Message | None:
        told = self._reports.pop(0) if self._reports else None
        if not self._reports and self._ends and not self.exited.done():
            self.exited.set_result(self._ends)
        if told is None:
            await self.exited
        return told

    async def kill(self) -> Exit:
        if not self.exited.done():
            self.killed = True
            self.exited.set_result(self._ends or Exit(-9))
        return self.exited.result()


class FakePool:
    flows = frozenset({"noop"})

    def __init__(self, *children: FakeChild) -> None:
        self.children = list(children)

    async def has_flow(self, name: str) -> bool:
        return name in self.flows

    async def take(self) -> Child:
        if not self.children:
            await asyncio.Event().wait()  # for ever
        return cast(Child, self.children.pop(0))


class FakeGateway:
    def __init__(self, entrypoint: str = "catalog.noop") -> None:
        self.answer = entrypoint
        self.settled: list[tuple[str, ...]] = []

    async def deployment(self, deployment_id: UUID) -> Deployment:
        return Deployment("a-deployment", self.answer)

    async def crashed(self, run_id: UUID, message: str) -> None:
        self.settled.append(("crashed", message))

    async def cancelled(self, run_id: UUID, *message: str) -> None:
        self.settled.append(("cancelled", *message))

    async def hand_back(self, run_id: UUID) -> None:
        self.settled.append(("handed back",))

    async def failed(self, run_id: UUID, message: str) -> None:
        self.settled.append(("failed", message))

    async def put_back(self, run_id: UUID) -> None:
        self.settled.append(("put back",))


class Scene:
    def __init__(self, folder: Path, *children: FakeChild, entrypoint: str = "catalog.noop") -> None:
        self.gateway, self.pool = FakeGateway(entrypoint), FakePool(*children)
        self.released = 0
        self.lease = Lease(20)
        self.lease.renew(now())
        self.workspaces = folder / "workspaces"
        around = Surroundings(
            cast(PrefectGateway, self.gateway),
            cast(ChildPool, self.pool),
            "catalog",
            folder / "scratch",
            self.workspaces,
            self.lease,
            "w1",
        )
        self.execution = Execution(Candidate(uuid4(), uuid4(), {"name": "a-run"}), around)

    def release(self) -> None:
        self.released += 1

    async def execute(self) -> list[tuple[str, ...]]:
        await self.execution.execute(self.release)
        assert self.released
        return self.gateway.settled


async def test_a_run_that_its_child_finished_is_left_as_it_is(tmp_path: Path) -> None:
    child = FakeChild(ACCEPTED, FINISHED)
    assert await Scene(tmp_path, child).execute() == []
    [order] = child.orders
    names = {"deployment": "a-deployment"}
    assert order | {"lease": {}} == {"op": "run", "flow_run": {"name": "a-run"}, "flow": "noop"} | {
        "names": names,
        "lease": {},
    }
    assert not child.killed


async def test_a_child_that_dies_before_it_accepts_is_replaced_and_the_run_is_executed_once(tmp_path: Path) -> None:
    deaf, dead, alive = FakeChild(takes_orders=False), FakeChild(ends=Exit(-9)), FakeChild(ACCEPTED, FINISHED)
    assert await Scene(tmp_path, deaf, dead, alive).execute() == []
    assert len(alive.orders) == 1


async def test_a_run_that_no_child_survives_is_not_given_to_more(tmp_path: Path) -> None:
    children = [FakeChild(ends=Exit(1)) for _ in range(4)]
    [(what, message)] = await Scene(tmp_path, *children).execute()
    assert what == "crashed" and "3 processes" in message
    assert not children[3].orders


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (Exit(-9), "the process running this task was killed by signal 9"),
        (Exit(3), "the process running this task exited with code 3"),
        (Exit(None), "the process running this task ended together with the worker's template process"),
    ],
    ids=["signal", "code", "template process"],
)
async def test_a_run_whose_child_dies_is_crashed_and_says_how(tmp_path: Path, how: Exit, message: str) -> None:
    assert await Scene(tmp_path, FakeChild(ACCEPTED, ends=how)).execute() == [("crashed", message)]


async def test_an_engine_that_stops_without_a_final_state_is_a_crash(tmp_path: Path) -> None:
    stopped = FakeChild(ACCEPTED, {"event": "finished", "stopped": "aborted by orchestrator"})
    [(what, message)] = await Scene(tmp_path, stopped).execute()
    assert what == "crashed" and "aborted by orchestrator" in message


async def test_a_flow_that_the_catalog_does_not_have_is_a_failure_with_a_clear_message(tmp_path: Path) -> None:
    [(what, message)] = await Scene(tmp_path, entrypoint="catalog.gone").execute()
    assert what == "failed" and "catalog.gone does not exist on this worker" in message


async def test_cancelling_kills_the_child_before_the_run_is_cancelled(tmp_path: Path) -> None:
    child = FakeChild(ACCEPTED, ends=None)
    scene = Scene(tmp_path, child)
    task = asyncio.create_task(scene.execute())
    await wait_until(lambda: child.orders, description="the run was handed over")
    scene.execution.end("cancelled")
    assert await task == [("cancelled",)]
    assert child.killed


async def test_ending_before_a_child_was_found_gives_the_claim_back_or_cancels(tmp_path: Path) -> None:
    for reason, settled in (("worker stopped", "put back"), ("cancelled", "cancelled")):
        scene = Scene(tmp_path)
        task = asyncio.create_task(scene.execute())
        await asyncio.sleep(0)
        scene.execution.end(cast(Any, reason))
        assert await task == [(settled,)]


async def test_a_run_that_is_ended_by_a_stopping_worker_is_handed_back(tmp_path: Path) -> None:
    child = FakeChild(ACCEPTED, ends=None)
    scene = Scene(tmp_path, child)
    task = asyncio.create_task(scene.execute())
    await wait_until(lambda: scene.execution._begun, description="the child has the run")
    scene.execution.end_unless_begun()
    assert not child.killed  # it has begun, so it may go on for the time of grace
    scene.execution.end("worker stopped")
    assert await task == [("handed back",)]


async def test_what_no_child_has_accepted_yet_is_left_to_others_at_once(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    task = asyncio.create_task(scene.execute())
    await asyncio.sleep(0)
    scene.execution.end_unless_begun()
    assert await task == [("put back",)]


async def test_a_worker_that_slept_on_its_claim_does_not_begin_the_run(tmp_path: Path) -> None:
    child = FakeChild(ACCEPTED, FINISHED)
    scene = Scene(tmp_path, child)
    scene.lease.renewed -= 60
    assert await scene.execute() == [("put back",)]  # which does nothing to a run that was taken away
    assert not child.orders


async def test_a_run_is_ended_when_the_lease_is_lost(tmp_path: Path) -> None:
    child = FakeChild(ACCEPTED, ends=None)
    scene = Scene(tmp_path, child)
    task = asyncio.create_task(scene.execute())
    await wait_until(lambda: child.orders, description="the run was handed over")
    scene.execution.end("lease lost")
    [(what, message)] = await task
    assert child.killed
    assert what == "crashed" and "w1 had no contact with Prefect" in message


async def test_the_child_hears_of_each_renewal_once_it_has_the_run(tmp_path: Path) -> None:
    child = FakeChild(ACCEPTED, ends=None)
    scene = Scene(tmp_path, child)
    scene.execution.tell_lease(1.0)
    task = asyncio.create_task(scene.execute())
    await wait_until(lambda: scene.execution._begun, description="the child has the run")
    scene.execution.tell_lease(2.0)
    await wait_until(lambda: len(child.orders) == 2, description="the renewal was sent")
    assert child.orders[1] == {"op": "lease", "renewed": 2.0}
    scene.execution.end("cancelled")
    await task


async def test_the_files_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    child = FakeChild(ACCEPTED, ends=None)
    scene = Scene(tmp_path, child)
    task_id = str(uuid4())
    scene.execution.run.flow_run["idempotency_key"] = f"{task_id}:2"
    for generation in ("1", "2"):
        (scene.workspaces / task_id / generation / "clone").mkdir(parents=True)
    task = asyncio.create_task(scene.execute())
    await wait_until(lambda: child.orders, description="the run was handed over")
    scene.execution.end("cancelled")
    await task
    assert [path.name for path in (scene.workspaces / task_id).iterdir()] == ["1"]


async def test_once_finished_it_is_too_late_to_end(tmp_path: Path) -> None:
    child = FakeChild(ACCEPTED, FINISHED, ends=None)
    scene = Scene(tmp_path, child)
    task = asyncio.create_task(scene.execute())
    await wait_until(lambda: scene.execution.finished, description="finished")
    assert scene.released  # the slot is free although the child still lingers
    scene.execution.end("cancelled")
    child.exited.set_result(Exit(0))
    assert await task == []
