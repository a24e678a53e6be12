"""One step as a Prefect task: a run of its own in Prefect's UI, with its logs, retries and time limit."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.logging import get_run_logger
from prefect.states import Failed

from ai_task_orchestra.errors import InternalStepError, StepError, StepInputError, StepTimeoutError
from ai_task_orchestra.protocol import IN_PLACE_RETRY_SECONDS, StepRetry
from ai_task_orchestra.step_types import StepType
from ai_task_orchestra.template import StepSpec
from flows.report import bounded_message
from flows.steps.base import Step, StepContext

Log = logging.Logger | logging.LoggerAdapter[logging.Logger]

# Steps that failed together, because a server was away, do not all come back in the same moment.
_JITTER: Final = 0.1


@dataclass(frozen=True)
class CompiledStep:
    """A step with everything that is known before a task runs."""

    spec: StepSpec
    type: StepType
    implementation: Step
    task: Task[..., Any]


class Deadline:
    """When the time of a whole attempt ends, which is `seconds` long and begins now."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._at = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds; negative once it is over."""
        return self._at - time.monotonic()


class StepRun:
    """One execution of a step: what it is given and, once it is over, its outputs or its error.

    A plain class on purpose: Prefect searches the collections and dataclasses that a task is given for futures, value
    by value, which takes seconds for a large list.
    """

    def __init__(
        self, step: CompiledStep, fields: Mapping[str, Any], context: StepContext, *, deadline: Deadline
    ) -> None:
        """`deadline` is the task's; the context has the step's own time limit."""
        self._step, self._fields, self._context = step, fields, context
        self._deadline = deadline
        self.outputs: dict[str, Any] = {}
        self.error: StepError | None = None

    async def execute(self) -> None:
        """Run the step once, inside its Prefect task; `error` says how it failed, if it did."""
        self.error = None
        log = get_run_logger()
        try:
            self._check_fields()
            self.outputs = await self._run_in_time(log)
        except StepError as exc:
            self.error = exc
        except Exception as exc:
            # The message may hold anything, so it stays in the run's log.
            log.error("step_failed_unexpectedly", exc_info=True)
            self.error = InternalStepError(f"unexpected {type(exc).__name__}; the run's log has the details")
        if self.error is not None:
            self.error.step = self._step.spec.name

    def _check_fields(self) -> None:
        """What the template could not know when it was loaded: which values are absent, and of which type they are."""
        for name, field in self._step.type.fields.items():
            if name not in self._fields:
                if field.required:
                    raise StepInputError(f"{name}: the field has no value")
            elif not field.fits(self._fields[name]):
                raise StepInputError(f"{name}: must be {field.expected}")

    async def _run_in_time(self, log: Log) -> dict[str, Any]:
        """Within the step's time and the task's, whichever ends first."""
        own, left = self._context.timeout_seconds, self._deadline.left
        context = replace(self._context, log=log, timeout_seconds=max(min(own, left), 0.0))
        limit = asyncio.timeout(context.timeout_seconds)
        try:
            async with limit:
                outputs = await self._step.implementation.run(self._fields, context)
        except TimeoutError as exc:
            if not limit.expired():
                raise
            if left < own:
                raise StepTimeoutError(f"the whole task took longer than {self._deadline.seconds:g} s") from exc
            raise StepTimeoutError(f"it took longer than {own:g} s", retryable=True) from exc
        return {name: value for name, value in outputs.items() if value is not None}


def task_for(step: StepSpec) -> Task[..., Any]:
    """The Prefect task that runs this step: named after its type, its runs after the step.

    Retries in place wait the step's delay, then twice as long each time, up to 30 s, a little more or less by chance.
    """
    in_place = 0 if retry_as_attempt(step) else step.retries
    return _run_step.with_options(
        name=step.type,
        task_run_name=step.name,
        description=f"Step {step.name} of type {step.type}",
        retries=in_place,
        retry_delay_seconds=[min(step.retry_delay_seconds * 2**n, IN_PLACE_RETRY_SECONDS) for n in range(in_place)],
        retry_jitter_factor=_JITTER,
    )


def retry_as_attempt(step: StepSpec) -> StepRetry | None:
    """The step's retries, if they wait too long to hold a slot meanwhile: then the task is run again for each."""
    if step.retries == 0 or step.retry_delay_seconds <= IN_PLACE_RETRY_SECONDS:
        return None
    return {"retries": step.retries, "delay_seconds": step.retry_delay_seconds}


async def _execute(step_run: StepRun) -> State[Any] | None:
    """The body of every step's task. A failure is returned as a state: a raised one is logged with its traceback."""
    await step_run.execute()
    if step_run.error is None:
        return None
    return Failed(message=bounded_message(step_run.error), data=step_run.error)


def _is_worth_a_retry(_: Task[..., Any], __: TaskRun, state: State[Any]) -> bool:
    return isinstance(state.data, StepError) and state.data.retryable


_run_step: Final = Task(
    _execute,
    persist_result=False,
    cache_policy=NO_CACHE,
    retry_condition_fn=_is_worth_a_retry,
    log_prints=False,
)


class _WithoutEmptyTraceback(logging.Filter):
    """Prefect logs a task that returned a failed state as if it had raised; the log would say `NoneType: None`."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info == (None, None, None):
            record.exc_info = None
        return True


logging.getLogger("prefect.task_runs").addFilter(_WithoutEmptyTraceback())
