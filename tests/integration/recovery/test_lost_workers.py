"""The API's core, real workers and a real Prefect: workers die, freeze and leave, and every task ends once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.core_bench import CoreBench
from tests.support.site import Crew, Site, attempts, holder, open_crew, python
from tests.support.waiting import wait_until
from tests.support.worker_bench import alive

# Says which attempt it belongs to (its workspace is named after it), then waits to be told to go on.
_WORK = """
import os, pathlib, subprocess, sys, time
folder = pathlib.Path({folder!r})
attempt = pathlib.Path.cwd().name
stubborn = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, 1); time.sleep(600)"],
    start_new_session=True)
(folder / f"pids-{{attempt}}.part").write_text(f"{{os.getpid()}} {{stubborn.pid}}")
os.rename(folder / f"pids-{{attempt}}.part", folder / f"pids-{{attempt}}")
while not (folder / "go").exists():
    time.sleep(0.05)
print("attempt", attempt, end="")
"""

_KILL_PARENT = """
import os, pathlib, signal, time
supervisor = pathlib.Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()
os.kill(int(supervisor[1]), signal.SIGKILL)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def crew(site: Site) -> Iterator[Crew]:
    with open_crew(site) as crew:
        yield crew


class Work:
    """A task that runs until it is told to go on; its output goes to a file of its own."""

    def __init__(self, bench: CoreBench, site: Site, folder: Path) -> None:
        self.bench, self.site, self.folder = bench, site, folder
        self.path = f"{folder.name}.txt"

    async def submit(self) -> str:
        parameters = {"command": python(_WORK.format(folder=str(self.folder))), "path": self.path}
        return await self.bench.submit(template=self.site.template("program"), parameters=parameters)

    async def pids(self, attempt: int) -> list[int]:
        """The processes of an attempt, once they are there: the program and a stubborn one in its own session."""
        file = self.folder / f"pids-{attempt}"
        await wait_until(file.exists, timeout=100, description=f"attempt {attempt} runs")
        return [int(pid) for pid in file.read_text().split()]

    def go_on(self) -> None:
        (self.folder / "go").touch()

    def stored(self) -> str:
        return (self.site.outputs / self.path).read_text()


@pytest.fixture
def work(bench: CoreBench, site: Site, tmp_path: Path) -> Work:
    return Work(bench, site, tmp_path)


async def test_a_killed_workers_run_is_taken_back_and_runs_once_more(bench: CoreBench, crew: Crew, work: Work) -> None:
    workers = await crew.ready(2)
    task_id = await work.submit()
    pids = await work.pids(1)
    lost = await holder(bench, task_id)

    workers[lost].stop(signal.SIGKILL)

    await wait_until(lambda: not alive(pids) and not workers[lost].left(), description="nothing of the worker lives on")
    await work.pids(2)
    work.go_on()
    view = await bench.status(task_id, "completed", timeout=100)
    [(first, how), (second, end)] = attempts(view)
    assert (first, how, end) == (lost, "crashed", "completed")
    assert second != lost
    assert view.result == {"output": "attempt 2"}
    assert work.stored() == "attempt 2"


async def test_a_run_that_its_killed_worker_had_only_claimed_runs_once(
    bench: CoreBench, crew: Crew, work: Work
) -> None:
    workers = await crew.ready(2)
    parked = {name: await worker.parked(2) for name, worker in workers.items()}
    for child in (child for children in parked.values() for child in children):
        child.suspend()  # it can't accept a run
    task_id = await work.submit()
    lost = await holder(bench, task_id)
    await bench.run_of(task_id, state="Pending")

    workers[lost].stop(signal.SIGKILL)
    for child in (child for name, children in parked.items() if name != lost for child in children):
        child.resume()

    await work.pids(2)
    work.go_on()
    view = await bench.status(task_id, "completed", timeout=100)
    assert [how for _, how in attempts(view)] == ["crashed", "completed"]
    assert view.attempts[0].started is None
    assert not (work.folder / "pids-1").exists()


async def test_what_a_worker_that_was_frozen_still_does_is_not_published(
    bench: CoreBench, crew: Crew, work: Work
) -> None:
    workers = await crew.ready(2)
    task_id = await work.submit()
    pids = await work.pids(1)
    frozen = await holder(bench, task_id)

    workers[frozen].freeze()
    try:
        await work.pids(2)  # the lease is over
        work.go_on()
        done = await bench.status(task_id, "completed", timeout=100)
        assert alive(pids) == pids
    finally:
        workers[frozen].wake()

    await wait_until(lambda: not alive(pids), timeout=10, description="the processes of the lost attempt are gone")
    assert work.stored() == "attempt 2"
    assert done.result == {"output": "attempt 2"}
    assert [how for _, how in attempts(done)] == ["crashed", "completed"]
    assert await bench.get(task_id) == done
    await wait_until(lambda: not _workspaces(work.site, task_id), description="and its files")


async def test_a_stopped_worker_hands_its_run_back_which_is_no_loss(bench: CoreBench, crew: Crew, work: Work) -> None:
    workers = await crew.ready(2)
    task_id = await work.submit()
    pids = await work.pids(1)
    leaving = await holder(bench, task_id)

    workers[leaving].stop()
    await workers[leaving].ended()  # with code 0, and nothing of it is left

    assert not alive(pids)
    await work.pids(2)
    work.go_on()
    view = await bench.status(task_id, "completed", timeout=100)
    assert [how for _, how in attempts(view)] == ["handed_back", "completed"]
    [row] = await bench.sql("SELECT losses, hand_backs FROM task WHERE id = $1::uuid", task_id)
    assert (row["losses"], row["hand_backs"]) == (0, 1)


async def test_a_step_that_kills_its_parent_each_time_is_poison_and_others_go_on(
    bench: CoreBench, site: Site, crew: Crew, work: Work
) -> None:
    await crew.ready(1)
    poison = await bench.submit(template=site.template("program"), parameters={"command": python(_KILL_PARENT)})
    other = await work.submit()
    work.go_on()

    view = await bench.status(poison, "failed", timeout=100)
    assert view.error is not None and view.error["type"] == "poison"
    assert "killed by signal 9" in view.error["message"]
    assert [how for _, how in attempts(view)] == ["crashed"] * 3
    await bench.status(other, "completed", timeout=100)


async def test_a_script_that_is_killed_is_a_failed_step_and_no_lost_attempt(
    bench: CoreBench, site: Site, crew: Crew
) -> None:
    await crew.ready(1)
    for number, name in ((signal.SIGKILL, "SIGKILL"), (signal.SIGSEGV, "SIGSEGV")):
        command = python(f"import os; os.kill(os.getpid(), {int(number)})")
        task_id = await bench.submit(template=site.template("program"), parameters={"command": command})
        view = await bench.status(task_id, "failed", timeout=100)
        assert view.error is not None
        assert (view.error["type"], view.error["step"]) == ("script_failed", "work")
        assert f"was ended by signal {name}" in view.error["message"]
        assert [how for _, how in attempts(view)] == ["failed"]


async def test_a_step_whose_retry_waits_long_comes_back_as_another_attempt(
    bench: CoreBench, site: Site, crew: Crew
) -> None:
    await crew.ready(1)
    command = python("import pathlib; raise SystemExit(pathlib.Path.cwd().name == '1')")
    task_id = await bench.submit(template=site.template("later"), parameters={"command": command})

    async def waits() -> bool:
        rows = await bench.sql("SELECT 1 FROM task WHERE id = $1::uuid AND not_before > now()", task_id)
        return bool(rows)

    await wait_until(waits, timeout=100, description="the task waits for its retry")
    assert (await bench.get(task_id)).status == "queued"
    await bench.sql("UPDATE task SET not_before = now() WHERE id = $1::uuid", task_id)
    view = await bench.status(task_id, "completed", timeout=100)
    assert [how for _, how in attempts(view)] == ["failed", "completed"]


def _workspaces(site: Site, task_id: str) -> list[str]:
    folder = site.home / "workspaces" / task_id
    return [path.name for path in folder.iterdir()] if folder.exists() else []
