"""Prefect is away for API and worker while a run goes on, and ends: nothing is lost, and nothing runs twice."""

from __future__ import annotations

from pathlib import Path

from ai_task_orchestra.lease import now
from tests.support.site import LEASE_SECONDS, Site, attempts, python
from tests.support.tcp_proxy import proxy_to
from tests.support.waiting import wait_until


async def test_a_run_survives_prefect_being_down_and_then_hanging_for_longer_than_its_lease(
    site: Site, database_url: str, tmp_path: Path
) -> None:
    told, ended = tmp_path / "go", tmp_path / "ended"
    code = f"""
import pathlib, time
while not pathlib.Path({str(told)!r}).exists(): time.sleep(0.05)
pathlib.Path({str(ended)!r}).touch()
print("done", end="")
"""
    async with proxy_to(site.prefect_url) as (proxy, address):
        with site.worker("patient", prefect_api_url=address):
            async with site.core(database_url, prefect_api_url=address) as bench:
                task_id = await bench.submit(
                    template=site.template("program"), parameters={"command": python(code), "path": "patient.txt"}
                )
                await bench.status(task_id, "running", timeout=100)
                await proxy.cut()
                await past(1.3 * LEASE_SECONDS)
                proxy.be_silent()
                await proxy.open()
                await past(1.3 * LEASE_SECONDS)
                told.touch()
                await wait_until(ended.exists, description="the work has ended meanwhile")
                assert (await bench.get(task_id)).status == "running"
                proxy.speak()
                view = await bench.status(task_id, "completed", timeout=100)
                assert attempts(view) == [("patient", "completed")]
                assert view.result == {"output": "done"}
                assert (site.outputs / "patient.txt").read_text() == "done"


async def past(seconds: float) -> None:
    """Until a lease that was renewed just now would be over."""
    over = now() + seconds
    await wait_until(lambda: now() > over, timeout=2 * seconds + 20, description="any lease would be over")
