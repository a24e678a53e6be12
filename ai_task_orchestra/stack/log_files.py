"""The children's log files: a new one at each start, bounded in size."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ai_task_orchestra.redaction import without_secrets

LIMIT_BYTES = 10 * 1024 * 1024
KEPT = 3
LAST_WORDS_LINES = 8


@dataclass(frozen=True)
class LogFile:
    """One child's log: `path` now, and the `KEPT` files before it as `path.1` (the newest) and so on."""

    path: Path
    limit_bytes: int = LIMIT_BYTES

    @contextlib.contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """The file as a child's output.

        Opened for appending: after `shorten()` the child goes on writing at the new end.
        """
        with os.fdopen(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as file:
            yield file

    def rotate(self) -> None:
        """Begin a new file; for use while nobody writes."""
        if self.path.exists() and self.path.stat().st_size > 0:
            self._shift()
            self.path.rename(self._numbered(1))

    def shorten(self) -> bool:
        """Move the content aside if it has outgrown the limit, while the child goes on writing.

        What the child writes between the copy and the cut is lost; a pipe through us instead would block the child
        whenever we are slow.
        """
        try:
            if self.path.stat().st_size <= self.limit_bytes:
                return False
        except FileNotFoundError:
            return False
        self._shift()
        shutil.copyfile(self.path, self._numbered(1))
        self._numbered(1).chmod(0o600)
        os.truncate(self.path, 0)
        return True

    def last_words(self) -> str:
        """The last lines and where to find the rest, to be put after an error message."""
        lines = self.last_lines()[-LAST_WORDS_LINES:]
        if not lines:
            return f" (log: {self.path})"
        shown = "".join(f"\n  | {without_secrets(line[:300])}" for line in lines)
        return f"; the end of {self.path}:{shown}"

    def last_lines(self) -> list[str]:
        """The last lines that are not empty, oldest first: those within the last 8 KiB."""
        try:
            with self.path.open("rb") as file:
                file.seek(max(0, self.path.stat().st_size - 8192))
                text = file.read().decode(errors="replace")
        except OSError:
            return []
        return [line.rstrip() for line in text.splitlines() if line.strip()]

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")

    def _shift(self) -> None:
        for number in range(KEPT - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                self._numbered(number).replace(self._numbered(number + 1))
