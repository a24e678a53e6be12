"""Starting a runner, with small scripts in place of the engine."""

from __future__ import annotations

import asyncio
import sys

import httpx
import psutil
import pytest

from ai_task_orchestra.errors import ConfigurationError
from ai_task_orchestra.model_backend import runner
from ai_task_orchestra.model_backend.protocol import ProtocolError
from ai_task_orchestra.model_backend.runner import RunnerLauncher, RunnerProcess, describe_exit, probe_engine
from ai_task_orchestra.model_backend.runner_child import explain
from tests.support.waiting import wait_until
from tests.unit.model_backend.fakes import installed

SERVING = 'import sys; sys.stdin.readline(); print(\'{"address": "http://127.0.0.1:9"}\', flush=True); sys.stdin.read()'


async def launch(script: str) -> RunnerProcess:
    async with httpx.AsyncClient() as http:
        launcher = RunnerLauncher(http, threads=1, parallel=1, command=(sys.executable, "-c", script))
        return await launcher.launch(installed(), 128)


def children() -> set[psutil.Process]:
    """This process's children; servers that other tests share are among them."""
    return set(psutil.Process().children())


async def test_a_runner_lives_until_it_is_killed() -> None:
    process = await launch(SERVING)
    assert process.alive
    assert process.memory_bytes > 1_000_000
    process.kill()
    await process.wait()
    assert not process.alive
    assert process.memory_bytes == 0
    process.kill()  # again does nothing


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ('print(\'{"error": "unable to load model: bad file"}\')', "unable to load model: bad file"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "AVX2"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "out of memory"),
        ("raise SystemExit(7)", "exit code 7"),
    ],
)
async def test_a_runner_that_can_not_load_says_why(script: str, says: str) -> None:
    with pytest.raises(ProtocolError, match=says) as caught:
        await launch(script)
    assert caught.value.status == 500


async def test_a_runner_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "LOAD_TIMEOUT_SECONDS", 0.3)
    before = children()
    with pytest.raises(ProtocolError, match="timed out loading"):
        await launch("import time; time.sleep(60)")
    assert children() == before


async def test_a_cancelled_launch_leaves_no_process() -> None:
    before = children()
    task = asyncio.create_task(launch("import time; time.sleep(60)"))
    (child,) = await wait_until(lambda: children() - before, description="child started")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not child.is_running()


async def test_a_talkative_engine_does_not_get_stuck_at_a_full_pipe() -> None:
    noise = "import sys; sys.stdin.readline(); sys.stderr.write('x' * 1_000_000); "
    process = await launch(noise + SERVING.removeprefix("import sys; sys.stdin.readline(); "))
    process.kill()
    await process.wait()


async def test_secrets_of_the_environment_do_not_reach_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRA_API_KEY", "secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with pytest.raises(ProtocolError) as caught:
        await launch("import os, json; print(json.dumps({'error': ' '.join(os.environ)}))")
    assert "OMP_NUM_THREADS" in caught.value.message
    assert "ORCHESTRA" not in caught.value.message


async def test_an_engine_that_can_not_be_used_is_a_configuration_error() -> None:
    script = 'print(\'{"error": "the package xllamacpp is not installed"}\')'
    with pytest.raises(ConfigurationError, match="can't run: the package xllamacpp"):
        await probe_engine((sys.executable, "-c", script))


def test_what_is_missing_is_said_with_its_mend() -> None:
    missing = ModuleNotFoundError("No module named 'xllamacpp'", name="xllamacpp")
    assert "embedded-model" in explain(missing)
    libgomp = ImportError("libgomp.so.1: cannot open shared object file: No such file or directory")
    assert "apt-get install libgomp1" in explain(libgomp)
    assert "can't be loaded (GLIBC" in explain(ImportError("GLIBC_2.99 not found"))
    assert explain(RuntimeError("Failed to init server")) == "unable to load model: Failed to init server"


def test_exit_statuses_are_put_into_words() -> None:
    assert describe_exit(-11) == "signal SIGSEGV"
    assert describe_exit(3) == "exit code 3"
