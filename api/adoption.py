"""Runs that we did not create (Quick Run, schedules, `prefect deployment run`) become tasks, so that the API shows
everything that runs in our pools.

A run that a schedule has made for later is adopted when it is due: Prefect deletes and makes such runs anew whenever
their deployment is updated, and none of that is anybody's task yet.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Table
from sqlalchemy.dialects.postgresql import insert

from ai_task_orchestra.library import TemplateLibrary
from ai_task_orchestra.protocol import priority_of_queue
from api.database import Sessions
from api.gateway import PrefectGateway
from api.models import Phase, TaskRecord
from api.pools import Pools
from api.prefect_types import SCHEDULED, FlowRun

logger = logging.getLogger(__name__)

TASK: Final[Table] = TaskRecord.__table__  # type: ignore[attr-defined]

TENANT: Final = "default"
#: How long before its time a scheduled run becomes a task.
AHEAD: Final = timedelta(seconds=10)


class Adoption:
    """Writes a row for a flow run that has none."""

    def __init__(
        self,
        sessions: Sessions,
        gateway: PrefectGateway,
        library: TemplateLibrary,
        pools: Pools,
    ) -> None:
        self._sessions, self._gateway, self._library, self._pools = sessions, gateway, library, pools
        self._names: dict[UUID, str] = {}

    async def adopt(self, run: FlowRun, task_id: UUID, generation: int) -> bool:
        """Make a task of the run unless it is not ours to show; False if there is still none."""
        if run.work_pool not in self._pools.names() or _is_for_later(run, self._gateway.now()):
            return False
        template = await self._template_name(run)
        spec = self._library.templates.get(template)
        policy: dict[str, Any] = {"on_worker_loss": "fail"}  # somebody else's flow is theirs to run again
        if spec is not None:
            policy = {
                "on_worker_loss": spec.on_worker_loss,
                "retries": spec.retries,
                "retry_delay_seconds": spec.retry_delay_seconds,
            }
        row = {
            "id": task_id,
            "tenant": TENANT,
            "template": template,
            "parameters": run.parameters,
            "priority": priority_of_queue(run.work_queue),
            "created_at": run.created,
            "adopted": True,
            "work_pool": run.work_pool,
            "generation": generation,
            "phase": Phase.READY,
            "flow_run_id": run.id,
            "flow_id": run.flow_id,
            "deployment_id": run.deployment_id,
            "not_before": run.next_scheduled_start_time,
        }
        async with self._sessions.begin() as session:
            await session.execute(insert(TASK).values(row | policy).on_conflict_do_nothing())
        logger.info("flow_run_adopted", extra={"task_id": str(task_id), "flow_run_id": str(run.id)})
        return True

    async def _template_name(self, run: FlowRun) -> str:
        """Template, flow and deployment share one name; a run without a deployment has its flow's."""
        key = run.deployment_id or run.flow_id
        if key not in self._names:
            deployment = await self._gateway.deployment_by_id(run.deployment_id) if run.deployment_id else None
            name = deployment.name if deployment else await self._gateway.flow_name(run.flow_id)
            self._names[key] = name or "unknown"
        return self._names[key]


def _is_for_later(run: FlowRun, now: datetime) -> bool:
    due = run.next_scheduled_start_time
    return run.auto_scheduled and run.state.type == SCHEDULED and due is not None and due > now + AHEAD
