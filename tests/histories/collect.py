"""Reads the evidence of a history: its events, our rows, Prefect's runs, what was stored, what is alive."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import asyncpg
import httpx

from tests.histories.driver import Driver, living
from tests.histories.evidence import FINAL, Attempt, Evidence, Run, State, Task, read_history
from tests.histories.plan import Plan
from tests.histories.stack import HistoryStack

_PAGE: Final = 200

_TASKS: Final = """
    SELECT id::text, parameters->>'token' AS token, template, status, phase, priority, generation, unresolved,
        depends_on::text[] AS depends_on, on_dependency_failure, result, error, move_to,
        EXISTS (SELECT FROM disposal WHERE disposal.task_id = task.id) AS disposal,
        EXISTS (SELECT FROM audit WHERE audit.task_id = task.id AND audit.actor IS NULL) AS audited
    FROM task WHERE parameters->>'token' LIKE $1 ORDER BY seq
"""
_ATTEMPTS: Final = """
    SELECT task_id::text, generation, worker, ended_at, outcome FROM attempt
    WHERE task_id = ANY($1::uuid[]) ORDER BY task_id, generation
"""


async def collect(stack: HistoryStack, plan: Plan, driver: Driver, since: int) -> Evidence:
    """The evidence as it is now; `since`: where the history's events begin, in bytes."""
    tasks = await read_tasks(stack, driver.run_name)
    ids = [task.id for task in tasks]
    return Evidence(
        posts={post.number: post for post in plan.posts},
        tasks=tuple(tasks),
        runs=tuple(await read_runs(stack, ids)),
        living=living(stack, ids),
        outputs=_outputs(stack.home / "outputs", driver.run_name),
        earlier=stack.cut_off,
        **read_history(stack.journal.events(since)),
    )


async def read_tasks(stack: HistoryStack, run_name: str) -> list[Task]:
    """The rows whose token begins with the name of this run."""
    connection = await asyncpg.connect(stack.database_url, timeout=20)
    try:
        rows = await connection.fetch(_TASKS, f"{run_name}-%")
        attempts: dict[str, list[Attempt]] = {}
        for one in await connection.fetch(_ATTEMPTS, [row["id"] for row in rows]):
            ended = one["ended_at"].timestamp() if one["ended_at"] else None
            attempt = Attempt(one["generation"], one["worker"], ended, one["outcome"])
            attempts.setdefault(one["task_id"], []).append(attempt)
    finally:
        await connection.close()
    return [_task(row, attempts.get(row["id"], [])) for row in rows]


def _task(row: asyncpg.Record, attempts: list[Attempt]) -> Task:
    return Task(
        id=row["id"],
        number=int(row["token"].rpartition("-")[2]),
        template=row["template"],
        status=row["status"],
        priority=row["priority"],
        generation=row["generation"],
        depends_on=tuple(row["depends_on"]),
        runs_anyway=row["on_dependency_failure"] == "run",
        attempts=tuple(attempts),
        result=json.loads(row["result"]) if row["result"] else None,
        error=json.loads(row["error"]) if row["error"] else None,
        unfinished=_unfinished(row),
        audited=row["audited"],
    )


def _unfinished(row: asyncpg.Record) -> tuple[str, ...]:
    left = []
    if row["status"] in FINAL and row["phase"] != "ended":
        left.append(f"phase {row['phase']}")
    if row["move_to"] is not None:
        left.append("a wish to move")
    if row["disposal"]:
        left.append("a flow run to dispose of")
    return tuple(left)


async def read_runs(stack: HistoryStack, task_ids: list[str]) -> list[Run]:
    """All flow runs of these tasks, with their states."""
    up = stack.up.prefect
    runs: list[Run] = []
    async with httpx.AsyncClient(base_url=up.base_url, auth=up.auth, timeout=20) as prefect:
        for start in range(0, len(task_ids), 20):
            tags = [f"task:{task_id}" for task_id in task_ids[start : start + 20]]
            body = {"flow_runs": {"tags": {"any_": tags}}, "limit": _PAGE}
            answer = await prefect.post("/flow_runs/filter", json=body)
            answer.raise_for_status()
            for data in answer.json():
                states = await prefect.get("/flow_run_states/", params={"flow_run_id": data["id"]})
                runs.append(_run(data, states.json() if states.is_success else []))
    return runs


def _run(data: dict[str, Any], states: list[dict[str, Any]]) -> Run:
    task, _, generation = data["idempotency_key"].rpartition(":")
    return Run(
        task=task,
        generation=int(generation),
        type=data["state"]["type"],
        queue=data["work_queue_name"],
        states=tuple(sorted((_state(state) for state in states), key=lambda state: state.at)),
    )


def _state(data: dict[str, Any]) -> State:
    scheduled = (data.get("state_details") or {}).get("scheduled_time")
    return State(data["type"], data["name"], data["message"], _unix(data["timestamp"]), scheduled and _unix(scheduled))


def _unix(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _outputs(folder: Path, run_name: str) -> dict[int, str]:
    """What tasks of this run have stored, by their numbers."""
    files = folder.glob(f"{run_name}-*.txt")
    return {int(file.stem.rpartition("-")[2]): file.read_text() for file in files}
