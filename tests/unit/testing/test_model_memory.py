"""Loading, waiting, pushing out and keep-alive of the scripted server, as Ollama does it."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from ai_task_orchestra.testing.model_memory import (
    ModelMemory,
    ModelTooLargeError,
    ServerBusyError,
    parse_keep_alive,
)
from ai_task_orchestra.testing.scripted_models import ScriptedModel
from tests.support.waiting import wait_until

A, B, C = (ScriptedModel(name=name, size_bytes=100) for name in ("a", "b", "c"))


def memory(**overrides: Any) -> ModelMemory:
    limits: dict[str, Any] = {
        "memory_bytes": None,
        "max_loaded_models": 3,
        "max_queue": 512,
        "num_parallel": 1,
        "keep_alive": 300.0,
    }
    return ModelMemory(**(limits | overrides))


async def use(held: ModelMemory, model: ScriptedModel, **options: Any) -> None:
    async with held.use(model, **({"num_ctx": None, "keep_alive": None} | options)):
        pass


def names(held: ModelMemory) -> set[str]:
    return {entry.model.name for entry in held.loaded()}


async def test_a_loaded_model_is_not_loaded_again() -> None:
    held = memory()
    await use(held, A)
    await use(held, A)
    assert held.statistics.loads == 1
    held.close()


async def test_a_model_that_does_not_fit_pushes_an_idle_one_out() -> None:
    held = memory(memory_bytes=250)
    for model in (A, B, C):
        await use(held, model)
    assert names(held) == {"b", "c"}
    assert (held.statistics.swaps, held.statistics.unloads) == (1, 1)
    held.close()


async def test_the_shortest_keep_alive_goes_first() -> None:
    held = memory(max_loaded_models=2)
    await use(held, A, keep_alive=600.0)
    await use(held, B, keep_alive=60.0)
    await use(held, C)
    assert names(held) == {"a", "c"}
    held.close()


async def test_a_busy_victim_is_waited_for_and_still_lets_requests_in() -> None:
    held = memory(max_loaded_models=1, num_parallel=2)
    async with held.use(A, num_ctx=None, keep_alive=None):
        waiting = asyncio.create_task(use(held, B))
        await asyncio.wait_for(use(held, A), 5)
        assert not waiting.done()
    await asyncio.wait_for(waiting, 5)
    assert names(held) == {"b"}
    held.close()


async def test_another_context_size_reloads_and_the_default_counts_as_one() -> None:
    held = memory()
    await use(held, A)
    await use(held, A, num_ctx=4096)
    assert held.statistics.reloads == 0
    await use(held, A, num_ctx=8192)
    await use(held, A)
    assert (held.statistics.loads, held.statistics.reloads) == (3, 2)
    held.close()


async def test_only_waiting_loads_fill_the_queue() -> None:
    held = memory(max_loaded_models=1, max_queue=1)
    async with held.use(A, num_ctx=None, keep_alive=None):
        first = asyncio.create_task(use(held, B))
        same = [asyncio.create_task(use(held, A)) for _ in range(5)]
        await wait_until(lambda: held._pending == 1, description="one load waits")
        with pytest.raises(ServerBusyError):
            await use(held, C)
    await asyncio.wait_for(asyncio.gather(first, *same), 5)
    held.close()


async def test_generations_wait_for_a_slot_of_their_model() -> None:
    held = memory(num_parallel=1)
    async with held.use(A, num_ctx=None, keep_alive=None):
        second = asyncio.create_task(use(held, A))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(second), 0.05)
    await asyncio.wait_for(second, 5)
    held.close()


async def test_the_last_keep_alive_wins() -> None:
    held = memory()
    await use(held, A, keep_alive=math.inf)
    assert held.loaded()[0].expires_at.year > 2300
    await use(held, A, keep_alive=0.02)
    await wait_until(lambda: not held.loaded(), description="the model expired")


async def test_a_cancelled_load_leaves_nothing_behind() -> None:
    held = memory()
    slow = ScriptedModel(name="slow", load_seconds=60)
    load = asyncio.create_task(use(held, slow))
    await wait_until(lambda: names(held) == {"slow"}, description="it is being loaded")
    load.cancel()
    with pytest.raises(asyncio.CancelledError):
        await load
    assert not held.loaded()
    await asyncio.wait_for(use(held, A), 5)
    held.close()


async def test_a_model_larger_than_the_memory_is_refused() -> None:
    with pytest.raises(ModelTooLargeError):
        await use(memory(memory_bytes=50), A)


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (None, None),
        (30, 30.0),
        (0, 0.0),
        ("0", 0.0),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        (-1, math.inf),
        ("-1s", math.inf),
    ],
)
def test_keep_alive_is_read_as_ollama_reads_it(given: Any, seconds: float | None) -> None:
    assert parse_keep_alive(given) == seconds


@pytest.mark.parametrize("given", ["soon", "5", "5 m", True, [], "m5"])
def test_other_keep_alives_are_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="invalid duration"):
        parse_keep_alive(given)
