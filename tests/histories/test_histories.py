"""A few random histories in the normal suite; `make histories` runs many."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.histories.plan import make_plan
from tests.histories.run import run_history
from tests.histories.stack import HistoryStack, history_stack

#: Together they have every kind of fault, a batch, and a press of tasks without any fault.
SEEDS = (6, 7, 13, 24, 29)


@pytest.fixture(scope="module")
def stack() -> Iterator[HistoryStack]:
    with history_stack() as up:
        yield up


@pytest.mark.timeout(400)
@pytest.mark.parametrize("seed", SEEDS)
async def test_a_random_history_breaks_no_rule(stack: HistoryStack, seed: int) -> None:
    verdict = await run_history(stack, seed)
    assert not verdict.problems, verdict.explanation()


def test_a_seed_always_makes_the_same_plan() -> None:
    assert make_plan(123) == make_plan(123)
    assert make_plan(123) != make_plan(124)


def test_the_seeds_of_the_suite_have_every_kind_of_fault() -> None:
    names = {fault.name for seed in SEEDS for fault in make_plan(seed).faults}
    assert names == {"kill_api", "kill_worker", "kill_child", "kill_prefect", "freeze_worker", "restart_postgres"}
    assert any(not make_plan(seed).faults for seed in SEEDS)
