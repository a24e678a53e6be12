"""What the commands print: lines and tables for people, JSON for programs, errors on standard error."""

from __future__ import annotations

import json
import sys
import traceback as tracebacks
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from ai_task_orchestra.errors import OrchestraError

# Control characters of a terminal must not come out of data.
_CONTROLS = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


def print_line(text: str = "") -> None:
    """A line for people."""
    sys.stdout.write(f"{text.translate(_CONTROLS)}\n")


def print_json(value: Any) -> None:
    """A value for programs."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def print_table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table in columns as wide as their widest cell; the last one may be as long as it likes."""
    table = [list(titles), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(titles))]
    for row in table:
        print_line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_error(error: BaseException, *, traceback: bool = False) -> None:
    """The error and its causes, one line each; with `traceback` everything."""
    if traceback:
        tracebacks.print_exception(error)
        return
    seen: set[str] = set()
    cause: BaseException | None = error
    while cause is not None:
        text = _words(cause)
        # A message that already holds its cause's words needs no second line.
        if not any(text in earlier for earlier in seen):
            prefix = "error: " if cause is error else "  because: "
            shown = text if isinstance(cause, OrchestraError) else text.splitlines()[0]
            sys.stderr.write(f"{prefix}{shown.translate(_CONTROLS)}\n")
        seen.add(text)
        cause = cause.__cause__


def _words(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).strip() or type(error).__name__


def local_time(timestamp: str) -> str:
    """An RFC 3339 time as the wall clock here shows it."""
    return datetime.fromisoformat(timestamp).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _cell(value: object) -> str:
    return "" if value is None else str(value).replace("\n", " ").replace("\t", " ")
