"""The part of Prefect's double that shows graphs."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from api.prefect_graphs import Node
from api.prefect_types import RUNNING, FlowRun, RunState


class GraphDouble:
    """Nodes by flow run and id, and what is written on them."""

    def __init__(self) -> None:
        self.nodes: dict[UUID, dict[UUID, Node]] = {}
        self.notes: dict[UUID, list[str]] = {}

    async def create_group(self: Any, name: str, *, key: str, tags: Collection[str]) -> FlowRun:
        async with self._call("create_group"):
            for present in self.known.values():
                if present.idempotency_key == key:
                    return present
            now = datetime.now(UTC)
            state = RunState(uuid.uuid4(), RUNNING, "Running", None, now)
            group = FlowRun(
                id=uuid.uuid4(),
                flow_id=UUID(int=1),
                deployment_id=None,
                idempotency_key=key,
                state=state,
                created=now,
                start_time=now,
                next_scheduled_start_time=None,
                work_pool=None,
                work_queue=None,
                parameters={},
                labels={},
                auto_scheduled=False,
            )
            self.tags[group.id] = tuple(tags)
            return self._enter(group, state)

    async def record_nodes(self: Any, nodes: Sequence[Node]) -> None:
        async with self._call("record_nodes"):
            for node in nodes:
                graph = self.nodes.setdefault(node.flow_run_id, {})
                if node.id not in graph or graph[node.id].at < node.at:
                    graph[node.id] = node

    async def write_note(self: Any, run_id: UUID, node_id: UUID, text: str, *, description: str) -> None:
        async with self._call("write_note"):
            self.notes.setdefault(node_id, []).append(text)

    async def read_graph(self, run_id: str) -> dict[str, tuple[str, set[str]]]:
        """As `tests.support.prefect_bench.PrefectBench` has it."""
        return self.graph(run_id)

    async def read_notes(self, run_id: str) -> list[str]:
        nodes = self.nodes.get(UUID(run_id), {})
        return [text for node_id in nodes for text in self.notes.get(node_id, [])]

    def graph(self, run_id: str) -> dict[str, tuple[str, set[str]]]:
        """The nodes of a run by name: state, and the names of those they wait for."""
        nodes = self.nodes.get(UUID(run_id), {})
        return {
            node.name: (node.state_type, {nodes[other].name for other in node.waits_for if other in nodes})
            for node in nodes.values()
        }
