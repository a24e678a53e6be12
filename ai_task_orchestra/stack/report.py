"""What people see of a start: one line for each part, with a spinner where there is a terminal."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

NAME_WIDTH = 16


class StartReport:
    """The lines of a start. Between `open()` and `close()` a terminal shows the parts still starting.

    The console is always usable in between: `say()` prints above the moving lines.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._moving: Progress | None = None
        self._parts: dict[str, TaskID] = {}
        self._begun: dict[str, float] = {}

    def __enter__(self) -> StartReport:
        if self.console.is_terminal:
            from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            columns = (
                SpinnerColumn(),
                TextColumn(f"{{task.description:<{NAME_WIDTH}}}"),
                TextColumn("{task.fields[text]}"),
                TimeElapsedColumn(),
            )
            self._moving = Progress(*columns, console=self.console, transient=True)
            self._moving.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the terminal back."""
        if self._moving is not None:
            self._moving.stop()
            self._moving = None

    def begin(self, part: str, text: str = "starting") -> None:
        """A part is being started."""
        self._begun[part] = time.monotonic()
        if self._moving is not None:
            self._parts[part] = self._moving.add_task(part, total=None, text=text)

    def update(self, part: str, text: str) -> None:
        """What it is doing now."""
        if self._moving is not None:
            self._moving.update(self._parts[part], text=text)

    def done(self, part: str, text: str) -> None:
        """It is there."""
        self._end(part, "✓", "green", text, timed=True)

    def absent(self, part: str, text: str) -> None:
        """It will not be there, and the rest goes on without it."""
        self._end(part, "!", "yellow", text)

    def say(self, text: str) -> None:
        """A line for people, at any time."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _end(self, part: str, sign: str, colour: str, text: str, *, timed: bool = False) -> None:
        if self._moving is not None and part in self._parts:
            self._moving.remove_task(self._parts.pop(part))
        begun = self._begun.pop(part, None)
        seconds = f"  ({time.monotonic() - begun:.1f} s)" if timed and begun is not None else ""
        from rich.text import Text

        line = Text.assemble((sign, colour), f" {part:<{NAME_WIDTH}} {text}", (seconds, "dim"))
        self.console.print(line, soft_wrap=True, highlight=False)
