"""A child's Prefect client: says who executes the run, and asks the server only for what it alone can say."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID, uuid4

import httpx
from prefect.client.schemas import OrchestrationResult
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectNotFound
from prefect.states import to_state_create

from ai_task_orchestra import protocol
from ai_task_orchestra.worker.patient_client import PatientClient

_log = logging.getLogger(__name__)

# A run that has not ended by then is told the flow's version and its process id, which people may want to know.
_DETAILS_SECONDS: Final = 0.5


class ChildClient(PatientClient):
    """For the execution of one flow run after the other. Begin each with `begin`.

    What Prefect's engine asks around a run, and what is done instead:

    - before Running it sends the flow's version and retry policy: sent with the process id half a second later, and
      not at all for a run that has ended by then. The Running state's message names the worker meanwhile;
    - after Running it reads the run again: answered from what is known;
    - the run's report goes out with its final state, in which the server makes an artifact of it.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._worker = os.environ.get("PREFECT__WORKER_NAME", "")
        self._run: FlowRun | None = None
        self._fresh = False
        self._details: dict[str, Any] | None = None
        self._report: dict[str, Any] | None = None
        self._telling: asyncio.Task[None] | None = None
        self._beside: set[asyncio.Task[Any]] = set()

    def begin(self, flow_run: FlowRun) -> None:
        """This run is executed from now on, and nothing of the one before is left."""
        self._run, self._fresh = flow_run, False
        self._details = self._report = self._telling = None

    async def finish(self) -> None:
        """Wait until everything that was sent beside the run has arrived."""
        if self._telling:
            self._telling.cancel()
        await asyncio.gather(*self._beside, return_exceptions=True)

    def carry_report(self, report: Mapping[str, Any]) -> None:
        """Send this as the report of the present run, together with its final state."""
        self._report = {
            **report,
            "artifact_type": protocol.REPORT_ARTIFACT_TYPE,
            "artifact_description": protocol.REPORT_ARTIFACT_DESCRIPTION,
        }

    def create_artifact_beside(self, artifact: ArtifactCreate) -> None:
        """Create an artifact for people while the run goes on; one that Prefect does not take is logged."""
        self._beside_the_run(self.create_artifact(artifact))

    async def read_flow_run(self, flow_run_id: UUID) -> FlowRun:
        """A run; the present one right after it became Running is known without asking."""
        if self._fresh and self._run and flow_run_id == self._run.id:
            self._fresh = False
            return self._run
        return await super().read_flow_run(flow_run_id)

    async def update_flow_run(self, flow_run_id: UUID, *args: Any, **changes: Any) -> httpx.Response:
        """Update a run. The engine's update of a run that is not Running yet is held back; 204 is the answer then."""
        if self._is_present(flow_run_id) and changes.keys() == {"flow_version", "empirical_policy"} and not args:
            self._details = changes
            return httpx.Response(204)
        return await super().update_flow_run(flow_run_id, *args, **changes)

    async def set_flow_run_state(
        self, flow_run_id: UUID | str, state: State[Any], force: bool = False
    ) -> OrchestrationResult[Any]:
        """Set a state of the present run, or of another one as Prefect's own client does."""
        run_id = UUID(str(flow_run_id))
        if not self._is_present(run_id):
            return await super().set_flow_run_state(run_id, state, force=force)
        if state.is_running() and not state.message:
            state.message = protocol.claim_message(self._worker)
        if state.is_final() and self._telling:
            self._telling.cancel()
        result = await self._propose(run_id, state, force)
        if result.state and result.state.is_running():
            self._is_running(result.state)
        return result

    async def claim_for_this_process(self, run_id: UUID) -> None:
        """Say at once who executes the run: for flows that are not run with this client."""
        await self._tell(run_id, {})

    def _is_present(self, run_id: UUID) -> bool:
        return self._run is not None and self._run.id == run_id

    def _is_running(self, state: State[Any]) -> None:
        """The run as the server has it now, as far as an engine needs to know."""
        if self._run is None:
            return
        known = {
            "state": state,
            "state_id": state.id,
            "state_type": state.type,
            "state_name": state.name,
            "start_time": self._run.start_time or state.timestamp,
            "run_count": self._run.run_count + 1,
        }
        self._run, self._fresh = self._run.model_copy(update=known), True
        if self._telling is None:
            self._telling = asyncio.create_task(self._tell_later(self._run.id))

    async def _propose(self, run_id: UUID, state: State[Any], force: bool) -> OrchestrationResult[Any]:
        """Prefect's own way, with the report as the data of a final state."""
        proposed = to_state_create(state)
        proposed.state_details.flow_run_id = run_id
        proposed.state_details.transition_id = uuid4()
        if self._report and state.is_final():
            proposed.data = self._report
        content = {"state": proposed.model_dump(mode="json", serialize_as_any=True), "force": force}
        try:
            response = await self.request("POST", "/flow_runs/{id}/set_state", path_params={"id": run_id}, json=content)
        except httpx.HTTPStatusError as exc:
            if exc.response.status_code == 404:
                raise ObjectNotFound(http_exc=exc) from exc
            raise
        return OrchestrationResult.model_validate(response.json())

    async def _tell_later(self, run_id: UUID) -> None:
        await asyncio.sleep(_DETAILS_SECONDS)
        self._beside_the_run(self._tell(run_id, self._details or {}))

    async def _tell(self, run_id: UUID, changes: dict[str, Any]) -> None:
        pid = protocol.infrastructure_pid(self._worker, os.getpid())
        await super().update_flow_run(run_id, infrastructure_pid=pid, **changes)

    def _beside_the_run(self, work: Any) -> None:
        task = asyncio.create_task(self._or_log(work))
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    async def _or_log(self, work: Any) -> None:
        try:
            await work
        except (httpx.HTTPError, ObjectNotFound) as exc:
            run_id = str(self._run.id) if self._run else None
            _log.warning("worker.run_not_updated", extra={"flow_run_id": run_id, "error": type(exc).__name__})
