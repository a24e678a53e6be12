"""A work pool with a deployment in a real Prefect, and a worker played by hand: what the core's tests act with."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from typing import Any

import httpx

from ai_task_orchestra import protocol


def drawn(graph: dict[str, Any]) -> dict[str, tuple[str, set[str]]]:
    """The nodes of a graph as Prefect answers it, by name: state, and the names of those they wait for."""
    nodes = dict(graph["nodes"])
    return {
        node["label"]: (node["state_type"], {nodes[parent["id"]]["label"] for parent in node["parents"]})
        for node in nodes.values()
    }


@dataclass
class PrefectBench:
    """One pool, one template (flow and deployment of the same name), and the deeds of a worker."""

    http: httpx.AsyncClient
    pool: str
    template: str
    deployment_id: str

    @classmethod
    async def prepare(cls, http: httpx.AsyncClient, *, template: str | None = None) -> PrefectBench:
        """Make a fresh pool with its queues, and a deployment in it."""
        pool = f"pool-{uuid.uuid4().hex[:8]}"
        template = template or f"work-{uuid.uuid4().hex[:8]}"
        bench = cls(http, pool, template, "")
        await bench.post("/work_pools/", {"name": pool, "type": "process"})
        for priority in protocol.PRIORITIES:
            number = protocol.prefect_queue_priority(priority)
            queue = {"name": protocol.queue_name(priority), "priority": number}
            await bench.post(f"/work_pools/{pool}/queues", queue)
        bench.deployment_id = await bench.deploy(template)
        return bench

    async def deploy(self, template: str, pool: str | None = None, entrypoint: str = "nowhere.flow") -> str:
        flow = await self.post("/flows/", {"name": template})
        deployment = {
            "name": template,
            "flow_id": flow["id"],
            "work_pool_name": pool or self.pool,
            "work_queue_name": "priority-5",
            "entrypoint": entrypoint,
            "enforce_parameter_schema": False,
        }
        return str((await self.post("/deployments/", deployment))["id"])

    async def post(self, path: str, body: Any) -> Any:
        response = await self.http.post(path, json=body)
        assert response.status_code < 400, f"{path}: {response.status_code} {response.text}"
        return response.json() if response.content else None

    async def run(self, run_id: str) -> dict[str, Any] | None:
        response = await self.http.get(f"/flow_runs/{run_id}")
        return None if response.status_code == 404 else response.json()

    async def read_graph(self, run_id: str) -> dict[str, tuple[str, set[str]]]:
        """The nodes of a run's graph by name: state, and the names of those they wait for."""
        return drawn((await self.http.get(f"/flow_runs/{run_id}/graph-v2")).json())

    async def read_notes(self, run_id: str) -> list[str]:
        """What stands on the nodes of a run's graph."""
        nodes = (await self.http.get(f"/flow_runs/{run_id}/graph-v2")).json()["nodes"]
        ids = [artifact["id"] for _, node in nodes for artifact in node["artifacts"]]
        return [(await self.http.get(f"/artifacts/{each}")).json()["data"] for each in ids]

    async def all_runs(self, task_id: str | None = None) -> list[dict[str, Any]]:
        """Runs of the pool, oldest first; only those of a task."""
        body = {"work_pools": {"name": {"any_": [self.pool]}}, "limit": 200}
        found = await self.post("/flow_runs/filter", body)
        of_task = [r for r in found if task_id is None or (r["idempotency_key"] or "").startswith(f"{task_id}:")]
        return sorted(of_task, key=lambda run: run["created"])

    async def due(self, limit: int = 50) -> list[str]:
        """What Prefect hands to a worker now, in its order."""
        body = {"limit": limit, "scheduled_before": "2090-01-01T00:00:00Z"}
        found = await self.post(f"/work_pools/{self.pool}/get_scheduled_flow_runs", body)
        return [item["flow_run"]["id"] for item in found]

    async def set(self, run_id: str, kind: str, *, force: bool = False, **state: Any) -> dict[str, Any]:
        body = {"state": {"type": kind, **state}, "force": force}
        return dict(await self.post(f"/flow_runs/{run_id}/set_state", body))

    async def claim(self, run_id: str, worker: str = "w1") -> bool:
        answer = await self.set(run_id, "PENDING", message=protocol.claim_message(worker))
        return bool(answer["status"] == "ACCEPT")

    async def try_claim(self, run_id: str) -> bool:
        """Claim a run that may be gone."""
        response = await self.http.post(f"/flow_runs/{run_id}/set_state", json={"state": {"type": "PENDING"}})
        assert response.status_code in (200, 201, 404), response.text
        return response.status_code != 404 and bool(response.json()["status"] == "ACCEPT")

    async def start(self, run_id: str, worker: str = "w1") -> None:
        """Claim and run."""
        assert await self.claim(run_id, worker)
        pid = protocol.infrastructure_pid(worker, 4711)
        response = await self.http.patch(f"/flow_runs/{run_id}", json={"infrastructure_pid": pid})
        assert response.status_code == 204, response.text
        assert (await self.set(run_id, "RUNNING"))["status"] == "ACCEPT"

    async def report(self, run_id: str, **report: Any) -> None:
        run = await self.run(run_id)
        assert run is not None
        task_id, generation = protocol.task_of_run(run_id, run["idempotency_key"])
        data = {"version": 1, "task_id": task_id, "generation": generation, "worker": "w1"} | report
        artifact = {"type": protocol.REPORT_ARTIFACT_TYPE, "flow_run_id": run_id, "data": data}
        await self.post("/artifacts/", artifact)

    async def complete(self, run_id: str, result: Any = None, usage: Any = None) -> None:
        await self.report(run_id, result=result or {"output": "done"}, resource_usage=usage or {"memory_used_gb": 0.1})
        assert (await self.set(run_id, "COMPLETED"))["status"] == "ACCEPT"

    async def fail(self, run_id: str, message: str = "step 'x': broke", **report: Any) -> None:
        await self.report(run_id, error={"type": "step_failed", "message": message, "step": "x"}, **report)
        assert (await self.set(run_id, "FAILED", message=message))["status"] == "ACCEPT"

    async def heartbeat(self, worker: str) -> None:
        await self.post(f"/work_pools/{self.pool}/workers/heartbeat", {"name": worker, "heartbeat_interval_seconds": 1})

    async def quick_run(self, **run: Any) -> str:
        """What the UI's Quick Run does."""
        made = await self.post(f"/deployments/{self.deployment_id}/create_flow_run", run)
        return str(made["id"])

    async def delete(self, run_id: str) -> None:
        response = await self.http.delete(f"/flow_runs/{run_id}")
        assert response.status_code == 204, response.text

    async def work_off(self, *, until: asyncio.Event, order: list[str] | None = None) -> None:
        """A worker with one slot that completes whatever is due, the most urgent first."""
        while not until.is_set():
            for run_id in await self.due(1):
                if await self.claim(run_id):
                    if order is not None:
                        order.append(run_id)
                    await self.set(run_id, "RUNNING")
                    await self.complete(run_id)
            await asyncio.sleep(0.02)
