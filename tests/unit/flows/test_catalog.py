"""`flows.catalog` as Prefect and the worker import it: in a process of its own, by name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ai_task_orchestra.library import TemplateLibrary
from flows.compiler import compile_template

ROOT = Path(__file__).parents[3]

LOOK = """
import json, sys, threading
import flows.catalog as catalog
from prefect.flows import load_flow_from_entrypoint
print(json.dumps({
    "flows": sorted(catalog.FLOWS),
    "attributes": {name: flow.name for name, flow in vars(catalog).items() if type(flow).__name__ == "Flow"},
    "same": all(load_flow_from_entrypoint(f"flows.catalog.{f.fn.__name__}") is f for f in catalog.FLOWS.values()),
    "threads": threading.active_count(),
    "problems": [str(problem) for problem in catalog.LIBRARY.problems],
}))
"""


def look(cwd: Path, **environment: str) -> dict[str, Any]:
    env = {"PATH": "/usr/bin:/bin", "PREFECT_HOME": str(cwd / "prefect"), "DO_NOT_TRACK": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", LOOK], cwd=cwd, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_every_built_in_template_compiles_with_the_real_steps() -> None:
    library = TemplateLibrary(ROOT / "templates")
    assert len(library.templates) == 7
    for spec in library.templates.values():
        flow = compile_template(spec)
        assert list(flow.parameters.properties) == [parameter.name for parameter in spec.parameters]


@pytest.fixture(scope="module")
def built_in(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return look(tmp_path_factory.mktemp("home"), ORCHESTRA_TEMPLATES_DIR=str(ROOT / "templates"))


def test_the_flows_are_attributes_under_their_templates_identifiers(built_in: dict[str, Any]) -> None:
    names = list(TemplateLibrary(ROOT / "templates").templates)
    assert built_in["flows"] == names
    assert built_in["attributes"] == {name.replace("-", "_"): name for name in names}
    assert built_in["same"]


def test_importing_starts_no_thread_so_that_a_worker_can_fork(built_in: dict[str, Any]) -> None:
    assert built_in["threads"] == 1


def test_a_folder_of_ones_own_is_used_whatever_its_templates_are_called(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    names = ["annotations", "import", "logging"]
    for name in names:
        (folder / f"{name}.yaml").write_text(f"name: {name}\ndescription: x\nsteps: [{{type: wait, seconds: 0}}]")
    (folder / "broken.yaml").write_text("name: broken\nsteps: nothing")
    found = look(tmp_path, ORCHESTRA_TEMPLATES_DIR=str(folder))
    assert (found["flows"], found["attributes"]) == (names, {name: name for name in names})
    assert len(found["problems"]) == 1
