"""A child's Prefect client: says who executes the run, and does what the engine does before Running after it."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any
from uuid import UUID

import httpx
from prefect.client.schemas import OrchestrationResult
from prefect.client.schemas.objects import State
from prefect.exceptions import ObjectNotFound

from ai_task_orchestra import protocol
from ai_task_orchestra.worker.patient_client import PatientClient

_log = logging.getLogger(__name__)


class ChildClient(PatientClient):
    """For the execution of one flow run.

    Before the engine sets a run Running it sends the flow's version and retry policy. That can wait until afterwards:
    one request less before the run starts. It takes the worker's name along, and has arrived before the run ends.
    In between the Running state's message names the worker.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._worker = os.environ.get("PREFECT__WORKER_NAME", "")
        self._held: dict[UUID, dict[str, Any]] = {}
        self._sending: dict[UUID, asyncio.Task[None]] = {}

    async def update_flow_run(self, flow_run_id: UUID, *args: Any, **changes: Any) -> httpx.Response:
        """Update a run. The engine's update of a run that is not Running yet is held back; 204 is the answer then."""
        if changes.keys() == {"flow_version", "empirical_policy"} and not args and flow_run_id not in self._sending:
            self._held[flow_run_id] = changes
            return httpx.Response(204)
        return await super().update_flow_run(flow_run_id, *args, **changes)

    async def set_flow_run_state(
        self, flow_run_id: UUID | str, state: State[Any], force: bool = False
    ) -> OrchestrationResult[Any]:
        """Set a state; what was held back goes out right after the first one, and has arrived before a final one."""
        run_id = UUID(str(flow_run_id))
        if state.is_running() and not state.message:
            state.message = protocol.claim_message(self._worker)
        if state.is_final() and run_id in self._sending:
            await self._sending[run_id]
        result = await super().set_flow_run_state(flow_run_id, state, force=force)
        if changes := self._held.pop(run_id, None):
            self._sending[run_id] = asyncio.create_task(self._send(run_id, changes))
        return result

    async def claim_for_this_process(self, run_id: UUID) -> None:
        """Say at once who executes the run: for flows that are not run with this client."""
        await self._send(run_id, {})

    async def _send(self, run_id: UUID, changes: dict[str, Any]) -> None:
        pid = protocol.infrastructure_pid(self._worker, os.getpid())
        try:
            await super().update_flow_run(run_id, infrastructure_pid=pid, **changes)
        except (httpx.HTTPError, ObjectNotFound) as exc:
            _log.warning("worker.run_not_updated", extra={"flow_run_id": str(run_id), "error": type(exc).__name__})
