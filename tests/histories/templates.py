"""The templates of the histories: every kind of task whose work can be followed."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from tests.support.steps import repository

MODEL: Final = "histories:1b"
RECORDER: Final = Path(__file__).with_name("recorder.py")
_SCRIPT: Final = "work.py"


@dataclass(frozen=True)
class Shape:
    """What is known of a template's tasks beforehand.

    `steps`: those that write into the history. `losses`: after so many lost attempts the task fails. `stores`: the
    task leaves a file of its name among the outputs.
    """

    steps: tuple[str, ...] = ("work",)
    fails: bool = False
    retries: int = 0
    losses: int = 3
    stores: bool = False


SHAPES: Final = {
    "quick": Shape(),
    "slow": Shape(),
    "stages": Shape(steps=("first", "second")),
    "failing": Shape(fails=True),
    "flaky": Shape(retries=1),
    "once": Shape(losses=1),
    "family": Shape(),
    "asking": Shape(steps=("before", "after")),
    "stored": Shape(stores=True),
}


def write_templates(folder: Path, history: Path, sources: Path) -> None:
    """Write the template files, and the repository of the one that clones into `sources`."""
    repository(sources, {_SCRIPT: RECORDER.read_text()})
    folder.mkdir()

    def work(step: str = "work", mode: str = "ok") -> dict[str, Any]:
        command = [sys.executable, "-I", "-S", str(RECORDER), str(history), step, mode, "for={{ seconds }}"]
        return {"type": "run_command", "name": step, "command": command}

    script = {
        "type": "execute_script",
        "name": "work",
        "script": _SCRIPT,
        "args": [str(history), "work", "family", "for={{ seconds }}"],
    }
    question = {"type": "ollama_generate", "model": MODEL, "prompt": "What now?"}
    steps: dict[str, list[dict[str, Any]]] = {
        "quick": [work()],
        "slow": [work()],
        "stages": [work("first"), work("second")],
        "failing": [work(mode="fail")],
        "flaky": [work(mode="flaky")],
        "once": [work()],
        "family": [{"type": "git_clone", "repo": f"file://{sources}"}, script],
        "asking": [work("before"), question, work("after")],
        "stored": [work(), {"type": "store_result", "path": "{{ token }}.txt"}],
    }
    more: dict[str, dict[str, Any]] = {
        "flaky": {"retries": 1, "retry_delay_seconds": 0.3},
        "once": {"on_worker_loss": "fail"},
    }
    for name in SHAPES:
        document = {"name": name, "description": f"Histories: {name}", "parameters": _PARAMETERS, "steps": steps[name]}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(document | more.get(name, {}), sort_keys=False))


_PARAMETERS: Final = [
    {"name": "token", "type": "string", "required": True, "description": "Which post of which history it was"},
    {"name": "seconds", "type": "number", "required": True, "description": "How long each step takes"},
]
