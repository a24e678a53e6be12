"""Running programs for real: what they see, what is kept of them, and that none is left."""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from ai_task_orchestra.errors import StepError, StepInputError, StepTimeoutError
from flows.clients import _exec
from flows.clients.confinement import Confinement
from flows.clients.processes import ProcessEnd, run_process
from tests.support.steps import alive, new_mark
from tests.support.waiting import wait_until

MEGABYTE = 1024 * 1024
PR_GET_DUMPABLE = 3

# Three generations that ignore SIGTERM, in their parent's process group, and a daemon: a session of its own and no
# parent. Each has the mark and sleeps; the first process says so once all are there, then does what is asked.
HOSTILE = """\
import os, signal, subprocess, sys, time
mark, then = sys.argv[1:]
SLEEP = '''
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(os.environ["HERE"] + str(os.getpid()), "w").close()
time.sleep(600)
'''
def sleeper():
    os.execv(sys.executable, [sys.executable, "-c", SLEEP, mark])
if os.fork() == 0:
    if os.fork() == 0:
        if os.fork() == 0:
            sleeper()
        sleeper()
    sleeper()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        sleeper()
    os._exit(0)
folder = os.path.dirname(os.environ["HERE"])
while len(os.listdir(folder)) < 4:
    time.sleep(0.01)
print("all here", flush=True)
while then == "kill-parent-when-told" and not os.path.exists("told"):
    time.sleep(0.01)
if then.startswith("kill-parent"):
    os.kill(os.getppid(), signal.SIGKILL)
if then != "end":
    time.sleep(600)
"""


SLEEPER = f"{sys.executable} -c 'import time; time.sleep(600)'"

# A program of ours, to be killed while it runs another.
OURS = """\
import asyncio, sys
from pathlib import Path
from flows.clients.confinement import Confinement
from flows.clients.processes import run_process
around = Confinement(Path(sys.argv[1]))
command = ["sh", "-c", sys.argv[2]]
run = run_process(command, cwd=around.workspace, env=around.environment(), confinement=around, max_output_bytes=1000)
asyncio.run(run)
"""


async def run(workspace: Path, *argv: str, **options: Any) -> ProcessEnd:
    confinement = options.pop("confinement", Confinement(workspace))
    env = confinement.environment() | options.pop("env", {})
    options = {"max_output_bytes": MEGABYTE} | options
    return await run_process(argv, cwd=workspace, env=env, confinement=confinement, **options)


def hostile(tmp_path: Path, mark: str, then: str, **options: Any) -> Any:
    """The hostile program as a coroutine; `folder` fills with one file for each process that sleeps."""
    folder = tmp_path / "here"
    folder.mkdir()
    env = {"HERE": f"{folder}/"}
    return run(tmp_path, sys.executable, "-c", HOSTILE, mark, then, env=env, grace_seconds=0.3, **options)


async def test_output_error_output_and_exit_code_are_told(tmp_path: Path) -> None:
    end = await run(tmp_path, "sh", "-c", "echo out; echo one >&2; echo two >&2; exit 3")

    assert (end.stdout, end.stderr, end.exit_code, end.error_line) == ("out\n", "one\ntwo\n", 3, "two")
    assert not end.truncated


async def test_a_signal_is_a_negative_exit_code(tmp_path: Path) -> None:
    assert (await run(tmp_path, "sh", "-c", "kill -SEGV $$")).exit_code == -signal.SIGSEGV


async def test_input_is_empty_and_a_pipe_that_closes_ends_the_writer(tmp_path: Path) -> None:
    assert (await run(tmp_path, "cat")).stdout == ""
    assert (await run(tmp_path, "bash", "-c", "yes | head -n 1; echo ${PIPESTATUS[0]}")).stdout == "y\n141\n"


async def test_nothing_of_our_environment_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ORCHESTRA_API_KEY", "PREFECT_API_AUTH_STRING", "AWS_SECRET_ACCESS_KEY", "PYTHONPATH"):
        monkeypatch.setenv(name, "canary-71a4")
    end = await run(tmp_path, "sh", "-c", "env; cat /proc/$PPID/environ", env={"WANTED": "yes"})

    assert "canary" not in end.stdout
    names = {line.split("=")[0] for line in end.stdout.splitlines() if "=" in line}
    assert names - {"LC_ALL", "LC_CTYPE", "TZ", "LANG", "PWD", "OLDPWD", "SHLVL", "_"} == {
        "PATH",
        "HOME",
        "TMPDIR",
        "WANTED",
    }


async def test_a_program_can_not_read_our_environment_from_proc(tmp_path: Path) -> None:
    def readable() -> bool:  # by processes of the same account; root may read everything
        return int(ctypes.CDLL(None).prctl(PR_GET_DUMPABLE, 0, 0, 0, 0)) == 1

    running = asyncio.ensure_future(run(tmp_path, "sleep", "600"))
    await wait_until(lambda: not readable(), description="our memory is closed to others")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert readable()


async def test_home_and_temporary_files_are_in_the_workspace(tmp_path: Path) -> None:
    end = await run(tmp_path, "sh", "-c", 'echo "$HOME"; mktemp; umask')

    home, temporary, mask = end.stdout.split()
    assert Path(home).is_relative_to(tmp_path)
    assert Path(temporary).is_relative_to(tmp_path)
    assert mask == "0077"


async def test_a_program_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(StepInputError, match="no-such-program"):
        await run(tmp_path, "no-such-program")


async def test_an_argument_is_never_read_by_a_shell(tmp_path: Path) -> None:
    text = "$(touch hit); `touch hit` * \n 'x' \"y\" ü"

    assert (await run(tmp_path, "printf", "%s", text)).stdout == text
    assert not (tmp_path / "hit").exists()


async def test_a_hundred_megabytes_of_output_keep_our_memory_bounded(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    end = await run(tmp_path, "sh", "-c", "head -c 100000000 /dev/zero | tr '\\0' x; echo end >&2")

    assert end.stdout == "x" * MEGABYTE
    assert end.truncated
    assert end.error_line == "end"
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 30 * MEGABYTE


async def test_the_last_error_line_is_known_even_if_the_error_output_was_cut(tmp_path: Path) -> None:
    end = await run(tmp_path, "sh", "-c", "head -c 5000000 /dev/zero | tr '\\0' x >&2; echo >&2; echo reason >&2")

    assert end.truncated
    assert end.error_line == "reason"


async def test_bytes_that_are_no_text_become_replacement_characters(tmp_path: Path) -> None:
    end = await run(tmp_path, "printf", r"a\000b\377c\355\240\200d")

    assert end.stdout.startswith("a\ufffdb\ufffdc\ufffd")
    assert end.stdout.endswith("d")
    end.stdout.encode()


async def test_a_cut_never_leaves_half_a_character(tmp_path: Path) -> None:
    end = await run(tmp_path, "printf", "ää", max_output_bytes=3)

    assert (end.stdout, end.truncated) == ("ä", True)


async def test_memory_of_the_whole_tree_and_processor_time_are_measured(tmp_path: Path) -> None:
    code = "x = bytearray(60_000_000); import time; time.sleep(0.6)"
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    script = f"{sys.executable} -c '{code}' & {sys.executable} -c '{code}' & {sys.executable} -c '{burn}'; wait"
    recorded: list[tuple[int, float]] = []
    end = await run(tmp_path, "sh", "-c", script, record=lambda peak, cpu: recorded.append((peak, cpu)))

    assert 120_000_000 < end.peak_rss_bytes < 400_000_000
    assert 0.3 <= end.cpu_seconds < 5
    assert recorded == [(end.peak_rss_bytes, end.cpu_seconds)]


async def test_use_is_recorded_for_a_program_that_ran_out_of_time(tmp_path: Path) -> None:
    recorded: list[tuple[int, float]] = []
    with pytest.raises(StepTimeoutError) as caught:
        await run(tmp_path, "sleep", "600", timeout_seconds=0.2, record=lambda *use: recorded.append(use))

    assert caught.value.retryable
    assert recorded[0][0] > 0


@pytest.mark.parametrize("then", ["end", "kill-parent"])
async def test_no_descendant_outlives_the_program(tmp_path: Path, then: str) -> None:
    mark = new_mark()
    if then == "end":
        assert (await hostile(tmp_path, mark, then)).stdout == "all here\n"
    else:
        with pytest.raises(StepError, match="killed"):
            await hostile(tmp_path, mark, then)

    assert len(list((tmp_path / "here").iterdir())) == 4
    assert alive(mark) == []


async def test_no_descendant_outlives_a_time_out(tmp_path: Path) -> None:
    mark = new_mark()
    with pytest.raises(StepTimeoutError):
        await hostile(tmp_path, mark, "stay", timeout_seconds=3)

    assert len(list((tmp_path / "here").iterdir())) == 4
    assert alive(mark) == []


async def test_no_descendant_outlives_a_cancellation_even_a_repeated_one(tmp_path: Path) -> None:
    mark = new_mark()
    running = asyncio.ensure_future(hostile(tmp_path, mark, "stay"))
    await wait_until(lambda: len(alive(mark)) == 5, description="the program and four sleepers run")
    began = time.monotonic()
    running.cancel()
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert alive(mark) == []
    assert time.monotonic() - began < 6  # by the supervisor, not by killing that one after all


async def test_a_program_that_listens_gets_time_to_tidy_up(tmp_path: Path) -> None:
    script = "trap 'sleep 0.2; echo tidy > tidy; exit' TERM; echo > ready; while :; do sleep 0.05; done"
    running = asyncio.ensure_future(run(tmp_path, "bash", "-c", script))
    await wait_until((tmp_path / "ready").exists, description="the trap is set")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert (tmp_path / "tidy").read_text() == "tidy\n"


async def test_programs_side_by_side_do_not_end_each_other(tmp_path: Path) -> None:
    mark = new_mark()
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    killing = asyncio.ensure_future(hostile(folders[1], new_mark(), "kill-parent-when-told"))
    await wait_until(lambda: len(list((folders[1] / "here").iterdir())) == 4, description="the hostile one runs")
    staying = asyncio.ensure_future(run(folders[0], "sh", "-c", f"setsid {SLEEPER} {mark} & wait"))
    await wait_until(lambda: alive(mark), description="the other program runs")
    (folders[1] / "told").touch()
    with pytest.raises(StepError):
        await killing

    assert len(alive(mark)) == 1
    assert not staying.done()
    staying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await staying


async def test_other_children_of_ours_are_left_alone(tmp_path: Path) -> None:
    other = subprocess.Popen(["sleep", "600"], start_new_session=True)  # noqa: ASYNC220
    try:
        with pytest.raises(StepError):
            await hostile(tmp_path, new_mark(), "kill-parent")
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


async def test_everything_ends_when_we_are_killed(tmp_path: Path) -> None:
    mark = new_mark()
    script = f"setsid {SLEEPER} {mark} & {SLEEPER} {mark}"
    argv = [sys.executable, "-c", OURS, str(tmp_path), script]
    us = subprocess.Popen(argv, cwd=Path(__file__).parents[2])  # noqa: ASYNC220
    try:
        await wait_until(lambda: len(alive(mark)) == 2, description="the program and its children run")
    finally:
        us.kill()
        us.wait()

    await wait_until(lambda: not alive(mark), timeout=6, description="nothing of it is alive")


async def test_the_process_in_between_costs_little(tmp_path: Path) -> None:
    def used() -> float:  # processor time: how long it takes depends on what else the machine does
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    async def measure() -> float:
        before = used()
        await run(tmp_path, "true")
        return used() - before

    assert min([await measure() for _ in range(5)]) < 0.06


async def test_a_program_that_is_ended_while_it_starts_does_not_wait_for_the_grace(tmp_path: Path) -> None:
    began = time.monotonic()
    for seconds in (0.02, 0.03, 0.04, 0.05, 0.06):
        with pytest.raises(StepTimeoutError):
            await run(tmp_path, "sleep", "600", timeout_seconds=seconds, grace_seconds=30)

    assert time.monotonic() - began < 30


def test_descendants_are_found_without_the_kernels_list_of_children(monkeypatch: pytest.MonkeyPatch) -> None:
    child = subprocess.Popen(["sh", "-c", "sleep 600 & sleep 600"], start_new_session=True)
    try:
        while len(psutil.Process(child.pid).children(recursive=True)) < 2:
            time.sleep(0.01)
        listed: Sequence[int] = _exec.descendants(child.pid)
        monkeypatch.setattr(_exec, "_lists_children", lambda: False)
        assert sorted(_exec.descendants(child.pid)) == sorted(listed)
        assert child.pid in _exec.children_of(os.getpid())
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
