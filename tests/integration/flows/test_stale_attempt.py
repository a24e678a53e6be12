"""An attempt that goes on after its run was taken away: it stores nothing, whatever its run looks like by then."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_CSRF_SUPPORT_ENABLED, PREFECT_HOME, temporary_settings
from prefect.states import Cancelling, Crashed, Running, State

from flows.steps.base import StepContext
from flows.steps.store_result import StoreResult
from tests.support.laboratory import Laboratory

pytestmark = [pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]

STORE = "steps: [{type: wait, seconds: 1}, {type: store_result, path: out.txt, content: stale}]\n"


@pytest.fixture
def prefect(prefect_api_url: str, tmp_path: Path) -> Iterator[None]:
    changes = {
        PREFECT_API_URL: prefect_api_url,
        PREFECT_HOME: tmp_path / "prefect",
        PREFECT_CLIENT_CSRF_SUPPORT_ENABLED: False,
    }
    with temporary_settings(changes):
        yield


@pytest.fixture
async def lab(prefect: None, tmp_path: Path) -> AsyncIterator[Laboratory]:
    async with get_client() as client:
        lab = Laboratory(client, tmp_path / "home")
        lab.steps["store_result"] = StoreResult()
        yield lab


@pytest.mark.parametrize(
    "meanwhile",
    [[Crashed()], [Crashed(), Running()], [Cancelling()]],
    ids=["taken away", "taken away and running again", "being cancelled"],
)
async def test_a_run_that_was_taken_away_stores_nothing(lab: Laboratory, meanwhile: list[State[Any]]) -> None:
    async def while_it_waits(_: Mapping[str, Any], __: StepContext) -> dict[str, Any]:
        context = FlowRunContext.get()
        assert context is not None and context.flow_run is not None
        for state in meanwhile:
            await lab.client.set_flow_run_state(context.flow_run.id, state, force=True)
        return {}

    lab.steps["wait"].body = while_it_waits
    flow = lab.compile(STORE)
    await flow(return_state=True)
    assert not (lab.settings.outputs[0] / "out.txt").exists()


async def test_a_run_that_counts_stores_its_result(lab: Laboratory) -> None:
    flow = lab.compile(STORE)
    await flow(return_state=True)
    assert (lab.settings.outputs[0] / "out.txt").read_text() == "stale"
