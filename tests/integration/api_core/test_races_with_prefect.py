"""The same races beside a real Prefect."""

from __future__ import annotations

import random

import pytest

from tests.support.core_bench import CoreBench
from tests.support.prefect_bench import PrefectBench
from tests.support.races import Start, cancel_against_completion, move_against_claim

RACES = 20


@pytest.mark.timeout(600)
@pytest.mark.parametrize("race", [move_against_claim, cancel_against_completion])
async def test_one_side_wins_and_the_answer_says_which(bench: CoreBench, prefect: PrefectBench, race: object) -> None:
    start = Start(random.Random(RACES), seconds=0.1)  # noqa: S311
    for _ in range(RACES):
        await race(bench, prefect, start)  # type: ignore[operator]
    print(f"the first one won {sum(start.won)} of {len(start.won)}")
    assert len(start.won) == RACES
