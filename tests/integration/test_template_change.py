"""A template added while the API runs gets its deployment in a real Prefect."""

from __future__ import annotations

import uuid
from pathlib import Path

import httpx

from ai_task_orchestra.library import TemplateLibrary
from api.template_watch import TemplateWatch, run_bootstrap
from tests.support.api_app import TEMPLATES, settings_for
from tests.support.waiting import wait_until


async def test_an_added_template_is_deployed_without_a_restart(tmp_path: Path, prefect_api_url: str) -> None:
    name = f"added-{uuid.uuid4().hex[:8]}"
    settings = settings_for(tmp_path, prefect_api_url=prefect_api_url, work_pool=f"pool-{name}")
    library = TemplateLibrary(settings.templates_dir)
    async with TemplateWatch(library, lambda: run_bootstrap(settings), interval_seconds=0.05).running():
        text = TEMPLATES["every-type.yaml"].replace("every-type", name)
        (settings.templates_dir / f"{name}.yaml").write_text(text)

        async def deployed() -> bool:
            async with httpx.AsyncClient(base_url=prefect_api_url) as client:
                return (await client.get(f"/deployments/name/{name}/{name}")).status_code == 200

        await wait_until(deployed, timeout=90, description="Prefect has a deployment of the added template")
