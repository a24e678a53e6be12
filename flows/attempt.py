"""One attempt of a task: what a compiled flow does when it runs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State, StateDetails
from prefect.context import FlowRunContext
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from ai_task_orchestra import workspaces
from ai_task_orchestra.errors import (
    InternalStepError,
    OrchestraError,
    ParameterError,
    ResultReferenceError,
    StepError,
    StepInputError,
)
from ai_task_orchestra.expressions import ABSENT, render
from ai_task_orchestra.protocol import (
    LABEL_DEPENDENCIES,
    LABEL_TENANT,
    TAG_AWAITING_RESULTS,
    AttemptReport,
    dependency_node,
    task_of_run,
)
from ai_task_orchestra.settings import Settings
from ai_task_orchestra.step_types import kind_of
from ai_task_orchestra.template import TemplateSpec
from flows.fence import Fence
from flows.report import bounded_message, error_report, hand_in, storable
from flows.step_task import CompiledStep, Deadline, Log, StepRun, retry_as_attempt
from flows.steps.base import StepContext
from flows.usage import ResourceUsage


@dataclass(frozen=True)
class CompiledTemplate:
    """A template with everything that is known before a task runs."""

    spec: TemplateSpec
    steps: tuple[CompiledStep, ...]
    settings: Settings


class Attempt:
    """Runs the steps of a task inside its flow run.

    1. Find out from the flow run whose task this is.
    2. Check the parameters: a run that was started in Prefect has passed no other check of ours.
    3. Run the steps in order, each as a Prefect task; the first that fails ends the attempt.
    4. Write the answer and the report as artifacts, before the flow run reaches a final state.

    Cancellation passes through: whoever cancelled reports it.
    """

    def __init__(self, compiled: CompiledTemplate) -> None:
        self._spec, self._settings = compiled.spec, compiled.settings
        self._steps = compiled.steps
        self._retries = {step.spec.name: retry_as_attempt(step.spec) for step in compiled.steps}
        self._usage = ResourceUsage()
        self._outputs: dict[str, dict[str, Any]] = {}
        self._parameters: dict[str, Any] = {}
        self._deadline = Deadline(compiled.spec.timeout_seconds or compiled.settings.task_timeout_seconds)

    async def run(self, arguments: Mapping[str, Any]) -> dict[str, Any] | State[Any]:
        """The task's result; a Failed state if it has none.

        Args:
            arguments: the flow's; None stands for an optional parameter that was not given.
        """
        flow_run = _current_flow_run()
        task_id, generation = task_of_run(flow_run.id, flow_run.idempotency_key)
        report: AttemptReport = {
            "version": 1,
            "task_id": task_id,
            "generation": generation,
            "worker": _worker_name(self._settings),
        }
        log = get_run_logger()
        fence = Fence(partial(_is_current, flow_run.id), self._settings.worker_lease_seconds)
        try:
            if TAG_AWAITING_RESULTS in flow_run.tags:
                raise ResultReferenceError("The run was started before the results that its parameters refer to.")
            self._parameters = self._checked(arguments)
            tenant = str(flow_run.labels.get(LABEL_TENANT, "default"))
            before = _dependencies(flow_run)
            folder = workspaces.folder_of(self._settings.workspaces, task_id, generation)
            async with _workspace(folder) as workspace:
                await self._run_steps(task_id, tenant, workspace, fence, log, before)
            report["result"] = storable(self._result())
        except OrchestraError as exc:
            error: OrchestraError | None = exc
        except Exception as exc:
            log.error("task_failed_unexpectedly", exc_info=True)
            error = InternalStepError(f"unexpected {type(exc).__name__}; the run's log has the details")
        else:
            error = None
        return await self._report(report, error, flow_run, log)

    def _checked(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        given = {name: value for name, value in arguments.items() if value is not None}
        check = self._spec.check(given)
        if not check.valid:
            raise ParameterError(check.errors)
        return self._spec.with_defaults(given)

    async def _run_steps(
        self, task_id: str, tenant: str, workspace: Path, fence: Fence, log: Log, before: list[State[Any]]
    ) -> None:
        """`before` is what the next step waits for: edges in Prefect's graph of the run."""
        for step in self._steps:
            if step.spec.when is not None and not self._is_given(step.spec.when):
                log.info("Step %r is skipped: %s is absent, false, 0 or empty", step.spec.name, step.spec.when)
                continue
            context = StepContext(
                task_id=task_id,
                tenant=tenant,
                step_name=step.spec.name,
                workspace=workspace,
                settings=self._settings,
                earlier=self._outputs,
                timeout_seconds=self._step_timeout(step),
                log=log,
                usage=self._usage,
                fence=fence,
            )
            step_run = StepRun(step, self._fields(step), context, deadline=self._deadline)
            state = await step.task(step_run, wait_for=before, return_state=True)
            if step_run.error is not None:
                raise step_run.error
            if not state.is_completed():
                raise InternalStepError(f"Prefect left it {state.name}", step=step.spec.name)
            self._outputs[step.spec.name] = step_run.outputs
            before = [state]

    def _render(self, value: Any) -> Any:
        return render(value, parameters=self._parameters, steps=self._outputs)

    def _is_given(self, placeholder: str) -> bool:
        value = self._render(placeholder)
        return value is not ABSENT and bool(value)

    def _fields(self, step: CompiledStep) -> dict[str, Any]:
        fields = cast("dict[str, Any]", self._render(step.spec.fields))
        if step.type.content_default and "content" not in fields:
            fields |= self._default_content()
        return fields

    def _default_content(self) -> dict[str, Any]:
        """The output of the nearest step before that has one, else its content."""
        for outputs in reversed(self._outputs.values()):
            for name in ("output", "content"):
                if name in outputs:
                    return {"content": outputs[name]}
        return {}

    def _step_timeout(self, step: CompiledStep) -> float:
        """How long the step may take; a placeholder's value is seen here first."""
        wanted = self._render(step.spec.timeout_seconds)
        if wanted is None or wanted is ABSENT:
            return self._settings.step_timeout_seconds
        if kind_of(wanted) not in ("integer", "number") or wanted <= 0:
            raise StepInputError("timeout_seconds: must be a number above 0", step=step.spec.name)
        return float(wanted)

    def _result(self) -> dict[str, Any]:
        if self._spec.result is not None:
            return cast("dict[str, Any]", self._render(self._spec.result))
        last = next((each for each in reversed(self._outputs.values()) if "output" in each), None)
        return {} if last is None else {"output": last["output"]}

    async def _report(
        self, report: AttemptReport, error: OrchestraError | None, flow_run: FlowRun, log: Log
    ) -> dict[str, Any] | State[Any]:
        report["resource_usage"] = self._usage.as_dict()
        if error is not None:
            report["error"] = error_report(error)
            report["retryable"] = isinstance(error, StepError) and error.retryable
            if isinstance(error, StepError) and (retry := self._retries.get(error.step or "")):
                report["step_retry"] = retry
        try:
            await hand_in(get_client(), flow_run.id, report)
        except* Exception:
            log.error("report_not_stored", exc_info=True)
            error = error or InternalStepError("Prefect did not store the task's result")
        if error is None:
            return report["result"]
        return Failed(message=bounded_message(error))


def _current_flow_run() -> FlowRun:
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise RuntimeError("a template's steps run inside a flow run only")
    return context.flow_run


async def _is_current(flow_run_id: UUID) -> bool:
    """Whether the flow run is Running and was never ended: one that was declared lost stays so, whatever came later."""
    states = await get_client().read_flow_run_states(flow_run_id)
    latest = max(states, key=lambda state: state.timestamp, default=None)
    return latest is not None and latest.is_running() and not any(state.is_final() for state in states)


def _dependencies(flow_run: FlowRun) -> list[State[Any]]:
    """The nodes that stand for what this task depends on, as far as the first step's edges to them need them."""
    count = str(flow_run.labels.get(LABEL_DEPENDENCIES, ""))
    nodes = [dependency_node(flow_run.id, number) for number in range(int(count) if count.isdecimal() else 0)]
    # With some data, or Prefect looks for a stored result.
    return [Completed(data=True, state_details=StateDetails(task_run_id=node)) for node in nodes]


def _worker_name(settings: Settings) -> str:
    """Our worker tells its children its name; a stock Prefect worker does not."""
    return os.environ.get("PREFECT__WORKER_NAME") or settings.worker_name or socket.gethostname()


@contextlib.asynccontextmanager
async def _workspace(folder: Path) -> AsyncIterator[Path]:
    """The folder of this attempt alone; gone afterwards."""
    if folder.exists():  # noqa: ASYNC240 - one system call; there, if a killed process left it behind
        await asyncio.to_thread(workspaces.remove, folder)
    try:
        with workspaces.locked(folder):
            yield folder
    finally:
        if not workspaces.remove_empty(folder):  # it is empty if the task only used a model
            await asyncio.to_thread(workspaces.remove, folder)
