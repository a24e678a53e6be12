"""What depends on what, in Prefect's UI. Nothing here is needed for a task to run; it is done once it runs.

The graph of a dependent begins with a node for each task it waited for, with a link to that task's run. The nodes' ids
follow from the run's (`protocol.dependency_node`), so that the flow's first step can wait for them without asking.

A batch is one group: a flow run of its own, which nobody executes, whose graph has a node for each task and an edge for
each dependency. It is Running until the last task has ended, then Completed, Failed or Cancelled; cancelling it in
Prefect cancels the batch. The tasks' runs know nothing of it (docs/decisions/0011).

Each step may be interrupted and done again.
"""

from __future__ import annotations

import logging
from collections.abc import Coroutine, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import UUID, uuid5

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from ai_task_orchestra import protocol
from ai_task_orchestra.errors import DispatchError
from ai_task_orchestra.settings import Settings
from api.batch_store import BatchStore
from api.gateway import PAGE, PrefectGateway
from api.graph_store import Dependent, GraphStore, Group, Member, Upstream
from api.prefect_graphs import Node
from api.prefect_types import CANCELLED, CANCELLING, COMPLETED, FAILED, PENDING, RUNNING
from api.views import batch_status

logger = logging.getLogger(__name__)

#: Dependents per look: their nodes come one run at a time, and runs that begin meanwhile must not wait for Prefect.
DEPENDENTS: Final = 20
MEMBERS: Final = 200
BATCHES: Final = 50
#: The node for the rest names at most this many of them.
LISTED: Final = 200

_STATES: Final = {
    "queued": PENDING,
    "running": RUNNING,
    "completed": COMPLETED,
    "failed": FAILED,
    "cancelled": CANCELLED,
}
_TICK: Final = timedelta(microseconds=1)


class Graphs:
    """Shows dependencies and batches; call `show` regularly."""

    def __init__(
        self,
        settings: Settings,
        sessions: async_sessionmaker[AsyncSession],
        gateway: PrefectGateway,
        batches: BatchStore,
    ) -> None:
        self._gateway, self._batches, self._store = gateway, batches, GraphStore(sessions)
        self._ui_path = urlsplit(settings.prefect_ui_url).path.rstrip("/")
        self._watched_until: UUID | None = None

    async def show(self) -> None:
        """Bring every graph up to date.

        Raises:
            UnreachableError, DispatchError: Prefect did not take it; to be repeated.
        """
        for dependent in await self._store.dependents(DEPENDENTS):
            await _try(self._show_dependencies(dependent))
            await self._store.nodes_made(dependent)
        # Before new states are shown: nothing that Prefect's recorder still has to write down may meet an ended group.
        for group in await self._store.over(BATCHES):
            await _try(self._end_group(group))
            await self._store.close(group.batch_id)
        for batch_id in await self._store.ungrouped(BATCHES):
            if not await _try(self._make_group(batch_id)):
                await self._store.close(batch_id)
        await self._watch_groups()
        if members := await self._store.unshown(MEMBERS):
            await _try(self._show_members(members))
            await self._store.shown({member.id: member.status for member in members})

    async def _show_dependencies(self, dependent: Dependent) -> None:
        """A node for each of the first, one for all others."""
        single = dependent.depends_on[: protocol.MAX_DEPENDENCY_NODES]
        rest = dependent.depends_on[protocol.MAX_DEPENDENCY_NODES :]
        tasks = await self._store.upstream([*single, *rest[:LISTED]])
        named = [(_run_name(tasks[each]), _STATES[tasks[each].status], [tasks[each]]) for each in single]
        if rest:
            named.append((f"and {len(rest)} more", COMPLETED, [tasks[each] for each in rest[:LISTED]]))
        nodes = [
            Node(
                id=protocol.dependency_node(dependent.flow_run_id, number),
                flow_run_id=dependent.flow_run_id,
                name=name,
                state_type=state,
                at=dependent.at,
                start=dependent.at,
                end=dependent.at,
            )
            for number, (name, state, _) in enumerate(named)
        ]
        await self._gateway.record_nodes(nodes)
        for node, (_, _, meant) in zip(nodes, named, strict=True):
            await self._link(node, meant, "The task that this one waited for")

    async def _make_group(self, batch_id: UUID) -> None:
        tag = f"batch:{batch_id}"
        run = await self._gateway.create_group(f"batch-{str(batch_id)[:8]}", key=tag, tags=(tag,))
        await self._store.grouped(batch_id, run.id)

    async def _watch_groups(self) -> None:
        """A page of the groups at each look: what was cancelled in Prefect is cancelled, what was deleted is let go."""
        groups = await self._store.watched(self._watched_until, PAGE)
        self._watched_until = groups[-1].batch_id if len(groups) == PAGE else None
        runs = await self._gateway.runs([group.run_id for group in groups])
        for group in groups:
            run = runs.get(group.run_id)
            if run is None:
                await self._store.close(group.batch_id)
            elif run.state.type in (CANCELLING, CANCELLED):
                await self._batches.cancel(group.batch_id)

    async def _end_group(self, group: Group) -> None:
        status = batch_status(group.statuses)
        counts = ", ".join(f"{group.statuses.count(word)} {word}" for word in _STATES if word in group.statuses)
        await self._gateway.propose(group.run_id, _STATES[status], message=f"{counts}.", force=True)
        logger.info("batch_ended", extra={"batch_id": str(group.batch_id), "status": status})

    async def _show_members(self, members: Sequence[Member]) -> None:
        nodes = [_node(member) for member in members]
        await self._gateway.record_nodes(nodes)
        for node, member in zip(nodes, members, strict=True):
            if member.completed_at is not None and member.flow_run_id is not None:
                run = Upstream(member.id, member.template, member.status, member.flow_run_id)
                await self._link(node, [run], "The task's run")

    async def _link(self, node: Node, tasks: Iterable[Upstream], description: str) -> None:
        lines = [
            f"[{_run_name(task)}]({self._ui_path}/runs/flow-run/{task.flow_run_id}) ({task.status})"
            for task in tasks
            if task.flow_run_id is not None
        ]
        if lines:
            await self._gateway.write_note(node.flow_run_id, node.id, "\n\n".join(lines), description=description)


async def _try(step: Coroutine[Any, Any, None]) -> bool:
    """Whether Prefect took it. What it refuses is not tried again: a graph without it is no reason to stop."""
    try:
        await step
    except DispatchError as exc:
        logger.warning("graph_refused", extra={"reason": str(exc)})
        return False
    return True


def _run_name(task: Upstream) -> str:
    return protocol.run_name(task.template, str(task.id))


def _node(member: Member) -> Node:
    """The task in its group's graph. Clocks may differ: each state comes after the one before all the same."""
    queued_at = member.created_at
    running_at = max(member.started_at or queued_at, queued_at + _TICK)
    ended_at = max(member.completed_at or running_at, running_at + _TICK)
    at: datetime = {"queued": queued_at, "running": running_at}.get(member.status, ended_at)
    return Node(
        id=_node_id(member.group_run_id, member.id),
        flow_run_id=member.group_run_id,
        name=member.name or protocol.run_name(member.template, str(member.id)),
        state_type=_STATES[member.status],
        at=at,
        start=member.started_at or (ended_at if member.completed_at else queued_at),
        end=ended_at if member.completed_at else None,
        waits_for=tuple(_node_id(member.group_run_id, other) for other in member.depends_on),
    )


def _node_id(group_run_id: UUID, task_id: UUID) -> UUID:
    return uuid5(group_run_id, str(task_id))
