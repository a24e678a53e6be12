"""Registers in Prefect what the templates need: work pools, their queues, one deployment per template.

Running it again changes only what is out of date, so schedules, pauses and tags that people added in Prefect stay.
Nothing is ever deleted: Prefect would delete the waiting runs of a deployment along with it.

Prefect counts priorities the other way round: in its pools the queue `priority-10` has number 1 and runs first.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final

import httpx
from prefect import Flow
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from ai_task_orchestra.errors import OrchestraError, UnreachableError
from ai_task_orchestra.library import TemplateLibrary
from ai_task_orchestra.protocol import (
    CATALOG_MODULE,
    DEFAULT_PRIORITY,
    PRIORITIES,
    WORKER_TYPE,
    prefect_queue_priority,
    queue_name,
)
from ai_task_orchestra.settings import Settings, load_settings
from ai_task_orchestra.template import TemplateSpec
from flows.compiler import compile_template

logger = logging.getLogger(__name__)

# Marks our deployments, and those whose template is gone: paused by us, so they may be resumed by us.
TAG: Final = "orchestra"
REMOVED_TAG: Final = "template-removed"

# The queue that Prefect makes with each pool: behind all of ours, a run in it counts as priority 1.
_DEFAULT_QUEUE: Final = "default"
_DEFAULT_QUEUE_PRIORITY: Final = prefect_queue_priority(PRIORITIES[0]) + 1
_POOL_DESCRIPTION: Final = (
    "Tasks of AI Task Orchestra. Queue priority-10 is the most urgent; Prefect's numbers run down."
)
_PAGE: Final = 200


async def bootstrap(settings: Settings) -> list[str]:
    """Bring Prefect in line with the templates of `settings.templates_dir`.

    1. Pools with their queues: deployments name them.
    2. A deployment for each template.
    3. Deployments of ours whose template is gone are paused.

    Returns:
        the names of the templates' deployments, sorted.

    Raises:
        UnreachableError: Prefect does not answer, or refuses.
    """
    library = TemplateLibrary(settings.templates_dir)
    specs = list(library.templates.values())
    try:
        async with PrefectClient(settings.prefect_url, auth_string=_auth_string(settings)) as client:
            pools = sorted({settings.work_pool, *(_pool_of(spec, settings) for spec in specs)})
            for pool in pools:
                await _ensure_pool(client, pool)
            for spec in specs:
                await _ensure_deployment(client, spec, settings)
            await _pause_removed(client, {spec.name for spec in specs}, pools)
    except httpx.HTTPStatusError as exc:
        raise UnreachableError(f"Prefect at {settings.prefect_url} refused: {exc.response.status_code}") from exc
    except httpx.HTTPError as exc:
        raise UnreachableError(f"Prefect at {settings.prefect_url} does not answer ({type(exc).__name__})") from exc
    return [spec.name for spec in specs]


def base_job_template() -> dict[str, Any]:
    """The base job template of our work pools."""
    content: dict[str, Any] = json.loads(Path(__file__).with_name("work_pool.json").read_text(encoding="utf-8"))
    return content


def _auth_string(settings: Settings) -> str | None:
    """The one set, else the one that `orchestra up` keeps in its home."""
    if settings.prefect_auth_string:
        return settings.prefect_auth_string
    try:
        return settings.prefect_auth_file.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def _pool_of(spec: TemplateSpec, settings: Settings) -> str:
    return spec.work_pool or settings.work_pool


async def _ensure_pool(client: PrefectClient, name: str) -> None:
    try:
        pool = await client.read_work_pool(name)
    except ObjectNotFound:
        wanted = WorkPoolCreate(
            name=name, type=WORKER_TYPE, description=_POOL_DESCRIPTION, base_job_template=base_job_template()
        )
        try:
            pool = await client.create_work_pool(wanted)
            logger.info("work_pool_created", extra={"work_pool": name})
        except ObjectAlreadyExists:  # somebody else's bootstrap was faster
            pool = await client.read_work_pool(name)
    if pool.type != WORKER_TYPE:
        logger.warning("work_pool_of_other_type", extra={"work_pool": name, "type": pool.type})
    await _ensure_queues(client, name)


async def _ensure_queues(client: PrefectClient, pool: str) -> None:
    """Ten queues and Prefect's own behind them.

    Creating a queue, or giving it another number, pushes those at or behind this number one further back: going up
    from 1, no queue that is in its place already is moved again.
    """
    wanted = {queue_name(priority): prefect_queue_priority(priority) for priority in reversed(PRIORITIES)}
    wanted[_DEFAULT_QUEUE] = _DEFAULT_QUEUE_PRIORITY
    present = await _queues(client, pool)
    for name, number in wanted.items():
        if name not in present:
            try:
                await client.create_work_queue(name=name, work_pool_name=pool, priority=number)
                logger.info("work_queue_created", extra={"work_pool": pool, "work_queue": name})
            except ObjectAlreadyExists:
                pass
    for name, number in wanted.items():
        if (await _queues(client, pool)).get(name) != number:
            place = {"work_pool_name": pool, "name": name}
            await client.request(
                "PATCH", "/work_pools/{work_pool_name}/queues/{name}", path_params=place, json={"priority": number}
            )


async def _queues(client: PrefectClient, pool: str) -> dict[str, int | None]:
    return {queue.name: queue.priority for queue in await client.read_work_queues(work_pool_name=pool)}


async def _ensure_deployment(client: PrefectClient, spec: TemplateSpec, settings: Settings) -> None:
    flow = compile_template(spec, settings=settings)
    wanted = _wanted(flow, spec, settings)
    try:
        present = await client.read_deployment_by_name(f"{spec.name}/{spec.name}")
    except ObjectNotFound:
        flow_id = await client.create_flow_from_name(spec.name)
        await client.create_deployment(flow_id, spec.name, tags=[TAG], pull_steps=[], **wanted)
        logger.info("deployment_created", extra={"deployment": spec.name})
        return
    changes = {name: value for name, value in wanted.items() if getattr(present, name) != value}
    if "work_pool_name" in changes:  # without its queue's name, Prefect puts it into the pool's default queue
        changes["work_queue_name"] = wanted["work_queue_name"]
    if TAG not in present.tags or REMOVED_TAG in present.tags:
        changes["tags"] = sorted({*present.tags, TAG} - {REMOVED_TAG})
    if REMOVED_TAG in present.tags:
        changes["paused"] = False
    if changes:
        await _update(client, present, changes)
        logger.info("deployment_updated", extra={"deployment": spec.name, "fields": sorted(changes)})


def _wanted(flow: Flow[..., Any], spec: TemplateSpec, settings: Settings) -> dict[str, Any]:
    """What a deployment of ours has; everything else about it is its owner's."""
    return {
        "entrypoint": f"{CATALOG_MODULE}.{spec.identifier}",
        "description": spec.description,
        "version": flow.version,
        "work_pool_name": _pool_of(spec, settings),
        "work_queue_name": queue_name(DEFAULT_PRIORITY),
        "parameter_openapi_schema": flow.parameters.model_dump(exclude_unset=True),
        "enforce_parameter_schema": True,
    }


async def _pause_removed(client: PrefectClient, names: set[str], pools: list[str]) -> None:
    async for deployment in _our_deployments(client):
        gone = deployment.name not in names and deployment.work_pool_name in pools
        if gone and (deployment.entrypoint or "").startswith(f"{CATALOG_MODULE}.") and not deployment.paused:
            await _update(client, deployment, {"paused": True, "tags": sorted({*deployment.tags, REMOVED_TAG})})
            logger.info("deployment_paused", extra={"deployment": deployment.name})


async def _our_deployments(client: PrefectClient) -> AsyncIterator[DeploymentResponse]:
    ours = DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG]))
    offset = 0
    while page := await client.read_deployments(deployment_filter=ours, limit=_PAGE, offset=offset):
        offset += len(page)
        for deployment in page:
            yield deployment


async def _update(client: PrefectClient, deployment: DeploymentResponse, changes: Mapping[str, Any]) -> None:
    await client.update_deployment(deployment.id, DeploymentUpdate(**changes))


def main() -> int:
    """`python -m deployments.bootstrap`: 0 done, 2 the settings can't be used, 3 Prefect does not answer."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    try:
        names = asyncio.run(bootstrap(load_settings()))
    except UnreachableError as exc:
        sys.stderr.write(f"{exc}\n")
        return 3
    except OrchestraError as exc:
        sys.stderr.write(f"{exc}\n")
        return 2
    sys.stdout.write(f"{len(names)} deployments: {', '.join(names)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
