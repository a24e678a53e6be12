"""Compiled templates with scripted steps, run in this process against a real Prefect server."""

from __future__ import annotations

import textwrap
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect import Flow
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import Artifact, FlowRun, Log, State, TaskRun
from prefect.logging.handlers import APILogHandler

from ai_task_orchestra.protocol import REPORT_ARTIFACT_TYPE
from ai_task_orchestra.settings import Settings
from ai_task_orchestra.template import parse_template
from flows.compiler import compile_template
from flows.steps.base import StepContext
from tests.support.waiting import wait_until

Body = Callable[[Mapping[str, Any], StepContext], Awaitable[dict[str, Any]]]


@dataclass
class ScriptedStep:
    """A step that remembers what it was given and does what the test says."""

    type: str
    body: Body | None = None
    calls: list[dict[str, Any]] = field(default_factory=list)
    contexts: list[StepContext] = field(default_factory=list)

    async def run(self, fields: Mapping[str, Any], context: StepContext) -> dict[str, Any]:
        self.calls.append(dict(fields))
        self.contexts.append(context)
        return await self.body(fields, context) if self.body else {}


def answering(output: Any, **more: Any) -> Body:
    async def body(_: Mapping[str, Any], __: StepContext) -> dict[str, Any]:
        return {"output": output, **more}

    return body


def failing(error: Exception) -> Body:
    async def body(_: Mapping[str, Any], __: StepContext) -> dict[str, Any]:
        raise error

    return body


@dataclass
class Finished:
    """Everything Prefect knows of a run that is over."""

    run: FlowRun
    state: State[Any]
    task_runs: dict[str, TaskRun]
    artifacts: list[Artifact]

    @property
    def report(self) -> dict[str, Any]:
        (report,) = [each.data for each in self.artifacts if each.type == REPORT_ARTIFACT_TYPE]
        assert isinstance(report, dict)
        return report

    @property
    def answer(self) -> str | None:
        texts = [each.data for each in self.artifacts if each.type == "markdown"]
        assert len(texts) < 2
        return str(texts[0]) if texts else None


class Laboratory:
    """Compiles templates with scripted steps and runs them."""

    def __init__(self, client: PrefectClient, home: Path) -> None:
        self.client = client
        self.settings = Settings(home=home, worker_name="lab-worker")
        self.steps: Any = {
            name: ScriptedStep(name) for name in ("ollama_generate", "store_result", "wait", "read_files")
        }

    def compile(self, rest: str, parameters: str = "") -> Flow[..., Any]:
        head = f"name: lab-x{uuid.uuid4().hex[:8]}\ndescription: An experiment\n"
        head += f"parameters:\n{textwrap.indent(textwrap.dedent(parameters), '  ')}\n" if parameters else ""
        spec = parse_template(head + textwrap.dedent(rest), Path("lab.yaml"))
        return compile_template(spec, settings=self.settings, steps=self.steps)

    async def run(self, flow: Flow[..., Any], **parameters: Any) -> Finished:
        outcome: Any = flow(**parameters, return_state=True)
        state: State[Any] = await outcome
        assert state.state_details.flow_run_id is not None
        return await self.finished(state.state_details.flow_run_id, state)

    async def finished(self, run_id: uuid.UUID, state: State[Any]) -> Finished:
        only = FlowRunFilter(id=FlowRunFilterId(any_=[run_id]))

        async def recorded() -> dict[str, TaskRun] | bool:
            runs = {each.name: each for each in await self.client.read_task_runs(flow_run_filter=only)}
            over = all(each.state is not None and each.state.is_final() for each in runs.values())
            ran = {context.step_name for step in self.steps.values() for context in step.contexts}
            return runs if over and ran <= runs.keys() else False

        task_runs: Any = {}
        if any(step.contexts for step in self.steps.values()):
            task_runs = await wait_until(recorded, description="task runs recorded")
        return Finished(
            await self.client.read_flow_run(run_id),
            state,
            task_runs,
            await self.client.read_artifacts(flow_run_filter=only),
        )

    async def logs(self, run_id: uuid.UUID, until: str) -> list[Log]:
        """The run's log once a line holds `until`."""
        await APILogHandler.aflush()

        async def lines() -> list[Log] | bool:
            only = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id]))
            found = await self.client.read_logs(log_filter=only, limit=200)
            return found if any(until in line.message for line in found) else False

        found: Any = await wait_until(lines, description=f"a log line with {until!r}")
        return list(found)
