"""A whole stack: started in order, kept running while it is used, stopped in reverse order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from ai_task_orchestra.exposure import refuse_dangers
from ai_task_orchestra.settings import Settings
from ai_task_orchestra.stack.child import Backoff
from ai_task_orchestra.stack.home import locked_home
from ai_task_orchestra.stack.leftovers import LEFTOVER_SECONDS
from ai_task_orchestra.stack.orphans import OrphanSweep
from ai_task_orchestra.stack.ports import check_ports
from ai_task_orchestra.stack.report import StartReport
from ai_task_orchestra.stack.signals import StopSignals
from ai_task_orchestra.stack.start import RunningStack, StackStart
from ai_task_orchestra.stack.supervisor import Supervisor

logger = logging.getLogger(__name__)

# A stack is gone within 15 s of the signal.
STOP_SECONDS = 14.0


async def run_stack(
    settings: Settings,
    report: StartReport,
    use: Callable[[RunningStack], Awaitable[int]],
    *,
    sweep: OrphanSweep | None = None,
) -> int | None:
    """Start a stack, hand it to `use`, stop it, and return what `use` returned; None if a signal ended it.

    Lifecycle: 1. lock the data directory; 2. check settings and ports; 3. start; 4. `use`; 5. stop, in reverse order.
    A signal at any time leads to 5.

    Raises:
        OrchestraError: it can't be started; what had been started is stopped.
    """
    with StopSignals() as signals, locked_home(settings) as place, report:
        backoff = Backoff(most_seconds=settings.restart_pause_seconds)
        supervisor = Supervisor(place.logs, report.say, backoff=backoff, sweep=sweep)
        start = StackStart(settings, report, supervisor, place)
        work = asyncio.ensure_future(_start_and_use(start, use))
        asked = asyncio.ensure_future(signals.asked.wait())
        try:
            await asyncio.wait({work, asked}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return await _outcome(work)
            report.say("stopping; once more to stop at once")
            await _cancelled(work)
            return None
        finally:
            asked.cancel()
            report.close()
            await supervisor.stop(signals.now, within_seconds=STOP_SECONDS)
            place.database_url_file.unlink(missing_ok=True)


async def _outcome(work: asyncio.Future[int]) -> int:
    """What the work returned or raised; of several errors at once the first."""
    try:
        return await work
    except BaseExceptionGroup as group:
        raise _first_cause(group) from None


async def _cancelled(work: asyncio.Future[int]) -> None:
    """Give the work up. What fails in it now is of no more interest to people."""
    work.cancel()
    try:
        await work
    except asyncio.CancelledError:
        return
    except Exception:
        logger.exception("failed_while_stopping")


def _first_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    for error in group.exceptions:
        return _first_cause(error) if isinstance(error, BaseExceptionGroup) else error
    return group


async def _start_and_use(start: StackStart, use: Callable[[RunningStack], Awaitable[int]]) -> int:
    refuse_dangers(start.settings)
    await check_ports(start.settings, wait_seconds=LEFTOVER_SECONDS if start.place.after_a_crash else 0.0)
    stack = await start.run()
    start.report.close()
    return await use(stack)
