"""The seam to Prefect: everything the core asks of it. `api.prefect_gateway` speaks to a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

from api.prefect_graphs import Node
from api.prefect_types import Deployment, FlowRun, LogPage, NewRun, RunEvent, RunFilter, RunState, StateAnswer, Worker

#: Prefect's largest page.
PAGE = 200


class PrefectGateway(Protocol):
    """What we use of Prefect.

    Every method may raise UnreachableError (no answer; the call may be repeated as it is) or DispatchError (refused).
    """

    def now(self) -> datetime:
        """The time by Prefect's clock, to be compared with what Prefect says of times. Does not ask; never raises."""
        ...

    async def deployment(self, name: str) -> Deployment | None:
        """The deployment `name` of the flow `name`."""
        ...

    async def deployment_by_id(self, deployment_id: UUID) -> Deployment | None: ...

    async def flow_name(self, flow_id: UUID) -> str | None: ...

    async def create_run(self, deployment_id: UUID, run: NewRun) -> FlowRun | None:
        """Create a run, or find the one with this idempotency key. None: there is no such deployment."""
        ...

    async def propose(
        self,
        run_id: UUID,
        state_type: str,
        *,
        name: str | None = None,
        message: str | None = None,
        scheduled_time: datetime | None = None,
        transition_id: UUID | None = None,
        force: bool = False,
    ) -> StateAnswer | None:
        """Propose a state; proposing it again under the same `transition_id` changes nothing. None: no such run."""
        ...

    async def set_parameters(self, run_id: UUID, parameters: Mapping[str, Any], *, tags: Collection[str]) -> None:
        """Replace a run's parameters and tags; a run that is gone is no error."""
        ...

    async def delete_run(self, run_id: UUID) -> None:
        """Delete a run; one that is gone already is no error."""
        ...

    async def runs(self, ids: Collection[UUID]) -> dict[UUID, FlowRun]:
        """The runs among `ids` (at most `PAGE`) that exist."""
        ...

    async def states(self, run_id: UUID) -> list[RunState]:
        """A run's states, oldest first."""
        ...

    async def find_runs(self, which: RunFilter, *, offset: int = 0) -> list[FlowRun]:
        """One page of at most `PAGE` runs. A page that is full may have a next one."""
        ...

    async def reports(self, run_ids: Collection[UUID]) -> dict[UUID, Mapping[str, Any]]:
        """The report artifact of each of `run_ids` (at most `PAGE`) that wrote one; the latest counts."""
        ...

    async def write_report(self, run_id: UUID, report: Mapping[str, Any]) -> None:
        """Write the report artifact of a run that never ran (`protocol.AttemptReport`)."""
        ...

    async def create_group(self, name: str, *, key: str, tags: Collection[str]) -> FlowRun:
        """A Running flow run that nobody executes, in no work pool; or the one that has this idempotency key."""
        ...

    async def record_nodes(self, nodes: Sequence[Node]) -> None:
        """Make or change nodes in graphs of flow runs; they may be seen a moment later."""
        ...

    async def write_note(self, run_id: UUID, node_id: UUID, text: str, *, description: str) -> None:
        """Put a text in Markdown on a node of a flow run's graph."""
        ...

    async def workers(self, pool: str) -> list[Worker]:
        """The workers of a pool, online or not; none for a pool that does not exist."""
        ...

    async def logs(self, run_ids: Collection[UUID], *, limit: int, offset: int) -> LogPage: ...

    async def problem(self, pool: str) -> str | None:
        """Why tasks of `pool` can't be dispatched, in a sentence; None if they can. Never raises."""
        ...

    def events(self) -> AbstractAsyncContextManager[AsyncIterator[RunEvent]]:
        """State changes of flow runs from now on. Lossy; the iterator raises UnreachableError when it breaks."""
        ...
