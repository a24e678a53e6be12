"""How a small process of ours is started: with the standard library and this checkout, and nothing of the outside."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

_ROOT: Final = str(Path(__file__).parents[2])


def argv_of(module: str, *arguments: int) -> list[str]:
    """The command line that calls `main(*arguments)` of a module.

    The module is imported, not run by its path, so that Python compiles it only once.
    """
    code = f"import sys; sys.path.append({_ROOT!r}); from {module} import main; main(*map(int, sys.argv[1:]))"
    return [sys.executable, "-I", "-S", "-c", code, *map(str, arguments)]
