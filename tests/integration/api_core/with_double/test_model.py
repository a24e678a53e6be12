"""Random histories of the whole core against a model: whatever is done, the promises hold.

`docs/invariants.md` says which mechanism each of them rests on.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from tests.support.core_workers import WORKERS, Attempt
from tests.support.core_world import FAULTS, CoreWorld
from tests.support.task_model import ModelTask

#: 5,000 steps in all.
PARTS, HISTORIES, STEPS = 5, 10, 100

METHODS = ("create_run", "propose", "delete_run", "runs", "reports")
REST = "rest"

indices = st.integers(0, 30)
urgencies = st.integers(1, 10)
#: How many seconds the core is left to itself after a deed, or until it has come to rest.
moments = st.sampled_from([0.0, 0.003, 0.01])
pauses = st.just(REST) | moments
workers = st.sampled_from(WORKERS)
ends = st.sampled_from(["COMPLETED", "COMPLETED", "COMPLETED", "FAILED", "CRASHED"])


class History(RuleBasedStateMachine):
    """One history of deeds. What a rule draws must not depend on how far the core has come."""

    make: ClassVar[Callable[[], CoreWorld]]
    steps: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.world = type(self).make()

    def teardown(self) -> None:
        world = self.world
        try:
            if not world.is_broken:
                world.do(world.finish())
        finally:
            if world.is_broken:
                print("\n".join(world.trace))
            world.close()

    def do(self, deed: Coroutine[Any, Any, Any], pause: Any = 0.0) -> None:
        """Do it, then leave the core to itself."""

        async def done() -> None:
            await deed
            await (self.world.rest() if pause == REST else asyncio.sleep(pause))

        self.world.do(done())

    def task(self, index: int) -> ModelTask | None:
        """The newest ones have the smallest indices."""
        tasks = list(self.world.model.tasks.values())
        return tasks[-1 - index % len(tasks)] if tasks else None

    def attempt(self, index: int) -> Attempt | None:
        attempts = list(self.world.workers.attempts.values())
        return attempts[index % len(attempts)] if attempts else None

    @invariant()
    def what_is_shown_agrees_with_the_model(self) -> None:
        History.steps += 1
        self.world.do(self.world.watch.look())

    @rule(
        priority=urgencies,
        upstream=st.lists(indices, max_size=3) | st.just([]),
        runs_anyway=st.booleans(),
        template=st.sampled_from(["work", "work", "retried", "once"]),
        key=st.sampled_from([None, None, "a", "b", "c"]),
        pause=pauses,
    )
    def post(self, upstream: list[int], pause: Any, **fields: Any) -> None:
        if self.world.is_open:
            tasks = [self.task(index) for index in upstream]
            self.do(self.world.post(depends_on=[task for task in tasks if task and task.is_seen], **fields), pause)

    @rule(index=indices, priority=urgencies, pause=pauses)
    def patch(self, index: int, priority: int, pause: Any) -> None:
        if self.world.is_open and (task := self.task(index)):
            self.do(self.world.patch(task, priority), pause)

    @rule(index=indices, pause=pauses)
    def cancel(self, index: int, pause: Any) -> None:
        if self.world.is_open and (task := self.task(index)):
            self.do(self.world.cancel(task), pause)

    @rule(worker=workers, start=st.sampled_from([True, True, True, False]), pause=pauses)
    def claim(self, worker: str, start: bool, pause: Any) -> None:
        self.do(self.world.workers.claim(worker, start=start), pause)

    @rule(worker=workers, pause=pauses)
    def work(self, worker: str, pause: Any) -> None:
        self.do(self.world.workers.work(worker), pause)

    @rule(index=indices, how=ends, pause=pauses)
    def end(self, index: int, how: str, pause: Any) -> None:
        if attempt := self.attempt(index):
            self.do(self.world.workers.end(attempt, how), pause)

    @rule(index=indices, back=st.booleans(), pause=pauses)
    def start_or_give_back(self, index: int, back: bool, pause: Any) -> None:
        if attempt := self.attempt(index):
            deed = self.world.workers.give_back if back else self.world.workers.start
            self.do(deed(attempt), pause)

    @rule(worker=workers, lives=st.booleans(), pause=pauses)
    def worker_goes_or_comes(self, worker: str, lives: bool, pause: Any) -> None:
        self.do(self.world.workers.revive(worker) if lives else self.world.workers.lose(worker), pause)

    @rule(index=indices, how=st.sampled_from(["delete", "cancel", "again"]), pause=pauses)
    def meddle(self, index: int, how: str, pause: Any) -> None:
        if task := self.task(index):
            self.do(self.world.meddle(task, how), pause)

    @rule(priority=urgencies, pause=pauses)
    def quick_run(self, priority: int, pause: Any) -> None:
        self.do(self.world.quick_run(priority), pause)

    @rule(kind=st.sampled_from(FAULTS), method=st.sampled_from(METHODS), number=st.integers(1, 6), pause=moments)
    def fault(self, kind: str, method: str, number: int, pause: Any) -> None:
        self.do(self.world.fault(kind, method, number), pause)

    @rule(index=indices, kind=st.sampled_from(["patch", "cancel"]), priority=urgencies, seed=st.integers(0, 2**16))
    def race(self, index: int, kind: str, priority: int, seed: int) -> None:
        if self.world.prefect_answers and (task := self.task(index)):
            self.do(self.world.race(task, kind, priority, random.Random(seed)), REST)  # noqa: S311


@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", range(PARTS))
def test_the_promises_hold_in_random_histories(make_world: Callable[[], CoreWorld], part: int) -> None:
    """Without shrinking, which takes minutes; add `Phase.shrink` for a short history that breaks the same promise."""
    History.make, History.steps = staticmethod(make_world), 0
    settings = hypothesis_settings(
        max_examples=HISTORIES,
        stateful_step_count=STEPS,
        phases=(Phase.generate,),
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(History, settings=settings)
    assert History.steps >= HISTORIES * STEPS
