"""`wait`: lets time pass."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from flows.steps import fields as checked
from flows.steps.base import StepContext

_LONGEST_SECONDS: Final = 86400.0


class Wait:
    """Waits up to a day; the task keeps its slot meanwhile."""

    type: ClassVar[str] = "wait"

    async def run(self, fields: Mapping[str, Any], context: StepContext) -> dict[str, Any]:
        """Fields: seconds."""
        await asyncio.sleep(checked.seconds(fields, "seconds", maximum=_LONGEST_SECONDS))
        return {}
