"""`orchestra batch, batch-show, batch-cancel` against a server that answers like the API."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ai_task_orchestra.cli import exit_codes
from tests.unit.cli.conftest import Outcome
from tests.unit.cli.fake_api import CREATED, FakeApi

Orchestra = Callable[..., Outcome]

TASKS = [
    {"name": "draft", "template": "greet", "parameters": {"name": "Ada"}},
    {"template": "greet", "parameters": {"name": {"$result": "draft"}}, "priority": 7},
]
YAML = """
tasks:
  - name: draft
    template: greet
    parameters: {name: Ada}
  - template: greet
    parameters:
      name: {$result: draft}
    priority: 7
"""


def found(*statuses: str, status: str = "completed") -> dict[str, Any]:
    members = [
        {
            "id": f"t{number}",
            "status": word,
            "priority": 5,
            "created_at": CREATED,
            "template": "greet",
            "depends_on": [],
        }
        for number, word in enumerate(statuses)
    ]
    members[0]["name"] = "draft"
    words = ("queued", "running", "completed", "failed", "cancelled")
    counts = {word: statuses.count(word) for word in words}
    return {"id": "b1", "created_at": CREATED, "status": status, "counts": counts, "tasks": members}


@pytest.fixture(autouse=True)
def accept(api: FakeApi) -> None:
    made = {"id": "b1", "created_at": CREATED, "ids": ["t0", "t1"], "tasks": {"draft": "t0"}}
    api.on("POST", "/tasks/batch", (201, made))


def posted(api: FakeApi) -> Any:
    return next(body for method, path, _, body in api.asked if (method, path) == ("POST", "/tasks/batch"))


@pytest.mark.parametrize("text", [YAML, json.dumps(TASKS), json.dumps({"tasks": TASKS})])
def test_batch_hands_in_a_files_tasks_and_prints_the_batchs_id(
    orchestra: Orchestra, api: FakeApi, tmp_path: Path, text: str
) -> None:
    (tmp_path / "graph.yaml").write_text(text)
    done = orchestra("batch", "graph.yaml")
    assert (done.code, done.out, done.err) == (0, "b1\n", "")
    assert posted(api) == {"tasks": TASKS}


def test_batch_reads_standard_input(orchestra: Orchestra, api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(TASKS)))
    assert orchestra("batch", "-").code == 0
    assert posted(api) == {"tasks": TASKS}


def test_waiting_shows_what_became_of_each(orchestra: Orchestra, api: FakeApi, tmp_path: Path) -> None:
    (tmp_path / "graph.json").write_text(json.dumps(TASKS))
    ended = found("failed", "cancelled", status="failed")
    ended["tasks"][0]["error"] = {"type": "step_failed", "message": "no such file"}
    api.on("GET", "/batches/b1", (200, found("queued", "queued", status="queued")), (200, ended))
    done = orchestra("batch", "graph.json", "--wait")
    assert done.code == exit_codes.TASK_FAILED
    assert "b1  failed: 1 failed, 1 cancelled" in done.out
    assert [line.split() for line in done.out.splitlines()[2:]] == [
        ["NAME", "TASK", "STATUS", "PRIORITY", "ERROR"],
        ["draft", "t0", "failed", "5", "no", "such", "file"],
        ["t1", "cancelled", "5"],
    ]


def test_waiting_for_a_batch_that_completes_is_fine(orchestra: Orchestra, api: FakeApi, tmp_path: Path) -> None:
    (tmp_path / "graph.json").write_text(json.dumps(TASKS))
    api.on("GET", "/batches/b1", (200, found("completed", "completed")))
    done = orchestra("batch", "graph.json", "--wait", "--json")
    assert done.code == 0
    assert json.loads(done.out) == found("completed", "completed")


def test_show_and_cancel(orchestra: Orchestra, api: FakeApi) -> None:
    api.on("GET", "/batches/b1", (200, found("running", "queued", status="running")))
    api.on("DELETE", "/batches/b1", (204, None))
    assert "b1  running: 1 queued, 1 running" in orchestra("batch-show", "b1").out
    assert json.loads(orchestra("batch-show", "b1", "--json").out)["id"] == "b1"
    assert orchestra("batch-cancel", "b1").out == "b1 will be cancelled\n"
    assert orchestra("batch-show", "b2").code == exit_codes.REFUSED


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tasks: {", "graph.yaml"),
        ("5", "list of tasks"),
        ("tasks: [5]", "list of tasks"),
        ("a: &a [*a]", "graph.yaml"),
        (None, "No such file"),
    ],
)
def test_a_file_that_is_none_is_said_so(
    orchestra: Orchestra, api: FakeApi, tmp_path: Path, text: str | None, words: str
) -> None:
    if text is not None:
        (tmp_path / "graph.yaml").write_text(text)
    done = orchestra("batch", "graph.yaml")
    assert done.code == exit_codes.USAGE
    assert words in done.err
    assert api.asked == []
