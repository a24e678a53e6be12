"""`execute_script` and `run_command` with real programs."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from ai_task_orchestra.errors import ScriptError, StepInputError
from ai_task_orchestra.isolation.offer import machine_offer
from flows.steps.base import StepContext
from flows.steps.execute_script import ExecuteScript
from flows.steps.run_command import RunCommand
from tests.support.steps import alive, new_mark, step_context
from tests.support.waiting import wait_until


@pytest.fixture
def context(tmp_path: Path) -> StepContext:
    """After two clones; the later one is called `repository-2`."""
    workspace = step_context(tmp_path).workspace
    earlier: dict[str, dict[str, Any]] = {}
    for name in ("repository-1", "repository-2"):
        (workspace / name).mkdir()
        earlier[name] = {"path": str(workspace / name), "commit": "0" * 40}
    earlier["stored"] = {"path": "answers/x.txt", "bytes": 3}
    return step_context(tmp_path, earlier=earlier, ollama_host="127.0.0.1:9")


def clone_of(context: StepContext) -> Path:
    return context.workspace / "repository-2"


def add(context: StepContext, name: str, text: str) -> None:
    path = clone_of(context) / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o644)


async def execute(context: StepContext, script: str, **fields: Any) -> dict[str, Any]:
    return await ExecuteScript().run({"script": script, **fields}, context)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.py", "import sys; print('hello', *sys.argv[1:])"),
        ("a.sh", 'echo hello "$@"'),
        ("a.bash", 'words=(hello "$@"); echo "${words[@]}"'),
        ("a", '#!/bin/sh\necho hello "$@"'),
        ("b", '#!/usr/bin/env -S awk -f\nBEGIN { print "hello", ARGV[1], ARGV[2] }'),
        ("c", '#!/bin/sh -eu\r\necho hello "$1" "$2" #\r\n'),
        ("d.py", '#! /bin/sh\necho hello "$@"'),
        pytest.param(
            "a.js",
            "console.log('hello', ...process.argv.slice(2))",
            marks=pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed"),
        ),
    ],
)
async def test_a_script_runs_by_its_first_line_or_its_extension(context: StepContext, name: str, text: str) -> None:
    add(context, name, text)
    given = await execute(context, name, args=["a b", "$x"])

    assert given["output"].strip() == "hello a b $x"
    assert (given["exit_code"], given["truncated"]) == (0, False)


async def test_a_script_runs_at_the_top_of_the_latest_clone(context: StepContext) -> None:
    add(context, "scripts/a.py", "import os, helper; print(os.getcwd(), helper.WORD)")
    add(context, "scripts/helper.py", "WORD = 'beside'")

    assert (await execute(context, "scripts/a.py"))["output"] == f"{clone_of(context)} beside\n"


async def test_without_a_clone_programs_run_in_the_workspace(tmp_path: Path) -> None:
    context = step_context(tmp_path)

    assert (await RunCommand().run({"command": ["pwd"]}, context))["output"] == f"{context.workspace}\n"


async def test_an_output_that_only_looks_like_a_clone_is_none(tmp_path: Path) -> None:
    context = step_context(tmp_path, earlier={"x": {"path": "/etc", "commit": "0"}})

    assert (await RunCommand().run({"command": ["pwd"]}, context))["output"] == f"{context.workspace}\n"


async def test_a_script_sees_what_was_declared_and_where_the_model_is(
    context: StepContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRA_API_KEY", "canary-93fe")
    add(context, "a.sh", 'env; echo "$OLLAMA_HOST $WORD $NUMBER"')
    given = await execute(context, "a.sh", env={"WORD": "a b", "NUMBER": 3})

    assert given["output"].endswith("http://127.0.0.1:9 a b 3\n")
    assert "canary" not in given["output"]


async def test_a_failing_script_is_named_with_its_code_and_last_words(context: StepContext) -> None:
    add(context, "a.py", "import sys; print('x' * 400 + 'y', file=sys.stderr); sys.exit(7)")
    with pytest.raises(ScriptError, match=r"^a\.py ended with exit code 7: x+…$") as caught:
        await execute(context, "a.py")

    assert caught.value.exit_code == 7
    assert len(caught.value.message) < 340
    assert context.usage.peak_rss_bytes > 0


async def test_a_script_ended_by_a_signal_says_which(context: StepContext) -> None:
    add(context, "a.sh", "kill -9 $$")
    with pytest.raises(ScriptError, match="was ended by signal SIGKILL") as caught:
        await execute(context, "a.sh")

    assert caught.value.exit_code == -9


@pytest.mark.parametrize(
    "script", ["../a.sh", "/bin/sh", "link", "folder-link/a.sh", "folder", "pipe", "missing.sh", "x/../a.sh", ""]
)
async def test_only_regular_files_of_the_clone_are_run(context: StepContext, tmp_path: Path, script: str) -> None:
    hit = tmp_path / "hit"
    (context.workspace / "a.sh").write_text(f"touch {hit}")
    add(context, "a.sh", "true")
    add(context, "folder/a.sh", f"touch {hit}")
    (clone_of(context) / "link").symlink_to(context.workspace / "a.sh")
    (clone_of(context) / "folder-link").symlink_to("folder")
    os.mkfifo(clone_of(context) / "pipe")
    with pytest.raises(StepInputError, match=r"^script: "):
        await execute(context, script)

    assert not hit.exists()


@pytest.mark.parametrize(
    ("name", "text"), [("a", "echo"), ("a.txt", "echo"), ("a.rb", "x"), ("b", "#!sh\n"), ("c", "#!\n")]
)
async def test_a_script_that_nothing_says_how_to_run_is_refused(context: StepContext, name: str, text: str) -> None:
    add(context, name, text)
    with pytest.raises(StepInputError, match=r"^script: "):
        await execute(context, name)


async def test_a_missing_interpreter_is_named(context: StepContext) -> None:
    add(context, "a", "#!/no/such/interpreter\n")
    with pytest.raises(StepInputError, match="/no/such/interpreter can't be started"):
        await execute(context, "a")


@pytest.mark.parametrize(
    "fields",
    [
        {"args": "text"},
        {"args": [None]},
        {"args": [["a"]]},
        {"args": ["a\x00b"]},
        {"args": ["\ud800"]},
        {"env": []},
        {"env": {"A=B": "x"}},
        {"env": {"": "x"}},
        {"env": {"A": None}},
        {"env": {"A": "x\x00"}},
        {"network": "no"},
    ],
)
async def test_values_that_a_program_can_not_be_given_are_refused(context: StepContext, fields: dict[str, Any]) -> None:
    add(context, "a.sh", "true")
    with pytest.raises(StepInputError):
        await execute(context, "a.sh", **fields)


async def test_a_script_without_network_can_not_connect(context: StepContext) -> None:
    async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        add(context, "a.py", f"import socket; socket.create_connection(('127.0.0.1', {port}), 5).close()")
        assert (await execute(context, "a.py", network=True))["exit_code"] == 0
        with pytest.raises(ScriptError):
            await execute(context, "a.py", network=False)
        with pytest.raises(ScriptError):
            await execute(context, "a.py")


async def test_a_command_gets_its_arguments_as_they_are(context: StepContext) -> None:
    given = await RunCommand().run({"command": ["printf", "[%s]", "a b", "$(id)", "; id", "--x", 3]}, context)

    assert given == {
        "output": "[a b][$(id)][; id][--x][3]",
        "stderr": "",
        "exit_code": 0,
        "truncated": False,
        "isolation_level": machine_offer().highest,
    }


@pytest.mark.parametrize("command", [None, [], [""], "ls", ["no-such-program-here"]])
async def test_a_command_must_begin_with_a_program(context: StepContext, command: Any) -> None:
    with pytest.raises(StepInputError):
        await RunCommand().run({"command": command}, context)


async def test_long_output_is_cut_and_says_so(tmp_path: Path) -> None:
    context = step_context(tmp_path, max_output_bytes=1000)
    given = await RunCommand().run({"command": ["sh", "-c", "yes | head -n 10000"]}, context)

    assert given["output"] == "y\n" * 500
    assert given["truncated"] is True


async def test_a_cancelled_script_leaves_no_process(context: StepContext) -> None:
    mark = new_mark()
    add(context, "sleep.py", "import time; time.sleep(600)")
    add(context, "a.sh", f"setsid python3 sleep.py {mark} & python3 sleep.py {mark}")
    running = asyncio.ensure_future(execute(context, "a.sh"))
    await wait_until(lambda: len(alive(mark)) == 2, description="the script and its daemon run")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert alive(mark) == []
