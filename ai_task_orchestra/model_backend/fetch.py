"""`python -m ai_task_orchestra.model_backend.fetch`: download the default model if needed and print its path."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path

from ai_task_orchestra.errors import ConfigurationError, UnreachableError
from ai_task_orchestra.model_backend.lifeline import end_with_parent
from ai_task_orchestra.model_backend.model_file import Progress, ensure_model

EXIT_CODES: dict[type[Exception], int] = {ConfigurationError: 2, UnreachableError: 3}


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 ok, 2 the file or cache can't be used, 3 the download failed."""
    parser = argparse.ArgumentParser(prog="python -m ai_task_orchestra.model_backend.fetch", description=__doc__)
    parser.add_argument("--cache", type=Path, help="folder to keep the model in")
    parser.add_argument("--json", action="store_true", help="print progress and outcome as JSON lines")
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.parent is not None:
        end_with_parent(arguments.parent, sys.stdin.buffer, whole_group=True)
    exit_on_sigterm()
    try:
        path = ensure_model(arguments.cache, progress=_tell if arguments.json else show_progress())
    except (ConfigurationError, UnreachableError) as exc:
        if arguments.json:
            _line({"error": exc.message})
        else:
            sys.stderr.write(f"{exc.message}\n")
        return EXIT_CODES[type(exc)]
    if arguments.json:
        _line({"path": str(path)})
    else:
        sys.stdout.write(f"{path}\n")
    return 0


def exit_on_sigterm() -> None:
    """Let SIGTERM unwind the stack, so that a download is stopped and its folder removed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def show_progress() -> Progress | None:
    """A line on stderr that counts up, if a person may be watching."""
    if not os.isatty(2):
        return None

    def show(done: int, total: int) -> None:
        sys.stderr.write(f"\rdownloading the model: {done / 1e6:.0f} of {total / 1e6:.0f} MB ")
        sys.stderr.flush()

    return show


def _tell(done: int, total: int) -> None:
    _line({"completed": done, "total": total})


def _line(data: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(data) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
