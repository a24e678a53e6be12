"""Shifts what our code and Prefect's are told of the time by `WRONG_CLOCK_SECONDS`; monotonic clocks stay right.

Not the class `datetime.datetime` itself is replaced, which C code makes instances of, but the name in those modules of
ours that ask it for the time, and the method by which Prefect asks.
"""

from __future__ import annotations

import datetime
import os
import sys
import time
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

_AHEAD = float(os.environ.get("WRONG_CLOCK_SECONDS", "0"))
_OURS = ("ai_task_orchestra.", "api.", "flows.")
_right_time = time.time


class _AnyDatetime(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, datetime.datetime)


class _Wrong(datetime.datetime, metaclass=_AnyDatetime):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Any:
        return datetime.datetime.now(tz) + datetime.timedelta(seconds=_AHEAD)


class _Shift(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if not name.startswith(_OURS) and name != "pendulum.datetime":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _shift(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _shift(module: ModuleType) -> None:
    if module.__name__ == "pendulum.datetime":
        right = module.DateTime.now.__func__
        module.DateTime.now = classmethod(lambda cls, tz=None: right(cls, tz).add(seconds=_AHEAD))
    elif b"datetime.now(" in Path(module.__file__ or "").read_bytes():
        module.datetime = _Wrong


if _AHEAD:
    time.time = lambda: _right_time() + _AHEAD
    sys.meta_path.insert(0, _Shift())
