"""A worker that was held up after it had looked claims what others have done meanwhile."""

from __future__ import annotations

import pytest
from prefect.client.schemas.objects import State
from prefect.states import Completed, Crashed, Failed, Pending, Running

from ai_task_orchestra import protocol
from ai_task_orchestra.worker.prefect_gateway import PrefectGateway
from tests.support.worker_bench import WorkerBench


@pytest.mark.parametrize(
    "end", [Completed(), Failed(message="broke"), Crashed(message="lost")], ids=lambda end: end.name
)
@pytest.mark.parametrize("answered", [True, False])
async def test_a_run_that_has_ended_meanwhile_is_not_claimed(bench: WorkerBench, end: State, answered: bool) -> None:
    late = PrefectGateway(bench.client, pool=bench.pool, queues=(), worker="late")
    run_id = await bench.submit("noop")
    [seen] = await late.candidates(5)
    for state in (Pending(message=protocol.claim_message("other")), Running(), end):
        await bench.client.set_flow_run_state(run_id, state)

    if answered:
        assert not await late.claim(seen)
    else:  # the claim reached Prefect, its answer never came
        await bench.client.set_flow_run_state(run_id, Pending(message=protocol.claim_message("late")))
        assert not await late.claimed_after_all(seen)

    present = (await bench.read(run_id)).state
    assert present is not None
    assert (present.name, present.message) == (end.name, end.message)


async def test_a_run_that_was_given_back_is_claimed_again(bench: WorkerBench) -> None:
    first, second = (PrefectGateway(bench.client, pool=bench.pool, queues=(), worker=name) for name in ("a", "b"))
    run_id = await bench.submit("noop")
    [seen] = await second.candidates(5)
    assert await first.claim(seen)
    assert not await second.claim(seen)
    await first.put_back(run_id)
    assert await second.claim(seen)
    assert protocol.worker_of_claim(((await bench.read(run_id)).state or Pending()).message) == "b"
