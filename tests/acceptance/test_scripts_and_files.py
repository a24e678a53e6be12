"""Scripts from git and analysis of files, through the API as a client uses it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.acceptance.conftest import RunningStack
from tests.support import servers

SCRIPT = """\
import sys
print("six times seven is", 6 * 7)
print("a remark", file=sys.stderr)
"""


@pytest.fixture
def repository() -> str:
    """The `file://` address of a real repository with one script."""
    with servers.open_folder() as folder:
        (folder / "run.py").write_text(SCRIPT)
        (folder / "broken.py").write_text("raise SystemExit(7)")
        for command in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "scripts"]):
            identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
            subprocess.run(["git", "-C", str(folder), *identity, *command], check=True)
        yield f"file://{folder}"


def test_a_script_from_git_runs_and_its_output_is_stored(stack: RunningStack, repository: str) -> None:
    task_id = stack.submit(
        "git-script-execution",
        {"repo_url": repository, "script_path": "run.py", "output_path": "answers/six.txt"},
    )
    task = stack.wait_for(task_id)

    head = subprocess.run(
        ["git", "-C", repository.removeprefix("file://"), "rev-parse", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    result = task["result"]
    assert result["output"] == "six times seven is 42\n"
    assert (result["exit_code"], result["commit"], result["output_path"]) == (0, head, "answers/six.txt")
    assert result["files"] == ["answers/six.txt"]
    assert (stack.home / "outputs" / "answers" / "six.txt").read_text() == "six times seven is 42\n"
    assert task["resource_usage"]["memory_used_gb"] > 0
    assert not (stack.home / "workspaces" / task_id).exists()


def test_a_failing_script_fails_its_task_with_step_and_exit_code(stack: RunningStack, repository: str) -> None:
    task_id = stack.submit(
        "git-script-execution",
        {"repo_url": repository, "script_path": "broken.py", "output_path": "never.txt"},
    )
    task = stack.wait_for(task_id, "failed")

    assert task["error"]["type"] == "script_failed"
    assert task["error"]["step"] == "execute_script"
    assert "7" in task["error"]["message"]
    assert not (stack.home / "outputs" / "never.txt").exists()


def test_two_files_are_analysed_by_a_model(stack: RunningStack) -> None:
    inputs: Path = stack.home / "inputs"
    inputs.mkdir(exist_ok=True)
    (inputs / "one.txt").write_text("Apples are red.")
    (inputs / "two.txt").write_text("Pears are green.")
    task_id = stack.submit(
        "file-processing",
        {"input_files": ["one.txt", "two.txt"], "analysis_model": "llama3.1:8b", "output_format": "text"},
    )
    task = stack.wait_for(task_id)

    assert task["result"]["files"] == ["one.txt", "two.txt"]
    assert "Qubits can be both." in task["result"]["output"]
