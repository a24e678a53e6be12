"""Hundreds of races, in interleavings that no clock would bring about by itself."""

from __future__ import annotations

import asyncio
import random

import pytest

from ai_task_orchestra.errors import IdempotencyBusyError
from ai_task_orchestra.settings import Settings
from tests.support.core_bench import TENANT, CoreBench, open_bench
from tests.support.prefect_double import PrefectDouble
from tests.support.races import Start, cancel_against_completion, move_against_claim

#: 500 races of each kind.
PARTS, RACES, AT_ONCE = 5, 100, 20


@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("race", [move_against_claim, cancel_against_completion])
async def test_one_side_wins_each_race_and_the_answer_says_which(
    bench: CoreBench, prefect: PrefectDouble, race: object, part: int
) -> None:
    seed = random.randrange(2**32)  # noqa: S311
    print(f"seed {seed}, part {part}")
    start = Start(random.Random(seed))  # noqa: S311
    prefect.pause = lambda: start.chance.choice((0.0, 0.0, 0.001, 0.002, 0.005))
    for _ in range(RACES // AT_ONCE):
        await asyncio.gather(*(race(bench, prefect, start) for _ in range(AT_ONCE)))  # type: ignore[operator]
    print(f"the first one won {sum(start.won)} of {len(start.won)}")
    assert len(start.won) == RACES
    assert 0 < sum(start.won) < RACES, "these were no races"
    statuses = await bench.sql("SELECT status, count(*) AS n FROM task GROUP BY status")
    assert sum(row["n"] for row in statuses) == RACES


@pytest.mark.parametrize("requests", [20, 50])
async def test_equal_submissions_to_two_apis_at_once_make_one_task(
    settings: Settings, prefect: PrefectDouble, requests: int
) -> None:
    async with (
        open_bench(settings, prefect, gateway=prefect) as one,
        open_bench(settings, prefect, gateway=prefect) as other,
    ):

        async def submit(bench: CoreBench) -> tuple[str, bool] | None:
            try:
                made = await bench.service.submit(bench.new(), tenant=TENANT, idempotency_key="key", body_hash="same")
            except IdempotencyBusyError:
                return None
            return made.task.id, made.created

        answers = await asyncio.gather(*(submit((one, other)[number % 2]) for number in range(requests)))

        [task_id] = {answer[0] for answer in answers if answer}
        assert [answer[1] for answer in answers if answer].count(True) == 1
        await one.run_of(task_id)
        assert len(await prefect.all_runs()) == 1
        assert len(await one.sql("SELECT id FROM task")) == 1
