"""The only calls to Prefect of the API (REST, and the event stream in `api.prefect_events`)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any
from urllib.parse import quote
from uuid import UUID

from ai_task_orchestra.errors import DispatchError, UnreachableError
from ai_task_orchestra.protocol import GROUP_FLOW, REPORT_ARTIFACT_DESCRIPTION, REPORT_ARTIFACT_TYPE
from api import prefect_events
from api.gateway import PAGE
from api.prefect_graphs import Node, as_events
from api.prefect_http import PrefectHttp, PrefectRefusedError
from api.prefect_types import (
    RUNNING,
    SCHEDULED,
    Deployment,
    FlowRun,
    LogPage,
    NewRun,
    RunEvent,
    RunFilter,
    RunLog,
    RunState,
    StateAnswer,
    Worker,
    moment,
    required_moment,
)


class HttpPrefectGateway:
    """`api.gateway.PrefectGateway` over Prefect's REST API. Close it with `aclose()`."""

    def __init__(self, url: str, auth_string: str | None = None) -> None:
        self._http = PrefectHttp(url, auth_string)

    async def aclose(self) -> None:
        await self._http.aclose()

    def now(self) -> datetime:
        return self._http.clock.now()

    async def deployment(self, name: str) -> Deployment | None:
        part = quote(name, safe="")
        return _deployment(await self._unless_missing("GET", f"/deployments/name/{part}/{part}"))

    async def deployment_by_id(self, deployment_id: UUID) -> Deployment | None:
        return _deployment(await self._unless_missing("GET", f"/deployments/{deployment_id}"))

    async def flow_name(self, flow_id: UUID) -> str | None:
        data = await self._unless_missing("GET", f"/flows/{flow_id}")
        return None if data is None else str(data["name"])

    async def create_run(self, deployment_id: UUID, run: NewRun) -> FlowRun | None:
        body = {
            "name": run.name,
            "parameters": run.parameters,
            # The API has checked them against the template; a second check would only cost time.
            "enforce_parameter_schema": False,
            "idempotency_key": run.idempotency_key,
            "tags": list(run.tags),
            "labels": dict(run.labels),
            "work_queue_name": run.work_queue,
            "state": _state(run.state_type, run.state_name, run.state_message, run.scheduled_time, None),
        }
        data = await self._unless_missing("POST", f"/deployments/{deployment_id}/create_flow_run", body)
        return None if data is None else FlowRun.parse(data)

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
        state = _state(state_type, name, message, scheduled_time, transition_id)
        body = {"state": state, "force": force}
        # A run that was made ready may be a worker's a moment later; the same request again would take it away from
        # there, because Prefect compares transition ids with those of the present state only.
        repeatable = state_type != SCHEDULED
        data = await self._unless_missing("POST", f"/flow_runs/{run_id}/set_state", body, repeatable=repeatable)
        if data is None:
            return None
        new = RunState.parse(data["state"]) if data.get("state") else None
        return StateAnswer(data["status"] == "ACCEPT", new, (data.get("details") or {}).get("reason"))

    async def set_parameters(self, run_id: UUID, parameters: Mapping[str, Any], *, tags: Collection[str]) -> None:
        await self._unless_missing("PATCH", f"/flow_runs/{run_id}", {"parameters": parameters, "tags": list(tags)})

    async def delete_run(self, run_id: UUID) -> None:
        await self._unless_missing("DELETE", f"/flow_runs/{run_id}")

    async def runs(self, ids: Collection[UUID]) -> dict[UUID, FlowRun]:
        if not ids:
            return {}
        body = {"flow_runs": {"id": {"any_": [str(run_id) for run_id in ids]}}, "limit": PAGE}
        return {run.id: run for run in _runs(await self._http.post("/flow_runs/filter", body))}

    async def states(self, run_id: UUID) -> list[RunState]:
        data = await self._http.get("/flow_run_states/", flow_run_id=str(run_id))
        return sorted((RunState.parse(item) for item in data), key=lambda state: state.timestamp)

    async def find_runs(self, which: RunFilter, *, offset: int = 0) -> list[FlowRun]:
        flow_runs: dict[str, Any] = {}
        if which.state_types is not None:
            flow_runs["state"] = {"type": {"any_": list(which.state_types)}}
        if which.expected_after is not None:
            flow_runs["expected_start_time"] = {"after_": which.expected_after.isoformat()}
        if which.ended_after is not None:
            flow_runs["end_time"] = {"after_": which.ended_after.isoformat()}
        body: dict[str, Any] = {"flow_runs": flow_runs, "limit": PAGE, "offset": offset, "sort": "ID_DESC"}
        if which.work_pools:
            body["work_pools"] = {"name": {"any_": list(which.work_pools)}}
        return list(_runs(await self._http.post("/flow_runs/filter", body)))

    async def reports(self, run_ids: Collection[UUID]) -> dict[UUID, Mapping[str, Any]]:
        if not run_ids:
            return {}
        body = {
            "artifacts": {
                "flow_run_id": {"any_": [str(run_id) for run_id in run_ids]},
                "type": {"any_": [REPORT_ARTIFACT_TYPE]},
            },
            "limit": PAGE,
            "sort": "CREATED_DESC",
        }
        found: dict[UUID, Mapping[str, Any]] = {}
        for item in await self._http.post("/artifacts/filter", body):
            report = _report(item.get("data"))
            if report is not None:
                found.setdefault(UUID(item["flow_run_id"]), report)
        return found

    async def write_report(self, run_id: UUID, report: Mapping[str, Any]) -> None:
        body = {
            "type": REPORT_ARTIFACT_TYPE,
            "description": REPORT_ARTIFACT_DESCRIPTION,
            "data": dict(report),
            "flow_run_id": str(run_id),
        }
        await self._http.post("/artifacts/", body)

    async def create_group(self, name: str, *, key: str, tags: Collection[str]) -> FlowRun:
        flow = await self._http.post("/flows/", {"name": GROUP_FLOW})
        body = {
            "flow_id": flow["id"],
            "name": name,
            "idempotency_key": key,
            "tags": list(tags),
            "state": _state(RUNNING, None, None, None, None),
        }
        run = FlowRun.parse(await self._http.post("/flow_runs/", body))
        if run is None:
            raise DispatchError("Prefect made a flow run without a state")
        return run

    async def record_nodes(self, nodes: Sequence[Node]) -> None:
        await self._http.post("/events", as_events(nodes))

    async def write_note(self, run_id: UUID, node_id: UUID, text: str, *, description: str) -> None:
        about = {"flow_run_id": str(run_id), "task_run_id": str(node_id)}
        await self._http.post("/artifacts/", {"type": "markdown", "description": description, "data": text} | about)

    async def workers(self, pool: str) -> list[Worker]:
        found: list[Worker] = []
        while True:  # Prefect keeps every worker that there ever was
            body = {"limit": PAGE, "offset": len(found)}
            page = await self._unless_missing("POST", f"/work_pools/{quote(pool, safe='')}/workers/filter", body) or ()
            found += [Worker(item["name"], moment(item.get("last_heartbeat_time"))) for item in page]
            if len(page) < PAGE:
                return found

    async def logs(self, run_ids: Collection[UUID], *, limit: int, offset: int) -> LogPage:
        body = {
            "logs": {"flow_run_id": {"any_": [str(run_id) for run_id in run_ids]}},
            "limit": min(limit, PAGE),
            "offset": offset,
            "sort": "TIMESTAMP_ASC",
        }
        lines = [_log(item) for item in await self._http.post("/logs/filter", body)]
        return LogPage(lines, await self._step_names({line.task_run_id for line in lines if line.task_run_id}))

    async def problem(self, pool: str) -> str | None:
        try:
            found = await self._unless_missing("GET", f"/work_pools/{quote(pool, safe='')}")
        except (UnreachableError, DispatchError) as exc:
            return str(exc)
        if found is None:
            return f"there is no work pool {pool!r}; run `python -m deployments.bootstrap`"
        return None

    def events(self) -> AbstractAsyncContextManager[AsyncIterator[RunEvent]]:
        return prefect_events.subscribe(self._http.url, self._http.auth_string)

    async def _step_names(self, task_run_ids: Collection[UUID]) -> dict[UUID, str]:
        if not task_run_ids:
            return {}
        body = {"task_runs": {"id": {"any_": [str(run_id) for run_id in task_run_ids]}}, "limit": PAGE}
        return {UUID(item["id"]): item["name"] for item in await self._http.post("/task_runs/filter", body)}

    async def _unless_missing(self, method: str, path: str, body: Any = None, *, repeatable: bool = True) -> Any:
        """The answer, None for 404 (and `{}` for an empty one)."""
        try:
            answer = await self._http.request(method, path, body=body, repeatable=repeatable)
        except PrefectRefusedError as exc:
            if exc.status == 404:
                return None
            raise
        return {} if answer is None else answer


def _state(
    state_type: str,
    name: str | None,
    message: str | None,
    scheduled_time: datetime | None,
    transition_id: UUID | None,
) -> dict[str, Any]:
    details = {
        "scheduled_time": scheduled_time.isoformat() if scheduled_time else None,
        "transition_id": str(transition_id) if transition_id else None,
    }
    return {
        "type": state_type,
        "name": name,
        "message": message,
        "state_details": {key: value for key, value in details.items() if value is not None},
    }


def _deployment(data: Mapping[str, Any] | None) -> Deployment | None:
    return None if data is None else Deployment.parse(data)


def _runs(data: Iterable[Mapping[str, Any]]) -> Iterable[FlowRun]:
    return (run for run in map(FlowRun.parse, data) if run is not None)


def _report(data: Any) -> Mapping[str, Any] | None:
    """Artifact data is an object, or the text of one."""
    if isinstance(data, str):
        try:
            data = json.loads(data, parse_constant=lambda _: None)
        except ValueError:
            return None
    return data if isinstance(data, Mapping) else None


def _log(item: Mapping[str, Any]) -> RunLog:
    task_run_id = item.get("task_run_id")
    return RunLog(
        required_moment(item["timestamp"]), item["level"], item["message"], UUID(task_run_id) if task_run_id else None
    )
