"""Random histories of the whole core against a model: whatever is done, the promises hold.

`docs/invariants.md` says which mechanism each of them rests on.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, Phase
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from ai_task_orchestra.stack.postgres import EmbeddedPostgres
from api import cancellation, chores, core, dispatcher, hints, leader, priorities
from api.database import plain_url
from api.migrate import upgrade
from tests.support import servers
from tests.support.core_bench import core_settings, write_template
from tests.support.core_world import WORKERS, Attempt, CoreWorld
from tests.support.task_model import ModelTask

PARTS = 5
HISTORIES, STEPS = 10, 100

#: The core's clockwork, many times faster than it is meant to run.
FAST: dict[Any, dict[str, float]] = {
    core: {"CHORES_SECONDS": 0.06},
    dispatcher: {
        "POLL_SECONDS": 0.1,
        "PAUSE_SECONDS": 0.01,
        "FIRST_BACKOFF_SECONDS": 0.005,
        "LONGEST_BACKOFF_SECONDS": 0.04,
        "LONGEST_WAIT_SECONDS": 0.04,
    },
    priorities: {"PATIENCE_SECONDS": 0.5, "ARRIVAL_SECONDS": 0.2, "_PAUSE_SECONDS": 0.004},
    leader: {"RETRY_SECONDS": 0.02},
    hints: {"SETTLE_SECONDS": 0.001, "RECONNECT_SECONDS": 0.02},
    cancellation: {"FORCE_SECONDS": 0.3},
    chores: {"FORCE_SECONDS": 0.3},
}

FAULTS = (
    "Prefect down",
    "events lost",
    "replies lost",
    "API stands still",
    "API dies in the next request",
    "API killed",
)
METHODS = ("create_run", "propose", "delete_run", "runs", "reports")
indices = st.integers(0, 30)
priority_values = st.integers(1, 10)
#: How long the core is left to itself after a deed: until it has nothing more to do, or these seconds.
pauses = st.sampled_from(["rest", "rest", 0.0, 0.0, 0.003, 0.01])
moments = st.sampled_from([0.0, 0.003, 0.01])
workers = st.sampled_from(WORKERS)


class History(RuleBasedStateMachine):
    """One history of deeds."""

    world: CoreWorld
    steps = 0
    make: Callable[[], CoreWorld]

    def __init__(self) -> None:
        super().__init__()
        self.world = type(self).make()

    def teardown(self) -> None:
        try:
            if not self.world.is_broken:
                self.world.do(self.world.finish())
        finally:
            if self.world.is_broken:
                print("\n".join(self.world.trace))
            self.world.close()

    def task(self, index: int) -> ModelTask | None:
        tasks = list(self.world.model.tasks.values())
        return tasks[-1 - index % len(tasks)] if tasks else None

    def attempt(self, index: int) -> Attempt | None:
        attempts = list(self.world.attempts.values())
        return attempts[index % len(attempts)] if attempts else None

    def do(self, deed: Any, pause: Any) -> Any:
        """Do it, then leave the core to itself."""
        History.steps += 1

        async def done() -> Any:
            result = await deed
            if pause == "rest":
                await self.world.rest()
            else:
                await asyncio.sleep(pause)
            return result

        return self.world.do(done())

    @invariant()
    def what_is_shown_agrees_with_the_model(self) -> None:
        self.world.do(self.world.look())

    # Clients.

    @rule(
        priority=priority_values,
        upstream=st.lists(indices, max_size=3) | st.just([]),
        runs_anyway=st.booleans(),
        template=st.sampled_from(["work", "work", "retried", "once"]),
        key=st.sampled_from([None, None, "a", "b", "c"]),
        pause=pauses,
    )
    def post(
        self, priority: int, upstream: list[int], runs_anyway: bool, template: str, key: str | None, pause: Any
    ) -> None:
        if not self.world.is_open:
            return
        depends_on = [task for index in upstream if (task := self.task(index)) and task.is_seen]
        body = f"{priority} {template} {runs_anyway}"
        post = self.world.post(
            priority=priority,
            depends_on=depends_on,
            runs_anyway=runs_anyway,
            template=template,
            key=key,
            body=body,
        )
        self.do(post, pause)

    @rule(index=indices, priority=priority_values, pause=pauses)
    def patch(self, index: int, priority: int, pause: Any) -> None:
        if self.world.is_open and (task := self.task(index)):
            self.do(self.world.patch(task, priority), pause)

    @rule(index=indices, pause=pauses)
    def cancel(self, index: int, pause: Any) -> None:
        if self.world.is_open and (task := self.task(index)):
            self.do(self.world.cancel(task), pause)

    # Workers.

    @rule(worker=workers, start=st.sampled_from([True, True, True, False]), pause=pauses)
    def claim(self, worker: str, start: bool, pause: Any) -> None:
        self.do(self.world.claim(worker, start=start), pause)

    @rule(
        index=indices, how=st.sampled_from(["COMPLETED", "COMPLETED", "COMPLETED", "FAILED", "CRASHED"]), pause=pauses
    )
    def end(self, index: int, how: str, pause: Any) -> None:
        if attempt := self.attempt(index):
            self.do(self.world.end(attempt, how), pause)

    @rule(index=indices, back=st.booleans(), pause=pauses)
    def start_or_give_back(self, index: int, back: bool, pause: Any) -> None:
        if attempt := self.attempt(index):
            self.do(self.world.give_back(attempt) if back else self.world.start(attempt), pause)

    @rule(worker=workers, lives=st.booleans(), pause=pauses)
    def worker_goes_or_comes(self, worker: str, lives: bool, pause: Any) -> None:
        self.do(self.world.revive(worker) if lives else self.world.lose(worker), pause)

    @rule(worker=workers, pause=pauses)
    def work(self, worker: str, pause: Any) -> None:
        self.do(self.world.work(worker), pause)

    # People in Prefect.

    @rule(index=indices, how=st.sampled_from(["delete", "cancel", "again"]), pause=pauses)
    def meddle(self, index: int, how: str, pause: Any) -> None:
        if task := self.task(index):
            self.do(self.world.meddle(task, how), pause)

    @rule(priority=priority_values, pause=pauses)
    def quick_run(self, priority: int, pause: Any) -> None:
        self.do(self.world.quick_run(priority), pause)

    @rule(kind=st.sampled_from(FAULTS), method=st.sampled_from(METHODS), number=st.integers(1, 6), pause=moments)
    def fault(self, kind: str, method: str, number: int, pause: Any) -> None:
        self.do(self.world.fault(kind, method, number), pause)

    # Races.

    @rule(
        index=indices, kind=st.sampled_from(["patch", "cancel"]), priority=priority_values, seed=st.integers(0, 2**16)
    )
    def race(self, index: int, kind: str, priority: int, seed: int) -> None:
        if self.world.prefect_answers and (task := self.task(index)):
            self.do(self.world.race(task, kind, priority, random.Random(seed)), "rest")  # noqa: S311


@pytest.fixture
def make_world(
    postgres_server: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], CoreWorld]]:
    """Makes worlds, one after another, in one database."""

    async def database() -> str:
        url = await servers.new_database(postgres_server)
        await upgrade(url)
        connection = await asyncpg.connect(plain_url(url))
        name = url.rpartition("/")[2]
        await connection.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = off')
        await connection.close()
        return url

    for module, values in FAST.items():
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)
    write_template(tmp_path, "work")
    write_template(tmp_path, "retried", retries=2, retry_delay_seconds=0)
    write_template(tmp_path, "once", on_worker_loss="fail")
    settings = core_settings(
        tmp_path,
        asyncio.run(database()),
        "http://127.0.0.1:9/api",
        "pool",
        mirror_active_seconds=0.12,
        mirror_full_seconds=0.4,
        adopt_seconds=0.3,
        worker_lease_seconds=0.2,
    )
    yield lambda: CoreWorld(settings)


@pytest.mark.parametrize("part", range(PARTS))
def test_the_promises_hold_in_random_histories(make_world: Callable[[], CoreWorld], part: int) -> None:
    History.make = staticmethod(make_world)  # type: ignore[assignment]
    History.steps = 0
    run_state_machine_as_test(
        History,
        settings=hypothesis_settings(
            max_examples=HISTORIES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
            phases=(Phase.generate,),
            database=None,
        ),
    )
    print(History.steps)
