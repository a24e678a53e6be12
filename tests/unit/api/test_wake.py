from __future__ import annotations

import asyncio

from api.wake import Alarm


async def test_a_loop_that_is_cancelled_as_it_is_rung_ends() -> None:
    alarm = Alarm()

    async def loop() -> None:
        while True:
            await alarm.wait(60.0)

    looping = asyncio.create_task(loop())
    await asyncio.sleep(0)
    alarm.ring()
    await asyncio.sleep(0)
    looping.cancel()
    await asyncio.wait({looping}, timeout=1.0)
    assert looping.cancelled()


async def test_ringing_before_anyone_waits_is_not_lost() -> None:
    alarm = Alarm()
    alarm.ring()
    await asyncio.wait_for(alarm.wait(60.0), 1.0)


async def test_it_returns_when_the_time_is_over() -> None:
    await asyncio.wait_for(Alarm().wait(0.01), 1.0)
