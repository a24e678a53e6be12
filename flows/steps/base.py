"""What a step is: a plain class of one `type` that turns its fields into output fields.

Steps know nothing of Prefect; the compiler wraps each into a Prefect task, renders its fields and bounds its time.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from ai_task_orchestra.settings import Settings
    from flows.fence import Fence
    from flows.usage import ResourceUsage


@dataclass(frozen=True)
class StepContext:
    """What a step may know of the task it belongs to.

    `workspace` exists and is the task's own. `earlier` holds the output fields of the steps before, by step name, in
    their order. `timeout_seconds` is what the compiler enforces around `Step.run`. `log` lands in Prefect's logs of
    this step; `usage` collects what the task consumes; `fence` is asked before anything is published.
    """

    task_id: str
    tenant: str
    step_name: str
    workspace: Path
    settings: Settings
    earlier: Mapping[str, Mapping[str, Any]]
    timeout_seconds: float
    log: logging.Logger | logging.LoggerAdapter[logging.Logger]
    usage: ResourceUsage
    fence: Fence


class Step(Protocol):
    """One step type. Instances hold no state of a run: one serves all tasks."""

    type: ClassVar[str]

    async def run(self, fields: Mapping[str, Any], context: StepContext) -> dict[str, Any]:
        """Do the work.

        `fields` are rendered, absent ones dropped; their values come from people and are checked here. On
        cancellation the step leaves no process behind.

        Returns:
            the output fields that the type promises, as JSON values.

        Raises:
            StepError: the step failed; the message is for the user and holds no secret.
        """
        ...
