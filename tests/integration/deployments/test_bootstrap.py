"""What bootstrap and `prefect deploy --all` register in a real Prefect server."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from ai_task_orchestra.errors import UnreachableError
from ai_task_orchestra.library import TemplateLibrary
from ai_task_orchestra.settings import Settings
from deployments.bootstrap import REMOVED_TAG, base_job_template, bootstrap
from tests.support import servers

ROOT = Path(__file__).parents[3]
BUILT_IN = list(TemplateLibrary(ROOT / "templates").templates)
QUEUES = {f"priority-{priority}": 11 - priority for priority in range(1, 11)} | {"default": 11}


class Prefect:
    """The server's own view, asked without Prefect's client."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=30)

    def __enter__(self) -> Prefect:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def call(self, method: str, path: str, body: Any = None) -> Any:
        answer = self._http.request(method, path, json=body)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def queues(self, pool: str) -> dict[str, int]:
        found = self.call("POST", f"/work_pools/{pool}/queues/filter", {})
        return {queue["name"]: queue["priority"] for queue in found}

    def deployments(self, names: list[str]) -> dict[str, dict[str, Any]]:
        found = self.call("POST", "/deployments/filter", {"deployments": {"name": {"any_": names}}})
        return {deployment["name"]: deployment for deployment in found}


@pytest.fixture
def prefect(prefect_api_url: str) -> Iterator[Prefect]:
    with Prefect(prefect_api_url) as prefect:
        yield prefect


@pytest.fixture
def settings(prefect_api_url: str, tmp_path: Path) -> Settings:
    """A pool, a home and a folder of templates of the test's own."""
    folder = tmp_path / "templates"
    folder.mkdir()
    pool = f"pool-{uuid.uuid4().hex[:8]}"
    return Settings(home=tmp_path, templates_dir=folder, work_pool=pool, prefect_api_url=prefect_api_url)


def write(settings: Settings, seconds: int = 1, **more: str) -> str:
    """A template file; the template's name."""
    name = f"tmpl-{settings.work_pool.removeprefix('pool-')}".replace("-0", "-o").replace("-", "-t", 1)
    lines = [f"name: {name}", "description: Waits", "parameters:"]
    lines += ["- {name: n, type: integer, required: false, description: How often, default: 2, minimum: 1}"]
    lines += ["- {name: note, type: string, required: false, description: A note}"]
    lines += [f"steps: [{{type: wait, seconds: {seconds}}}]", *(f"{key}: {value}" for key, value in more.items())]
    (settings.templates_dir / "a.yaml").write_text("\n".join(lines))
    return name


async def test_pool_queues_and_deployment_are_made(settings: Settings, prefect: Prefect) -> None:
    name = write(settings)
    assert await bootstrap(settings) == [name]

    pool = prefect.call("GET", f"/work_pools/{settings.work_pool}")
    assert (pool["type"], pool["base_job_template"]) == ("orchestra", base_job_template())
    assert prefect.queues(settings.work_pool) == QUEUES
    deployment = prefect.deployments([name])[name]
    assert deployment["entrypoint"] == f"flows.catalog.{name.replace('-', '_')}"
    assert (deployment["work_pool_name"], deployment["work_queue_name"]) == (settings.work_pool, "priority-5")
    assert (deployment["description"], deployment["tags"], deployment["paused"]) == ("Waits", ["orchestra"], False)
    assert deployment["enforce_parameter_schema"] is True
    assert deployment["parameter_openapi_schema"]["properties"]["n"] == {
        "type": "integer",
        "title": "n",
        "description": "How often",
        "default": 2,
        "minimum": 1,
        "position": 0,
    }


async def test_prefect_itself_checks_parameters_and_lets_its_form_leave_optional_ones_empty(
    settings: Settings, prefect: Prefect
) -> None:
    name = write(settings)
    await bootstrap(settings)
    create = f"/deployments/{prefect.deployments([name])[name]['id']}/create_flow_run"
    for accepted in ({}, {"n": 3, "note": "x"}, {"n": 2, "note": None}):
        prefect.call("POST", create, {"parameters": accepted})
    for refused in ({"n": 0}, {"n": "many"}, {"note": 5}):
        with pytest.raises(httpx.HTTPStatusError, match="409"):
            prefect.call("POST", create, {"parameters": refused})


async def test_a_second_time_changes_nothing(settings: Settings, prefect: Prefect) -> None:
    name = write(settings)
    await bootstrap(settings)
    before = prefect.deployments([name]), prefect.queues(settings.work_pool)
    await bootstrap(settings)
    assert (prefect.deployments([name]), prefect.queues(settings.work_pool)) == before  # `updated` included


async def test_what_people_added_in_prefect_stays(settings: Settings, prefect: Prefect) -> None:
    name = write(settings)
    await bootstrap(settings)
    deployment = prefect.deployments([name])[name]
    prefect.call("PATCH", f"/deployments/{deployment['id']}", {"tags": ["mine", "orchestra"], "paused": True})
    schedule = {"schedule": {"interval": 3600.0}, "active": False}
    prefect.call("POST", f"/deployments/{deployment['id']}/schedules", [schedule])

    write(settings, seconds=5)
    await bootstrap(settings)

    changed = prefect.deployments([name])[name]
    assert changed["version"] != deployment["version"]
    assert (changed["id"], changed["tags"], changed["paused"]) == (deployment["id"], ["mine", "orchestra"], True)
    assert len(changed["schedules"]) == 1


async def test_queues_in_the_wrong_order_are_put_right_and_others_stay_behind(
    settings: Settings, prefect: Prefect
) -> None:
    write(settings)
    queues = f"/work_pools/{settings.work_pool}/queues"
    prefect.call(
        "POST",
        "/work_pools/",
        {"name": settings.work_pool, "type": "orchestra", "base_job_template": base_job_template()},
    )
    prefect.call("POST", queues, {"name": "priority-3", "priority": 1})
    prefect.call("POST", queues, {"name": "nightly", "priority": 2})
    await bootstrap(settings)
    found = prefect.queues(settings.work_pool)
    assert {name: found[name] for name in QUEUES} == QUEUES
    assert found["nightly"] > 11


async def test_a_templates_own_pool_is_made_too(settings: Settings, prefect: Prefect) -> None:
    other = f"{settings.work_pool}-gpu"
    name = write(settings, work_pool=other)
    await bootstrap(settings)
    assert prefect.deployments([name])[name]["work_pool_name"] == other
    assert prefect.queues(other) == prefect.queues(settings.work_pool) == QUEUES


async def test_a_template_that_moves_to_another_pool_keeps_its_queue(settings: Settings, prefect: Prefect) -> None:
    name = write(settings)
    await bootstrap(settings)
    other = f"{settings.work_pool}-gpu"
    write(settings, work_pool=other)
    await bootstrap(settings)
    moved = prefect.deployments([name])[name]
    assert (moved["work_pool_name"], moved["work_queue_name"]) == (other, "priority-5")


async def test_the_deployment_of_a_removed_template_is_paused_and_resumed_when_it_comes_back(
    settings: Settings, prefect: Prefect
) -> None:
    name = write(settings)
    await bootstrap(settings)
    (settings.templates_dir / "a.yaml").unlink()
    assert await bootstrap(settings) == []
    gone = prefect.deployments([name])[name]
    assert (gone["paused"], sorted(gone["tags"])) == (True, ["orchestra", REMOVED_TAG])
    await bootstrap(settings)
    assert prefect.deployments([name])[name] == gone

    write(settings)
    await bootstrap(settings)
    back = prefect.deployments([name])[name]
    assert (back["id"], back["paused"], back["tags"]) == (gone["id"], False, ["orchestra"])


async def test_a_broken_template_stops_no_other(settings: Settings, prefect: Prefect) -> None:
    name = write(settings)
    (settings.templates_dir / "broken.yaml").write_text("steps: [")
    assert await bootstrap(settings) == [name]


async def test_two_at_once_do_no_harm(settings: Settings, prefect: Prefect) -> None:
    name = write(settings)
    both = await asyncio.gather(bootstrap(settings), bootstrap(settings))
    assert list(both) == [[name], [name]]
    assert prefect.queues(settings.work_pool) == QUEUES


async def test_a_server_that_does_not_answer_is_named(settings: Settings) -> None:
    url = f"http://127.0.0.1:{servers.free_port()}/api"
    with pytest.raises(UnreachableError, match=f"{url} does not answer"):
        await bootstrap(settings.model_copy(update={"prefect_api_url": url}))


def test_prefect_yaml_lists_the_built_in_templates() -> None:
    listed = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    defaults = Settings()
    assert [each["name"] for each in listed] == BUILT_IN
    assert [each["entrypoint"] for each in listed] == [f"flows.catalog.{name.replace('-', '_')}" for name in BUILT_IN]
    pool = {"name": defaults.work_pool, "work_queue_name": "priority-5"}
    assert all((each["work_pool"], each["tags"]) == (pool, ["orchestra"]) for each in listed)


def test_prefect_deploy_registers_what_bootstrap_registers(
    prefect: Prefect, prefect_api_url: str, tmp_path: Path
) -> None:
    environment = servers.prefect_environment(tmp_path) | {"PREFECT_API_URL": prefect_api_url}

    def run(*arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def found() -> dict[str, dict[str, Any]]:
        """Everything about the built-in templates' deployments but when they were changed, and the version.

        In a clean checkout `prefect deploy` calls the commit the version; bootstrap calls the template's content so.
        """
        deployments = prefect.call("POST", "/deployments/filter", {"flows": {"name": {"any_": BUILT_IN}}})
        return {f"{each.pop('name')} {each['id']}": {**each, "updated": "", "version": ""} for each in deployments}

    run("deployments.bootstrap")
    before = found()
    assert len(before) == len(BUILT_IN)
    run("prefect", "--no-prompt", "deploy", "--all")
    assert json.dumps(found(), sort_keys=True, indent=1) == json.dumps(before, sort_keys=True, indent=1)
    assert prefect.queues("default") == QUEUES
