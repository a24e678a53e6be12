"""What the core relies on in Prefect, asked of the real one and of the double that fast tests use."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from ai_task_orchestra import protocol
from api.prefect_gateway import HttpPrefectGateway
from api.prefect_graphs import Node
from api.prefect_types import (
    CANCELLED,
    CANCELLING,
    COMPLETED,
    CRASHED,
    FAILED,
    PENDING,
    RUNNING,
    SCHEDULED,
    NewRun,
    RunFilter,
)
from tests.support.prefect_bench import PrefectBench
from tests.support.prefect_double import PrefectDouble
from tests.support.waiting import wait_until

NOBODY = uuid.UUID(int=0)
FAR = datetime(2100, 1, 1, tzinfo=UTC)


@dataclass
class Side:
    """A gateway, and the deeds of others in the same Prefect."""

    gateway: Any
    others: Any

    @property
    def deployment_id(self) -> uuid.UUID:
        return uuid.UUID(self.others.deployment_id)

    async def create(self, **fields: Any) -> Any:
        key = protocol.idempotency_key(str(uuid.uuid4()), 1)
        new = NewRun("n", key, {}, "priority-5", (), {}, SCHEDULED, protocol.STATE_QUEUED)
        return await self.gateway.create_run(self.deployment_id, replace(new, **fields))

    async def state(self, run_id: uuid.UUID) -> Any:
        return (await self.gateway.runs([run_id]))[run_id].state


@pytest.fixture(params=["double", "real"])
async def side(request: pytest.FixtureRequest) -> AsyncIterator[Side]:
    if request.param == "double":
        double = PrefectDouble()
        yield Side(double, double)
        return
    url = request.getfixturevalue("prefect_api_url")
    gateway = HttpPrefectGateway(url)
    async with httpx.AsyncClient(base_url=url, timeout=20) as http:
        yield Side(gateway, await PrefectBench.prepare(http))
    await gateway.aclose()


async def test_a_run_is_created_once_per_key_and_found_with_what_it_was_made_from(side: Side) -> None:
    labels = {protocol.LABEL_TASK: "t"}
    made = await side.create(idempotency_key="a:1", parameters={"x": [1]}, labels=labels, work_queue="priority-9")
    again = await side.create(idempotency_key="a:1", parameters={"x": 2})
    other = await side.create(idempotency_key="a:2")

    assert again.id == made.id != other.id
    found = (await side.gateway.runs([made.id, NOBODY]))[made.id]
    assert (found.parameters, found.work_queue, found.work_pool) == ({"x": [1]}, "priority-9", side.others.pool)
    assert found.labels.items() >= labels.items()
    assert (found.state.type, found.state.name) == (SCHEDULED, protocol.STATE_QUEUED)
    assert found.deployment_id == side.deployment_id
    assert found.start_time is None
    assert found.idempotency_key == "a:1"


async def test_what_is_not_there_is_none(side: Side) -> None:
    assert await side.gateway.deployment("no-such-deployment") is None
    assert await side.gateway.deployment_by_id(NOBODY) is None
    assert await side.gateway.create_run(NOBODY, NewRun("n", "k", {}, "q", (), {}, SCHEDULED, "Queued")) is None
    assert await side.gateway.propose(NOBODY, PENDING) is None
    await side.gateway.delete_run(NOBODY)
    assert await side.gateway.runs([NOBODY]) == {}
    assert await side.gateway.workers("no-such-pool") == []
    assert await side.gateway.problem(side.others.pool) is None
    assert "no-such-pool" in await side.gateway.problem("no-such-pool")


async def test_a_deployment_is_found_by_name_and_by_id(side: Side) -> None:
    by_name = await side.gateway.deployment(side.others.template)
    assert by_name == await side.gateway.deployment_by_id(side.deployment_id)
    assert (by_name.name, by_name.work_pool) == (side.others.template, side.others.pool)
    assert await side.gateway.flow_name(by_name.flow_id) == side.others.template


async def test_only_one_claims_and_the_same_claim_again_is_known(side: Side) -> None:
    run, ours = await side.create(), uuid.uuid4()
    answer = await side.gateway.propose(run.id, PENDING, transition_id=ours)
    assert answer.accepted and answer.state.transition_id == ours

    again = await side.gateway.propose(run.id, PENDING, transition_id=ours)
    assert not again.accepted and again.state.id == answer.state.id
    assert not await side.others.claim(str(run.id))
    assert (await side.gateway.propose(run.id, PENDING, transition_id=uuid.uuid4())).accepted is False
    assert (await side.state(run.id)).transition_id == ours


async def test_a_held_run_is_claimed_and_released(side: Side) -> None:
    run = await side.create(state_type=PENDING, state_name=protocol.STATE_HELD)
    await side.gateway.propose(run.id, SCHEDULED, name=protocol.STATE_HELD, scheduled_time=FAR)
    assert str(run.id) not in await side.others.due()

    assert (await side.gateway.propose(run.id, PENDING)).accepted
    assert (await side.gateway.propose(run.id, SCHEDULED, name=protocol.STATE_QUEUED)).accepted

    assert (await side.state(run.id)).name == protocol.STATE_QUEUED
    assert str(run.id) in await side.others.due()


async def test_cancelling_a_run_that_nobody_claimed_cancels_it_in_the_same_step(side: Side) -> None:
    run = await side.create()
    answer = await side.gateway.propose(run.id, CANCELLING)
    assert answer.state.type == CANCELLED
    assert not await side.others.claim(str(run.id))


@pytest.mark.parametrize("kind", [CANCELLED, CRASHED])
async def test_a_run_that_ended_without_ever_running_has_never_begun(side: Side, kind: str) -> None:
    never, ran = await side.create(), await side.create()
    await side.others.start(str(ran.id))
    for run in (never, ran):
        assert (await side.gateway.propose(run.id, kind, force=True)).accepted
    runs = await side.gateway.runs([never.id, ran.id])
    assert runs[never.id].began is None
    assert runs[ran.id].began is not None


async def test_a_claimed_or_running_run_becomes_cancelling_and_then_only_cancelled(side: Side) -> None:
    for deed in (side.others.claim, side.others.start):
        run = await side.create()
        await deed(str(run.id))
        assert (await side.gateway.propose(run.id, CANCELLING)).accepted
        for refused in (RUNNING, COMPLETED, CRASHED, SCHEDULED, PENDING):
            assert not (await side.gateway.propose(run.id, refused)).accepted
        assert (await side.gateway.propose(run.id, CANCELLED, force=True)).accepted


async def test_a_completed_run_is_not_cancelled_but_may_be_claimed_and_that_shows(side: Side) -> None:
    run = await side.create()
    await side.others.start(str(run.id))
    await side.others.complete(str(run.id))
    assert not (await side.gateway.propose(run.id, CANCELLING)).accepted

    assert (await side.gateway.propose(run.id, PENDING)).accepted
    found = (await side.gateway.runs([run.id]))[run.id]
    assert found.start_time is not None
    kinds = [state.type for state in await side.gateway.states(run.id)]
    assert kinds == [SCHEDULED, PENDING, RUNNING, COMPLETED, PENDING]


async def test_a_forced_state_is_always_taken(side: Side) -> None:
    run = await side.create()
    await side.others.start(str(run.id), "machine")
    answer = await side.gateway.propose(run.id, CRASHED, message="lost", force=True)
    assert answer.accepted
    found = (await side.gateway.runs([run.id]))[run.id]
    assert (found.state.type, found.state.message, found.worker) == (CRASHED, "lost", "machine")


async def test_who_has_claimed_or_runs_a_run_is_seen(side: Side) -> None:
    run = await side.create()
    assert run.worker is None
    await side.others.claim(str(run.id), "machine")
    assert (await side.gateway.runs([run.id]))[run.id].worker == "machine"


async def test_runs_are_found_by_pool_state_and_time(side: Side) -> None:
    begun = datetime.now(UTC) - timedelta(seconds=5)
    waiting, running, ended = [await side.create() for _ in range(3)]
    await side.others.start(str(running.id))
    await side.others.start(str(ended.id))
    await side.others.complete(str(ended.id))
    pools = (side.others.pool,)

    async def ids(**which: Any) -> set[uuid.UUID]:
        return {run.id for run in await side.gateway.find_runs(RunFilter(work_pools=pools, **which))}

    assert await ids() == {waiting.id, running.id, ended.id}
    assert await ids(state_types=(RUNNING, PENDING)) == {running.id}
    assert await ids(state_types=(SCHEDULED,), expected_after=begun) == {waiting.id}
    assert await ids(expected_after=datetime.now(UTC) + timedelta(hours=1)) == set()
    assert await ids(ended_after=begun) == {ended.id}
    assert await side.gateway.find_runs(RunFilter(work_pools=("no-such-pool",))) == []
    assert await side.gateway.find_runs(RunFilter(work_pools=pools), offset=3) == []


async def test_the_report_of_an_attempt_is_found(side: Side) -> None:
    run, silent = await side.create(), await side.create()
    await side.others.report(str(run.id), result={"output": "é"})
    reports = await side.gateway.reports([run.id, silent.id])
    assert reports.keys() == {run.id}
    assert reports[run.id]["result"] == {"output": "é"}


async def test_parameters_and_tags_of_a_claimed_run_are_replaced_and_workers_see_them(side: Side) -> None:
    run = await side.create(parameters={"x": 1}, tags=("a", "b"))
    await side.gateway.propose(run.id, PENDING)
    await side.gateway.set_parameters(run.id, {"y": ["é", {"z": None}]}, tags=["b", "c"])
    await side.gateway.propose(run.id, SCHEDULED, name=protocol.STATE_QUEUED)

    found = await side.others.run(str(run.id))
    assert (found["parameters"], sorted(found["tags"])) == ({"y": ["é", {"z": None}]}, ["b", "c"])
    assert (await side.gateway.runs([run.id]))[run.id].parameters == {"y": ["é", {"z": None}]}
    assert str(run.id) in await side.others.due()
    await side.gateway.set_parameters(NOBODY, {}, tags=[])


async def test_a_run_that_never_ran_may_fail_with_a_report_of_ours(side: Side) -> None:
    run = await side.create()
    await side.gateway.propose(run.id, PENDING)
    await side.gateway.write_report(run.id, {"version": 1, "error": {"type": "t", "message": "m"}})
    assert (await side.gateway.propose(run.id, FAILED, message="m", force=True)).accepted
    found = (await side.gateway.runs([run.id]))[run.id]
    assert (found.state.type, found.worker, found.began) == (FAILED, None, None)
    assert found.start_time == found.state.timestamp
    assert (await side.gateway.reports([run.id]))[run.id]["error"] == {"type": "t", "message": "m"}


async def test_a_group_is_made_once_and_is_nobodys_to_run(side: Side) -> None:
    key = f"batch:{uuid.uuid4()}"
    made = await side.gateway.create_group("batch-x", key=key, tags=(key,))
    again = await side.gateway.create_group("batch-x", key=key, tags=(key,))
    assert made.id == again.id
    found = (await side.gateway.runs([made.id]))[made.id]
    assert (found.state.type, found.work_pool, found.deployment_id) == (RUNNING, None, None)
    assert found.began is not None
    assert str(made.id) not in await side.others.due()
    assert await side.gateway.find_runs(RunFilter(work_pools=(side.others.pool,))) == []
    assert (await side.gateway.propose(made.id, COMPLETED, message="2 completed.", force=True)).accepted


async def test_nodes_are_drawn_with_edges_and_later_ones_take_their_places(side: Side) -> None:
    run = await side.gateway.create_group("batch-y", key=f"batch:{uuid.uuid4()}", tags=())
    now = datetime.now(UTC) - timedelta(minutes=1)
    a, b = uuid.uuid4(), uuid.uuid4()
    waiting = Node(b, run.id, "b", PENDING, now, now, None, (a,))
    await side.gateway.record_nodes([Node(a, run.id, "a", RUNNING, now, now), waiting])
    later = now + timedelta(seconds=1)
    await side.gateway.record_nodes([Node(a, run.id, "a", COMPLETED, later, now, later), waiting])
    await side.gateway.record_nodes([Node(a, run.id, "a", RUNNING, now, now)])
    await side.gateway.write_note(run.id, a, "[a](/runs/flow-run/x)", description="d")

    async def drawn() -> bool:
        return await side.others.read_graph(str(run.id)) == {"a": (COMPLETED, set()), "b": (PENDING, {"a"})}

    await wait_until(drawn, description="two nodes, an edge, the last state")
    assert await side.others.read_notes(str(run.id)) == ["[a](/runs/flow-run/x)"]


async def test_a_worker_is_listed_with_its_heartbeat(side: Side) -> None:
    await side.others.heartbeat("machine")
    [first] = await side.gateway.workers(side.others.pool)
    await asyncio.sleep(0.01)
    await side.others.heartbeat("machine")
    [second] = await side.gateway.workers(side.others.pool)
    assert first.name == second.name == "machine"
    assert first.last_heartbeat < second.last_heartbeat


async def test_a_deleted_run_is_gone(side: Side) -> None:
    run = await side.create()
    await side.gateway.delete_run(run.id)
    assert await side.gateway.runs([run.id]) == {}


async def test_events_name_the_run_and_the_state_that_can_be_read(side: Side) -> None:
    seen: dict[uuid.UUID, Any] = {}
    listening = asyncio.Event()

    async def listen() -> None:
        async with side.gateway.events() as events:
            listening.set()
            async for event in events:
                seen[event.flow_run_id] = event

    listener = asyncio.create_task(listen())
    await asyncio.wait_for(listening.wait(), 10)
    run = await side.create()
    try:
        # A subscription needs a moment at the server; a state that follows is heard in any case.
        async def heard() -> bool:
            await side.others.set(str(run.id), SCHEDULED, name=protocol.STATE_QUEUED)
            return run.id in seen

        await wait_until(heard, description="an event of the run")
        state = await side.state(run.id)
        await wait_until(lambda: seen[run.id].state_id == state.id, description="the event of its last state")
    finally:
        listener.cancel()
        await asyncio.gather(listener, return_exceptions=True)
