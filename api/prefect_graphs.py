"""Nodes in the graph of a flow run, in the words of Prefect's API.

A node is a task run that nobody executes. Prefect's engine reports its task runs as events, of which Prefect's recorder
makes rows; so do we: one request for any number of nodes, each with the times that it is drawn at, and recording the
same again changes nothing. (`POST /task_runs` takes one at a time, and no times.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid5

TASK_KEY: Final = "orchestra.node"


@dataclass(frozen=True)
class Node:
    """A node as it is from `at` on: a later one with the same id replaces it, an earlier one does not.

    It is drawn from `start` to `end`, else until now; edges come from the nodes it `waits_for`.
    """

    id: UUID
    flow_run_id: UUID
    name: str
    state_type: str
    at: datetime
    start: datetime
    end: datetime | None = None
    waits_for: tuple[UUID, ...] = ()


def as_events(nodes: Sequence[Node]) -> list[dict[str, Any]]:
    """What Prefect's engine would say of these task runs."""
    return [_event(node) for node in nodes]


def _event(node: Node) -> dict[str, Any]:
    name = node.state_type.capitalize()
    start = node.start.isoformat()
    end = node.end.isoformat() if node.end else None
    task_run = {
        "name": node.name,
        "task_key": TASK_KEY,
        "dynamic_key": str(node.id),
        "run_count": 1,
        "flow_run_run_count": 1,
        "task_inputs": {"wait_for": [{"input_type": "task_run", "id": str(other)} for other in node.waits_for]},
        "expected_start_time": start,
        "start_time": start,
        "end_time": end,
        "total_run_time": ((node.end - node.start) if node.end else timedelta()).total_seconds(),
    }
    return {
        "id": str(uuid5(node.id, node.state_type)),
        "occurred": node.at.isoformat(),
        "event": f"prefect.task-run.{name}",
        "resource": {
            "prefect.resource.id": f"prefect.task-run.{node.id}",
            "prefect.resource.name": node.name,
            "prefect.run-count": "1",
            "prefect.state-message": "",
            "prefect.state-name": name,
            "prefect.state-timestamp": node.at.isoformat(),
            "prefect.state-type": node.state_type,
            "prefect.orchestration": "client",
        },
        "related": [
            {"prefect.resource.id": f"prefect.flow-run.{node.flow_run_id}", "prefect.resource.role": "flow-run"}
        ],
        "payload": {
            "intended": {"from": None, "to": node.state_type},
            "initial_state": None,
            "validated_state": {"type": node.state_type, "name": name, "message": None, "state_details": {}},
            "task_run": {key: value for key, value in task_run.items() if value is not None},
        },
    }
