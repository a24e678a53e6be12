"""`store_result`: writes a result into an output folder."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, ClassVar

from flows.outputs import resolve_output, write_output
from flows.steps import fields as checked
from flows.steps.base import StepContext


class StoreResult:
    """Stores text as UTF-8; what is no text is stored as JSON."""

    type: ClassVar[str] = "store_result"

    async def run(self, fields: Mapping[str, Any], context: StepContext) -> dict[str, Any]:
        """Fields: path, content."""
        place = resolve_output(checked.text(fields, "path"), context.settings)
        data = checked.content(fields).encode()
        await context.fence.confirm()
        await asyncio.to_thread(write_output, place, data, tenant=context.tenant, check=context.fence.check)
        context.log.info("result_stored", extra={"task_id": context.task_id, "bytes": len(data)})
        return {"path": place.shown, "bytes": len(data)}
