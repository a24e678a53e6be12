"""Stops what somebody cancelled, deleted or declared lost while this worker was executing it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Final
from uuid import UUID

import httpx
from prefect.client.schemas.objects import State, StateType

from ai_task_orchestra.worker.execution import Execution
from ai_task_orchestra.worker.prefect_gateway import PrefectGateway

_log = logging.getLogger(__name__)

# Without events: how often the states of our own runs are looked at.
CHECK_SECONDS: Final = 3.0
# An event comes before its change is committed (and may never be): how often, and after how long, to look for it.
_CONFIRM_SECONDS: Final = (0.0, 0.05, 0.2, 1.0)
# A state that the child set itself a moment ago must not get the child killed before it has said so.
_OWN_STATE_SECONDS: Final = 0.5


class CancelWatch:
    """Looks at the states of the executed runs: at once when an event says so, and regularly."""

    def __init__(self, gateway: PrefectGateway, executions: Mapping[UUID, Execution]) -> None:
        self._gateway = gateway
        self._executions = executions
        self._final_before: set[UUID] = set()
        self._confirming: dict[UUID, asyncio.Task[None]] = {}

    def noticed(self, run_id: UUID) -> None:
        """An event says that this run is being cancelled, or was."""
        if run_id in self._executions and run_id not in self._confirming:
            task = self._confirming[run_id] = asyncio.create_task(self._confirm(run_id))
            task.add_done_callback(lambda _: self._confirming.pop(run_id, None))

    async def run(self) -> None:
        """Look regularly, until cancelled."""
        try:
            while True:
                await asyncio.sleep(CHECK_SECONDS)
                try:
                    await self.check()
                except httpx.HTTPError as exc:
                    _log.debug("worker.cancel_check_failed", extra={"error": type(exc).__name__})
        finally:
            for task in list(self._confirming.values()):
                task.cancel()

    async def check(self) -> None:
        """Look at all executed runs once.

        Raises:
            httpx.HTTPError: Prefect does not answer.
        """
        watched = {run_id for run_id, execution in self._executions.items() if not execution.finished}
        if not watched:
            self._final_before.clear()
            return
        states = await self._gateway.states_of(watched)
        final = {run_id for run_id, state in states.items() if state is None or state.is_final()}
        for run_id, state in states.items():
            # A final state may be the child's own, about to be reported: believed the second time.
            if run_id in self._final_before or (state and state.is_cancelling()):
                self._end(run_id, state)
        self._final_before = final

    async def _confirm(self, run_id: UUID) -> None:
        for seconds in _CONFIRM_SECONDS:
            await asyncio.sleep(seconds)
            try:
                state = await self._gateway.state_of(run_id)
            except httpx.HTTPError:
                return  # the regular look will find it
            if state is None or state.is_final():
                await asyncio.sleep(_OWN_STATE_SECONDS)
            elif not state.is_cancelling():
                continue
            self._end(run_id, state)
            return

    def _end(self, run_id: UUID, state: State | None) -> None:
        execution = self._executions.get(run_id)
        if execution is None or execution.finished:
            return
        cancelled = state is not None and state.type in (StateType.CANCELLING, StateType.CANCELLED)
        execution.end("cancelled" if cancelled else "abandoned")
