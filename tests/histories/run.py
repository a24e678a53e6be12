"""Runs one history: plan, operations, evidence, verdict."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import uuid4

from tests.histories.checker import check
from tests.histories.collect import collect
from tests.histories.driver import Driver
from tests.histories.evidence import Evidence
from tests.histories.plan import Plan, make_plan
from tests.histories.stack import HistoryStack

#: How long after the tasks have ended our rows and Prefect may take to agree.
AGREE_SECONDS: Final = 60.0
_PAUSE_SECONDS: Final = 0.5


@dataclass(frozen=True)
class Verdict:
    """What came of a history. `kept`: the folder with its logs, if something was wrong."""

    plan: Plan
    evidence: Evidence
    problems: list[str]
    seconds: float
    kept: Path | None = None

    def __str__(self) -> str:
        faults = ", ".join(fault.name for fault in self.plan.faults) or "no faults"
        losses = sum(run.was_lost for run in self.evidence.runs)
        lost = f", {losses} attempts lost" if losses else ""
        state = "ok" if not self.problems else f"WRONG, logs in {self.kept}"
        return (
            f"seed {self.plan.seed}: {state} ({len(self.evidence.tasks)} tasks, {faults}{lost}, {self.seconds:.1f} s)"
        )

    def explanation(self) -> str:
        """All there is to tell about a history that went wrong."""
        again = f"again with: make histories SEED={self.plan.seed}"
        return "\n".join([str(self), str(self.plan), *(f"* {problem}" for problem in self.problems), again])


async def run_history(stack: HistoryStack, seed: int) -> Verdict:
    """Run the history of a seed on a stack, which serves one history at a time."""
    begun = time.monotonic()
    plan = make_plan(seed)
    await asyncio.to_thread(stack.wait_until_whole)
    since = stack.journal.size
    driver = Driver(stack, plan, f"h{seed}-{uuid4().hex[:8]}")
    await driver.run()
    evidence, problems = await _judged(stack, plan, driver, since)
    stack.cut_off = frozenset(run.task for run in evidence.runs if run.taken_away_at is not None)
    kept = _keep(stack, seed, since, plan, evidence) if problems else None
    return Verdict(plan, evidence, problems, time.monotonic() - begun, kept)


async def _judged(stack: HistoryStack, plan: Plan, driver: Driver, since: int) -> tuple[Evidence, list[str]]:
    """Evidence and problems, once there are none or the time to agree is over."""
    deadline = time.monotonic() + AGREE_SECONDS
    while True:
        evidence = await collect(stack, plan, driver, since)
        problems = check(evidence)
        if not problems or time.monotonic() > deadline:
            return evidence, problems
        await asyncio.sleep(_PAUSE_SECONDS)


def _keep(stack: HistoryStack, seed: int, since: int, plan: Plan, evidence: Evidence) -> Path:
    """Copy what explains a failure to a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix=f"orchestra-history-{seed}-"))
    shutil.copytree(stack.home / "logs", folder / "logs")
    shutil.copy(stack.home / "up.log", folder)
    events = stack.journal.path.read_bytes()[since:]
    (folder / "history.jsonl").write_bytes(events)
    found = [str(plan), *map(repr, evidence.tasks), *map(repr, evidence.runs), f"living: {evidence.living}"]
    (folder / "evidence.txt").write_text("\n".join(found) + "\n")
    return folder
