"""Notices that the template folder has changed, at little cost."""

from __future__ import annotations

import time
from typing import Final

from ai_task_orchestra.library import TemplateLibrary

_SECONDS_BETWEEN_LOOKS: Final = 1.0


class TemplateFolder:
    """Looks at the folder at most once a second."""

    def __init__(self, library: TemplateLibrary) -> None:
        self._library = library
        self._next_look = time.monotonic() + _SECONDS_BETWEEN_LOOKS

    def changed(self, *, at_once: bool = False) -> bool:
        """Whether the folder's content is another one than at the last look; `at_once`: look in any case."""
        if time.monotonic() < self._next_look and not at_once:
            return False
        self._next_look = time.monotonic() + _SECONDS_BETWEEN_LOOKS
        return self._library.refresh()
