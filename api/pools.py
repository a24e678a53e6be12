"""Which work pools are ours: the configured one, and those that templates name."""

from __future__ import annotations

from collections.abc import Collection

from ai_task_orchestra.library import TemplateLibrary


class Pools:
    """Grows with the templates, never shrinks: tasks of a removed template may still be waiting."""

    def __init__(self, default: str, library: TemplateLibrary) -> None:
        self._library = library
        self._names = {default}

    def names(self) -> tuple[str, ...]:
        """All of them, sorted."""
        self._names |= {spec.work_pool for spec in self._library.templates.values() if spec.work_pool}
        return tuple(sorted(self._names))

    def add(self, names: Collection[str]) -> None:
        """Pools that unfinished tasks are known to wait in."""
        self._names |= set(names)
