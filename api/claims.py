"""Claiming a flow run the way a worker does, to be sure that nobody runs it while we move or release it.

Pending is Prefect's only fence: a run that one has claimed is refused to everybody else. But Prefect also lets a
*finished* run become Pending; whoever finished while we looked elsewhere must not be run again, so a claim counts
only if the run has never started, and is undone otherwise.
"""

from __future__ import annotations

import enum
import logging
from typing import Final
from uuid import UUID

from ai_task_orchestra.errors import UnreachableError
from api.gateway import PrefectGateway
from api.prefect_http import PrefectUnreachableError
from api.prefect_types import FINAL_STATES, PENDING, FlowRun
from api.transitions import MOVE, RELEASE, transition_id

logger = logging.getLogger(__name__)

_MESSAGES: Final = {RELEASE: "Its dependencies are completed.", MOVE: "Its priority changes."}


class Claim(enum.Enum):
    """What came of it."""

    #: The run is ours: no worker can take it.
    OURS = enum.auto()
    #: A worker has it, or it is over.
    TAKEN = enum.auto()
    #: Another of our own operations has it just now.
    BUSY = enum.auto()
    #: There is no such run.
    GONE = enum.auto()


async def claim(gateway: PrefectGateway, run_id: UUID, purpose: str) -> Claim:
    """Claim a run for `purpose` (RELEASE or MOVE); claiming it again for the same purpose is OURS again.

    Raises:
        PrefectUnreachableError: with `sent` False only if the run certainly was not claimed.
    """
    wanted = transition_id(run_id, purpose)
    answer = await gateway.propose(run_id, PENDING, message=_MESSAGES[purpose], transition_id=wanted)
    if answer is None:
        return Claim.GONE
    try:
        return await _result(gateway, run_id, wanted)
    except UnreachableError as exc:
        raise PrefectUnreachableError(str(exc), sent=True) from exc


async def _result(gateway: PrefectGateway, run_id: UUID, wanted: UUID) -> Claim:
    """What came of the claim under the id `wanted`."""
    run = (await gateway.runs([run_id])).get(run_id)
    if run is None:
        return Claim.GONE
    if run.state.type != PENDING:
        return Claim.TAKEN
    if run.state.transition_id != wanted:
        ours = {transition_id(run_id, other) for other in (RELEASE, MOVE)}
        return Claim.BUSY if run.state.transition_id in ours else Claim.TAKEN
    if run.start_time is not None:
        await _undo(gateway, run)
        return Claim.TAKEN
    return Claim.OURS


async def _undo(gateway: PrefectGateway, run: FlowRun) -> None:
    """Give a finished run its final state back."""
    before = [state for state in await gateway.states(run.id) if state.type in FINAL_STATES]
    if before:
        last = before[-1]
        await gateway.propose(run.id, last.type, name=last.name, message=last.message, force=True)
    logger.warning("claim_undone", extra={"flow_run_id": str(run.id)})
