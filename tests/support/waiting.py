"""Waiting for a condition instead of sleeping."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

T = TypeVar("T")


@overload
async def wait_until(predicate: Callable[[], Awaitable[T]], *, timeout: float = ..., description: str = ...) -> T: ...
@overload
async def wait_until(predicate: Callable[[], T], *, timeout: float = ..., description: str = ...) -> T: ...
async def wait_until(predicate: Callable[[], Any], *, timeout: float = 20.0, description: str = "condition") -> Any:
    """Return the first truthy value of `predicate`; fail with `description` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {description} (last value: {value!r})"
        await asyncio.sleep(0.03)


def wait_until_sync(predicate: Callable[[], T], *, timeout: float = 20.0, description: str = "condition") -> T:
    """The same for code outside an event loop."""
    deadline = time.monotonic() + timeout
    while not (value := predicate()):
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {description} (last value: {value!r})"
        time.sleep(0.03)
    return value
